"""Instance Availability Notification on the wire: N-CREATE to the peers that want to know."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from pydicom.dataset import Dataset

from archive import jobs
from archive.config import Settings
from archive.workflow.availability import announce
from tests.archive.lifecycle.aging import receive
from tests.builders import ct_slice, new_uid
from tests.dicom_scp.conftest import Running, running
from tests.dicom_scp.listening import Listener, listening


@pytest.fixture
def ris() -> Iterator[Listener]:
    with listening("RIS") as started:
        yield started


@pytest.fixture
def server(settings: Settings, ris: Listener, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """The RIS is told half a second after the last image; what fails is tried soon."""
    monkeypatch.setattr(jobs, "FIRST_PAUSE", timedelta(seconds=0.2))
    peers = {"RIS": {"host": "127.0.0.1", "port": ris.port, "notify": True}, "CT1": {}}
    with running(settings, peers=peers, notify_quiet_seconds=0.5) as started:
        yield started


def store(server: Running, *series: str) -> list[Dataset]:
    """An image in each of these series of one study."""
    images = [ct_slice(SeriesInstanceUID=new_uid("availability", name)) for name in series]
    for ds in images:
        receive(server.archive, ds)
    return images


def heard(ds: Dataset) -> dict[str, dict[str, tuple[str, str, str]]]:
    """Series to instance to class, availability and AE title."""
    return {
        str(part.SeriesInstanceUID): {
            str(one.ReferencedSOPInstanceUID): (
                str(one.ReferencedSOPClassUID),
                one.InstanceAvailability,
                one.RetrieveAETitle,
            )
            for one in part.ReferencedSOPSequence
        }
        for part in ds.ReferencedSeriesSequence
    }


def expected(*images: Dataset) -> dict[str, dict[str, tuple[str, str, str]]]:
    found: dict[str, dict[str, tuple[str, str, str]]] = {}
    for ds in images:
        part = found.setdefault(str(ds.SeriesInstanceUID), {})
        part[str(ds.SOPInstanceUID)] = (str(ds.SOPClassUID), "ONLINE", "MINIPACS")
    return found


@pytest.mark.req("REQ-DCM-55")
def test_a_peer_hears_of_every_image_when_the_study_is_quiet_and_of_late_ones_again(
    server: Running, ris: Listener
) -> None:
    images = store(server, "1", "1", "2")
    _, ds = ris.hear()
    assert (ds.StudyInstanceUID, ds.ReferencedPerformedProcedureStepSequence) == (images[0].StudyInstanceUID, [])
    assert heard(ds) == expected(*images)
    images += store(server, "2")
    assert heard(ris.hear()[1]) == expected(*images)
    assert ris.hears_nothing(1.5)


@pytest.mark.req("REQ-DCM-55")
def test_a_peer_that_refuses_is_told_again_as_things_are_then(server: Running, ris: Listener) -> None:
    ris.status = 0x0110
    images = store(server, "1")
    uid = str(images[0].StudyInstanceUID)
    tell: Any = partial(announce, study_instance_uid=uid, at=server.archive.real_clock())
    server.archive.commit.run(tell)
    for _ in range(100):
        with server.archive.reading() as conn:
            row = conn.execute(jobs.select(jobs.job)).first()
        if row is not None and row.error:
            break
        jobs.sleep(0.1)
    assert row is not None
    assert row.error == "the peer answered 0110"
    images += store(server, "2")
    ris.status = 0
    while heard(ris.hear()[1]) != expected(*images):
        pass  # the first may have gone before the second image
