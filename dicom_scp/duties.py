"""What others want said to peers: the `dicom.*` jobs, done beside the associations (STYLE §1, `archive.jobs`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archive import commitment, notification, sending
from archive.core import Archive
from archive.duties import Duties, Duty
from archive.jobs import Job
from archive.mpps import COUNT, FORWARD
from dicom_scp import mpps
from dicom_scp.availability import notify
from dicom_scp.commitment import report
from dicom_scp.deliver import deliver
from dicom_scp.echo import verify
from dicom_scp.ends import AssociationEnd
from dicom_scp.peers import peer_of


def _echo(archive: Archive, job: Job) -> Mapping[str, Any]:
    ae_title = str(job.payload["ae_title"])
    return {"status": verify(archive.settings, ae_title, peer_of(archive, ae_title))}


DUTIES: dict[str, Duty] = {
    "dicom.echo": _echo,
    sending.KIND: deliver,
    commitment.JOB: report,
    notification.JOB: notify,
    FORWARD: mpps.forward,
    COUNT: mpps.count,
}


def on_duty(archive: Archive) -> Duties:
    """Does `dicom.*` jobs until it is closed."""
    return Duties(archive, DUTIES, failures=(AssociationEnd,), also=(notification.owe_due, sending.gather))
