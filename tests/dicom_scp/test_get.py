"""C-GET: what comes back is what was kept, and the ending tells what happened (sheet 10 §3)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from archive.audit.record import Event
from archive.config import Settings
from dicom_scp import dimse
from dicom_scp.associate import Role
from dicom_scp.dimse import Field
from dicom_scp.status import Status
from tests.builders import ct_slice, data_set, new_uid
from tests.conftest import need
from tests.dicom_scp import wire
from tests.dicom_scp.conftest import Running, running
from tests.dicom_scp.retrieving import (
    GETTER,
    STUDY,
    Getter,
    bodies,
    cancel,
    counts,
    identifier,
    keep,
    retrieve_command,
    stored,
    write_study,
)
from tests.dicom_scp.test_negotiate import user
from tests.dicom_scp.wire import CT, EXPLICIT, IMPLICIT, Proposed, request

OVER_TLS = "settings"


@pytest.mark.req("REQ-DCM-39")
@pytest.mark.parametrize("max_pdu", [0, 1024, 4096, 16_384, 1 << 20])
def test_what_is_got_is_what_was_kept_whatever_the_pdu(server: Running, max_pdu: int) -> None:
    slices = keep(server.archive, *(ct_slice(rows=90, columns=91, number=number) for number in (1, 2, 3)))
    roles = {CT: Role(scu=False, scp=True)}
    with Getter(server) as peer:
        peer.associate(request(user=user(max_pdu=max_pdu, roles=roles)))
        came, responses = peer.get(identifier())
        assert peer.echoes()
        assert peer.longest <= (max_pdu or 1 << 17)
    assert came == {ds.SOPInstanceUID: data_set(ds) for ds in slices}
    assert (responses[-1].Status, counts(responses[-1])) == (0, (None, 3, 0, 0))
    assert (responses[0].Status, counts(responses[0])[0]) == (Status.PENDING, 2)


@pytest.mark.req("REQ-DCM-06", "REQ-DCM-39")
def test_without_the_scp_role_every_sub_operation_fails(server: Running) -> None:
    slices = keep(server.archive, ct_slice(number=1), ct_slice(number=2))
    with Getter(server) as peer:
        peer.associate()
        came, responses = peer.get(identifier())
        assert peer.echoes()
    assert came == {}
    assert (responses[-1].Status, counts(responses[-1])) == (Status.SUB_OPERATIONS_FAILED, (None, 0, 2, 0))
    assert list(responses[-1].identifier.FailedSOPInstanceUIDList) == [ds.SOPInstanceUID for ds in slices]


@pytest.mark.req("REQ-DCM-39", "REQ-DCM-46")
@pytest.mark.parametrize(
    ("status", "final", "told"),
    [(0xB000, Status.WARNING, (None, 0, 0, 2)), (0xA700, Status.SUB_OPERATIONS_FAILED, (None, 0, 2, 0))],
)
def test_the_answers_of_the_caller_make_the_ending(
    server: Running, status: int, final: Status, told: tuple[int | None, int, int, int]
) -> None:
    keep(server.archive, ct_slice(number=1), ct_slice(number=2))
    with Getter(server) as peer:
        peer.associate(GETTER)
        _, responses = peer.get(identifier(), status=status)
    assert (responses[-1].Status, counts(responses[-1])) == (final, told)


@pytest.mark.req("REQ-DCM-40")
def test_lists_of_uids_and_every_level_select(server: Running) -> None:
    one = ct_slice(number=1)
    two = ct_slice(number=2, SeriesInstanceUID=new_uid("series 2"))
    three = ct_slice(number=3, StudyInstanceUID=new_uid("other"), SeriesInstanceUID=new_uid("series 3"))
    keep(server.archive, one, two, three)
    wanted: list[tuple[dict[str, Any], list[Dataset]]] = [
        ({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": [STUDY, new_uid("other")]}, [one, two, three]),
        ({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": STUDY, "PatientID": "WRONG"}, [one, two]),
        (
            {"QueryRetrieveLevel": "SERIES", "StudyInstanceUID": STUDY, "SeriesInstanceUID": two.SeriesInstanceUID},
            [two],
        ),
        (
            {
                "QueryRetrieveLevel": "SERIES",
                "SeriesInstanceUID": [two.SeriesInstanceUID, three.SeriesInstanceUID],
                "StudyInstanceUID": "",
            },
            [two, three],
        ),
        (
            {
                "QueryRetrieveLevel": "IMAGE",
                "StudyInstanceUID": STUDY,
                "SeriesInstanceUID": one.SeriesInstanceUID,
                "SOPInstanceUID": [one.SOPInstanceUID, two.SOPInstanceUID],
            },
            [one],
        ),
        ({"QueryRetrieveLevel": "IMAGE", "SOPInstanceUID": [one.SOPInstanceUID, three.SOPInstanceUID]}, [one, three]),
        ({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": "1.2.3"}, []),
    ]
    with Getter(server) as peer:
        peer.associate(GETTER)
        for keys, found in wanted:
            came, responses = peer.get(identifier(**keys))
            assert sorted(came) == sorted(ds.SOPInstanceUID for ds in found), keys
            assert responses[-1].Status == 0


@pytest.mark.req("REQ-DCM-40")
def test_a_patient_is_got_by_one_patient_id_in_patient_root(server: Running) -> None:
    one = ct_slice(number=1)
    other = ct_slice(
        number=2, PatientID="IPP2", StudyInstanceUID=new_uid("p2"), SeriesInstanceUID=new_uid("p2", "series")
    )
    keep(server.archive, one, other)
    contexts = (
        Proposed(1, wire.VERIFICATION, (IMPLICIT,)),
        Proposed(3, CT, (EXPLICIT,)),
        Proposed(7, wire.PATIENT_GET, (IMPLICIT,)),
    )
    with Getter(server) as peer:
        peer.associate(request(contexts=contexts, user=GETTER.user))
        for keys, status, found in (
            ({"QueryRetrieveLevel": "PATIENT", "PatientID": "IPP2"}, 0, [other]),
            ({"QueryRetrieveLevel": "PATIENT", "PatientID": ["IPP1", "IPP2"]}, Status.DOES_NOT_MATCH_CLASS, []),
            ({"QueryRetrieveLevel": "PATIENT", "PatientID": "IPP*"}, Status.DOES_NOT_MATCH_CLASS, []),
            ({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": STUDY, "PatientID": "IPP2"}, 0, []),
            ({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": STUDY, "PatientID": "IPP1"}, 0, [one]),
        ):
            peer.say(wire.command(7, retrieve_command(Field.C_GET_RQ, wire.PATIENT_GET)))
            peer.say(wire.data_set(7, identifier(implicit=True, **keys)))
            came, responses = peer.collect()
            assert (responses[-1].Status, sorted(came)) == (status, [ds.SOPInstanceUID for ds in found]), keys


@pytest.mark.req("REQ-DCM-46")
@pytest.mark.parametrize(
    ("keys", "status", "offending"),
    [
        (identifier(QueryRetrieveLevel="PATIENT", PatientID="IPP1"), Status.DOES_NOT_MATCH_CLASS, 0x00080052),
        (identifier(StudyInstanceUID="1.2"), Status.DOES_NOT_MATCH_CLASS, 0x00080052),
        (identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID=""), Status.DOES_NOT_MATCH_CLASS, 0x0020000D),
        (identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID="*"), Status.DOES_NOT_MATCH_CLASS, 0x0020000D),
        (identifier(QueryRetrieveLevel="IMAGE", StudyInstanceUID="1.2"), Status.DOES_NOT_MATCH_CLASS, 0x00080018),
        (b"\x08\x00\x52\x00CS\xf0\x00ab", Status.CANNOT_UNDERSTAND, None),
    ],
)
def test_an_identifier_that_asks_for_nothing_is_refused(
    server: Running, keys: bytes, status: Status, offending: int | None
) -> None:
    with Getter(server) as peer:
        peer.associate(GETTER)
        _, [response] = peer.get(keys)
        assert (response.Status, response.get("OffendingElement")) == (status, offending)
        assert peer.echoes()


@pytest.mark.req("REQ-DCM-46")
def test_a_peer_that_may_not_retrieve_is_told_and_audited(settings: Settings) -> None:
    with running(settings, peers={"TESTER": {"may": ["store"]}}) as server, Getter(server) as peer:
        peer.associate(GETTER)
        _, [response] = peer.get(identifier())
        assert response.Status == Status.NOT_AUTHORISED
        [row] = [row for row in server.audit_rows() if row.outcome]
        assert (row.event, row.action, row.user) == (Event.INSTANCES_TRANSFERRED, "R", "TESTER")


@pytest.mark.req("REQ-DCM-38")
def test_a_cancel_stops_a_get_and_says_what_was_left(server: Running) -> None:
    keep(server.archive, *(ct_slice(number=number) for number in range(1, 6)))
    with Getter(server) as peer:
        peer.associate(GETTER)
        peer.ask(7, Field.C_GET_RQ, identifier())
        context, command, _ = peer.message()
        peer.say(wire.command(7, cancel()) + wire.command(context, stored(command, 0)))
        came, responses = peer.collect()
        assert peer.echoes()
    assert came == {}
    assert (responses[-1].Status, counts(responses[-1])) == (Status.CANCELLED, (4, 1, 0, 0))


def test_another_request_during_a_get_aborts(server: Running) -> None:
    """The asynchronous window is one operation."""
    keep(server.archive, ct_slice())
    with Getter(server) as peer:
        peer.associate(GETTER)
        peer.ask(7, Field.C_GET_RQ, identifier())
        peer.message()
        peer.say(wire.command(1, dimse.echo_request(9)))
        assert peer.hear()[0] == 7


@pytest.mark.req("REQ-DCM-39")
def test_a_copy_that_is_missing_or_short_fails_alone(server: Running) -> None:
    slices = keep(server.archive, *(ct_slice(number=number) for number in (1, 2, 3)))
    paths = {path.read_bytes()[-400:]: path for path in Path(server.archive.hot.root).glob("*/*/*/*/*.dcm")}
    paths[data_set(slices[0])[-400:]].unlink()
    os.truncate(paths[data_set(slices[1])[-400:]], 700)
    with Getter(server) as peer:
        peer.associate(GETTER)
        came, responses = peer.get(identifier())
    assert list(came) == [slices[2].SOPInstanceUID]
    assert (responses[-1].Status, counts(responses[-1])) == (Status.WARNING, (None, 1, 2, 0))
    assert list(responses[-1].identifier.FailedSOPInstanceUIDList) == [ds.SOPInstanceUID for ds in slices[:2]]


def test_the_opening_row_stands_before_the_first_byte_and_the_closing_one_counts(server: Running) -> None:
    """Law 4."""
    keep(server.archive, ct_slice(number=1), ct_slice(number=2))
    before = len(server.audit_rows())
    with Getter(server) as peer:
        peer.associate(GETTER)
        peer.ask(7, Field.C_GET_RQ, identifier())
        context, command, _ = peer.message()
        [row] = server.audit_rows()[before:]
        assert (row.event, row.action, row.study, row.user) == (Event.INSTANCES_TRANSFERRED, "R", STUDY, "TESTER")
        peer.say(wire.command(context, stored(command, 0)))
        peer.collect()
    server.stop()
    server.archive.accesses.close()
    closing = json.loads(server.audit_rows()[-1].detail)
    assert (closing["phase"], closing["instances"]) == ("close", 2)


@pytest.mark.req("REQ-DCM-06", "REQ-DCM-39", "REQ-DCM-70")
def test_getscu_brings_a_study_back_byte_for_byte(server: Running, tmp_path: Path) -> None:
    need("getscu")
    slices = write_study(server)
    folder = tmp_path / "got"
    folder.mkdir()
    with server.port_in_clear() as port:
        done = subprocess.run(
            ["getscu", "-S", "+B", "-od", str(folder), "-aec", "MINIPACS",
             "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={STUDY}", "127.0.0.1", str(port)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert bodies(folder) == {ds.SOPInstanceUID: data_set(ds) for ds in slices}
