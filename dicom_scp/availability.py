"""Instance Availability Notification SCU (PS3.4 Annex R, IHE RAD-49; REQ-DCM-55)."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from archive import notification
from archive.core import Archive
from archive.dicom.uids import new_uid
from archive.errors import Busy
from archive.jobs import Job
from archive.notification import Told
from dicom_scp.associate import Proposed
from dicom_scp.classes import PLAIN
from dicom_scp.dimse import Field
from dicom_scp.peers import peer_of
from dicom_scp.requestor import Requestor

INSTANCE_AVAILABILITY = "1.2.840.10008.5.1.4.33"
_WARNINGS = frozenset({0x0107, 0x0116})  # PS3.7 §10.1.5.1.6: it was made, some attributes aside


def notify(archive: Archive, job: Job) -> dict[str, Any]:
    """Tell a peer which instances of a study are available (`dicom_scp.duties`).

    Raises:
        AssociationEnd, Unavailable: it was not told, or has not answered well.
        NotFound: the settings do not say where it is.
    """
    study_instance_uid, ae_title = str(job.payload["study"]), str(job.payload["peer"])
    told = notification.instances(archive, study_instance_uid)
    if told:
        settings = archive.settings
        attributes = _attributes(study_instance_uid, told, ae_title=settings.dicom.ae_title)
        proposed = (Proposed(1, INSTANCE_AVAILABILITY, PLAIN),)
        with Requestor.open(settings, ae_title, peer_of(archive, ae_title), proposed) as requestor:
            answer = requestor.perform(Field.N_CREATE_RQ, INSTANCE_AVAILABILITY, new_uid(), attributes)
        if answer.status and answer.status not in _WARNINGS:
            raise Busy(f"the peer answered {answer.status:04X}")
    return {"instances": len(told)}


def _attributes(study_instance_uid: str, told: list[Told], *, ae_title: str) -> dict[str, Any]:
    """PS3.4 Table R.3.2-1."""
    parts = [
        {
            "0020000E": _value("UI", series_uid),
            "00081199": {"vr": "SQ", "Value": [_item(one, ae_title) for one in some]},
        }
        for series_uid, some in groupby(told, key=lambda one: one.series_instance_uid)
    ]
    return {
        "00081111": {"vr": "SQ"},  # Referenced Performed Procedure Step Sequence, type 2
        "0020000D": _value("UI", study_instance_uid),
        "00081115": {"vr": "SQ", "Value": parts},
    }


def _item(one: Told, ae_title: str) -> dict[str, Any]:
    return {
        "00081150": _value("UI", one.sop_class_uid),
        "00081155": _value("UI", one.sop_instance_uid),
        "00080056": _value("CS", str(one.availability)),
        "00080054": _value("AE", ae_title),
    }


def _value(vr: str, value: str) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]}
