"""Stored, but: the warnings of C-STORE (table 2.3 of sheet 10, REQ-DCM-13, 18)."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import Dataset

from archive.config import Settings
from dicom_scp import dimse
from dicom_scp.status import Status
from tests.archive.dicom.correcting import correct, element, pn
from tests.archive.index.test_merged import merge
from tests.builders import ct_slice, data_set, new_uid
from tests.dicom_scp import wire
from tests.dicom_scp.conftest import Running, running
from tests.dicom_scp.retrieving import GETTER, Getter, identifier, keep
from tests.dicom_scp.wire import CT


def said(server: Running, ds: Dataset, data: bytes | None = None) -> tuple[int, str, int | None]:
    """Status, Error Comment and Offending Element of the response to a C-STORE."""
    with Getter(server) as peer:
        peer.associate()
        peer.say(wire.command(3, dimse.store_request(1, CT, ds.SOPInstanceUID)))
        peer.say(wire.data_set(3, data_set(ds) if data is None else data))
        peer.message()
        answer = peer.last_set
    return answer.Status, answer.get("ErrorComment", ""), answer.get("OffendingElement")


def study(name: str, number: int = 1, **changes: Any) -> Dataset:
    uids = {"StudyInstanceUID": new_uid(name), "SeriesInstanceUID": new_uid(name, "1")}
    return ct_slice(number=number, **{"PatientID": name} | uids | changes)


@pytest.mark.req("REQ-DCM-18")
def test_a_coerced_identifier_is_said_at_reception_and_other_corrections_are_not(server: Running) -> None:
    """What leaves afterwards is what was said."""
    keep(server.archive, study("OLD", IssuerOfPatientID="CABINET"), study("NEW", IssuerOfPatientID="CABINET"))
    assert said(server, study("OLD", 2, IssuerOfPatientID="CABINET"))[0] == Status.SUCCESS
    merge(server.archive, "OLD", "NEW")
    late = study("OLD", 3, IssuerOfPatientID="CABINET")
    status, comment, offending = said(server, late)
    assert (status, offending) == (Status.WARNING, 0x00100020)
    assert "Patient ID" in comment
    assert said(server, late)[0] == Status.SUCCESS  # the identical one again
    assert said(server, study("NEW", 4, IssuerOfPatientID="CABINET"))[0] == Status.SUCCESS  # the name alone changes
    assert said(server, study("NEW", 5))[0] == Status.SUCCESS  # without an issuer, which is no difference
    fresh = {"StudyInstanceUID": new_uid("fresh"), "SeriesInstanceUID": new_uid("fresh", "1")}
    assert said(server, study("OLD", 6, IssuerOfPatientID="CABINET", **fresh))[0] == Status.WARNING
    with Getter(server) as peer:
        peer.associate(GETTER)
        came, _ = peer.get(identifier(QueryRetrieveLevel="IMAGE", SOPInstanceUID=late.SOPInstanceUID))
    assert b"NEW " in came[late.SOPInstanceUID][:2000]


@pytest.mark.req("REQ-DCM-18")
def test_a_foreign_identifier_that_is_mapped_is_said(server: Running) -> None:
    keep(server.archive, study("A", IssuerOfPatientID="HOPITAL"))
    mapped = {"00100010": pn("DUPONT^Anne"), "00100020": element("LO", "IPP7"), "00100021": element("LO", "CABINET")}
    correct(server.archive, "A", mapped)
    assert said(server, study("A", 2, IssuerOfPatientID="HOPITAL"))[0] == Status.WARNING


BROKEN: list[tuple[str, dict[str, Any], int]] = [
    ("without modality", {"Modality": None}, 0x00080060),
    ("empty modality", {"Modality": ""}, 0x00080060),
    ("without rows", {"Rows": None}, 0x00280010),
]


@pytest.mark.req("REQ-DCM-13")
@pytest.mark.parametrize(("changes", "offending"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_broken_rule_of_the_class_is_said_and_the_instance_stored(
    server: Running, changes: dict[str, Any], offending: int
) -> None:
    ds = ct_slice(**changes)
    status, comment, element = said(server, ds)
    assert (status, element) == (Status.BREAKS_CLASS, offending)
    assert comment.startswith("stored; ")
    assert server.stored_uids() == [ds.SOPInstanceUID]


@pytest.mark.req("REQ-DCM-13")
def test_pixels_cut_short_are_said_and_stored_as_they_are(server: Running) -> None:
    ds = ct_slice()
    status, comment, element = said(server, ds, data_set(ds)[:-100])
    assert (status, element) == (Status.BREAKS_CLASS, 0x7FE00010)
    assert "shorter" in comment
    with Getter(server) as peer:
        peer.associate(GETTER)
        assert peer.get(identifier())[0] == {ds.SOPInstanceUID: data_set(ds)[:-100]}


@pytest.mark.req("REQ-DCM-17", "REQ-DCM-19")
def test_what_waits_for_a_person_is_a_plain_success(settings: Settings) -> None:
    with running(settings) as server:
        assert said(server, ct_slice(PatientID=None))[0] == Status.SUCCESS
        keep(server.archive, study("A"))
        assert said(server, study("A", 2, PatientID="B"))[0] == Status.SUCCESS  # held
