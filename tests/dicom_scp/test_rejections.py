"""Rejection notes over DIMSE: stored like any object, and what they hide is hidden (IHE IOCM, REQ-DCM-42)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, KeyObjectSelectionDocumentStorage
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)

from archive.config import Settings
from tests.builders import ct_slice, key_object, new_uid
from tests.dicom_scp.conftest import Running, running

STUDY = new_uid("study")
PEERS = {
    "CT1": {},
    "QUALITY": {"may": ["query", "retrieve", "quality"]},
    "VIEWER": {"may": ["query", "retrieve"]},
}


@contextmanager
def calling(server: Running, ae_title: str) -> Iterator[tuple[Association, list[str]]]:
    """An association, and the UIDs of what it is sent."""
    came: list[str] = []

    def take(event: evt.Event) -> int:
        came.append(str(event.request.AffectedSOPInstanceUID))
        return 0

    ae = AE(ae_title=ae_title)
    classes = (CTImageStorage, KeyObjectSelectionDocumentStorage)
    for one in (*classes, StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelGet):
        ae.add_requested_context(one, ExplicitVRLittleEndian)
    assoc = ae.associate(
        "127.0.0.1",
        server.port,
        ae_title="MINIPACS",
        ext_neg=[build_role(one, scu_role=True, scp_role=True) for one in classes],
        evt_handlers=[(evt.EVT_C_STORE, take)],
    )
    assert assoc.is_established
    try:
        yield assoc, came
    finally:
        assoc.release()


def asked(level: str, **keys: str) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    ds.StudyInstanceUID = STUDY
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    return ds


def find(server: Running, ae_title: str, query: Dataset) -> list[Dataset]:
    with calling(server, ae_title) as (assoc, _):
        answers = list(assoc.send_c_find(query, StudyRootQueryRetrieveInformationModelFind))
    assert answers[-1][0].Status == 0
    return [ds for _, ds in answers if ds is not None]


def get(server: Running, ae_title: str, query: Dataset) -> list[str]:
    with calling(server, ae_title) as (assoc, came):
        answers = list(assoc.send_c_get(query, StudyRootQueryRetrieveInformationModelGet))
        assert answers[-1][0].Status == 0
    return came


@pytest.mark.req("REQ-IHE-09", "REQ-DCM-42", "REQ-DCM-13")
def test_a_modality_rejects_its_images_and_only_the_quality_peer_still_sees_the_blurred_one(settings: Settings) -> None:
    blurred, unsafe, expired, good = (ct_slice(number=number) for number in range(1, 5))
    notes = [
        key_object(blurred, title=("113001", "Rejected for Quality Reasons")),
        key_object(unsafe, title=("113037", "Rejected for Patient Safety Reasons")),
        key_object(expired, title=("113039", "Data Retention Policy Expired")),
    ]
    with running(settings, peers=PEERS, accept_unknown_callers=False) as server:
        with calling(server, "CT1") as (assoc, _):
            for ds in (blurred, unsafe, expired, good, *notes):
                assert assoc.send_c_store(ds).Status == 0
            refused = assoc.send_c_store(unsafe)
            assert (refused.Status, "113037" in refused.ErrorComment) == (0xC0F3, True)
            assert assoc.send_c_store(expired).Status == 0xC0F2
            assert assoc.send_c_store(blurred).Status == 0
        (counted,) = find(server, "VIEWER", asked("STUDY", NumberOfStudyRelatedInstances=""))
        assert counted.NumberOfStudyRelatedInstances == 3  # the good image and two notes; the third is evidence
        for caller, expected in (("VIEWER", [good]), ("QUALITY", [good, blurred])):
            seen = find(server, caller, asked("IMAGE", SeriesInstanceUID=good.SeriesInstanceUID, SOPInstanceUID=""))
            assert {ds.SOPInstanceUID for ds in seen} == {ds.SOPInstanceUID for ds in expected}
            given = get(server, caller, asked("STUDY"))
            assert set(given) == {ds.SOPInstanceUID for ds in (*expected, *notes[:2])}
        assert get(server, "VIEWER", asked("IMAGE", SOPInstanceUID=blurred.SOPInstanceUID)) == []
        (found,) = find(
            server,
            "VIEWER",
            asked("IMAGE", SeriesInstanceUID=notes[0].SeriesInstanceUID, SOPInstanceUID=notes[0].SOPInstanceUID),
        )
        assert found.InstanceAvailability == "ONLINE"
