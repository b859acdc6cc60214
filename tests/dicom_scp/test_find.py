"""C-FIND: what is asked of whom, what every answer has, and how it ends; then the same with real clients."""

from __future__ import annotations

import base64
import json
import re
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pynetdicom import AE
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from sqlalchemy import event, select

from archive.access import Actor, Door
from archive.audit.record import Event
from archive.clock import monotonic
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import InvalidQuery, NotAllowed, UnreadableInstance
from archive.schema import audit
from dicom_scp.dimse import Field
from dicom_scp.find import PATIENT_ROOT_FIND, STUDY_ROOT_FIND, find
from dicom_scp.messages import Answer, FindRequest
from dicom_scp.status import Status
from tests.archive.index.filling import fill, study
from tests.builders import new_uid
from tests.conftest import need
from tests.dicom_scp import wire
from tests.dicom_scp.conftest import Running
from tests.dicom_scp.retrieving import Getter, cancel, retrieve_command
from tests.dicom_scp.test_find_encoding import EXPLICIT, IMPLICIT, encoded, read

OVER_TLS = "server"


@pytest.fixture
def filled(archive: Archive, actor: Actor) -> Archive:
    return filling(archive, actor)


def filling(archive: Archive, actor: Actor) -> Archive:
    """Study A: a CT series of three with a request, an MR series of one; study B."""
    step = Dataset()
    step.ScheduledProcedureStepID, step.RequestedProcedureID = "SPS1", "RP1"
    step.ScheduledProcedureStepDescription = "Thorax"
    a = {"PatientName": "LEFÈVRE^Anaïs", "StudyDate": "20260105", "StudyTime": "233000", "AccessionNumber": "ACC1"}
    for number in (1, 2, 3):
        ds = study("A", **a, SOPInstanceUID=new_uid("A", "1", str(number)), InstanceNumber=number, NumberOfFrames=1)
        ds.RequestAttributesSequence = Sequence([step])
        fill(archive, actor, ds)
    second = {"SeriesInstanceUID": new_uid("A", "2"), "SOPInstanceUID": new_uid("A", "2", "1")}
    fill(
        archive,
        actor,
        study("A", **a, **second, Modality="MR", SeriesNumber=2),
        study("B", StudyDate="20260107", PatientName="MARTIN^Luc", TimezoneOffsetFromUTC="+0200"),
    )
    return archive


def identifier(level: str, **keys: Any) -> Dataset:
    ds = Dataset()
    ds.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    return ds


def asked(archive: Archive, actor: Actor, ds: Dataset, root: str = STUDY_ROOT_FIND, **changes: Any) -> list[Answer]:
    request = FindRequest(root, encoded(ds, EXPLICIT), EXPLICIT, relational=False, combined_datetime=False, actor=actor)
    return list(find(request._replace(**changes), archive))


def with_value(data: bytes, key: str, value: str) -> bytes:
    """An identifier in explicit little endian with this value in an element that is empty, legal or not."""
    tag = tag_for_keyword(key) or 0
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, dictionary_VR(key).encode())
    assert data.count(head + b"\0\0") == 1
    raw = value.encode() + b" " * (len(value) % 2)
    return data.replace(head + b"\0\0", head + struct.pack("<H", len(raw)) + raw)


def found(answers: list[Answer]) -> list[Dataset]:
    """The data sets of the pending answers; the last must be success."""
    assert answers[-1] == Answer(Status.SUCCESS)
    return [read(answer.data_set or b"", EXPLICIT) for answer in answers[:-1]]


@pytest.mark.req("REQ-DCM-30", "REQ-DCM-31")
def test_an_answer_has_what_was_asked_and_what_always_belongs_to_it(filled: Archive, actor: Actor) -> None:
    ds = identifier(
        "STUDY", PatientID="A", PatientName=None, StudyDate=None, StudyDescription=None, StudyID=None,
        NameOfPhysiciansReadingStudy=None, ModalitiesInStudy=None, NumberOfStudyRelatedSeries=None,
        NumberOfStudyRelatedInstances=None, SOPClassesInStudy=None, PatientWeight=None, StudyInstanceUID=None,
        NumberOfPatientRelatedStudies=None, IssuerOfPatientID=None, SpecificCharacterSet="ISO_IR 100",
    )  # fmt: skip
    answers = asked(filled, actor, ds)
    assert [answer.status for answer in answers] == [Status.PENDING, Status.SUCCESS]
    (answer,) = found(answers)
    assert answer.SpecificCharacterSet == "ISO_IR 100"
    assert answer.QueryRetrieveLevel == "STUDY"
    assert answer.RetrieveAETitle == "MINIPACS"
    assert answer.InstanceAvailability == "ONLINE"
    assert answer.PatientName == "LEFÈVRE^Anaïs"
    assert (answer.StudyDate, answer.StudyID, answer.StudyInstanceUID) == ("20260105", "S1", new_uid("A"))
    assert answer.ModalitiesInStudy == ["CT", "MR"]
    assert (answer.NumberOfStudyRelatedSeries, answer.NumberOfStudyRelatedInstances) == (2, 4)
    assert answer.NumberOfPatientRelatedStudies == 1
    for keyword in ("NameOfPhysiciansReadingStudy", "PatientWeight", "IssuerOfPatientID"):
        assert keyword in answer  # supported, without a value: zero-length
        assert not answer[keyword].value
    assert "PatientSex" not in answer  # not asked
    assert [element.tag for element in answer] == sorted(element.tag for element in answer)


@pytest.mark.req("REQ-DCM-30")
def test_what_is_not_supported_is_left_out_and_said_with_ff01(filled: Archive, actor: Actor) -> None:
    ds = identifier("STUDY", PatientID="A", StudyInstanceUID=None)
    ds.add_new(0x00091010, "LO", "private")
    answers = asked(filled, actor, ds)
    assert [answer.status for answer in answers] == [Status.PENDING_WITHOUT_KEYS, Status.SUCCESS]
    assert b"\x09\x00\x10\x10" not in (answers[0].data_set or b"")
    for keyword, value in (("Modality", "MR"), ("SeriesInstanceUID", ""), ("NumberOfStudyRelatedInstances", "7")):
        answers = asked(filled, actor, identifier("STUDY", PatientID="A", **{keyword: value}))
        assert [answer.status for answer in answers] == [Status.PENDING_WITHOUT_KEYS, Status.SUCCESS], keyword
    known = identifier("IMAGE", StudyInstanceUID=new_uid("A"), AlternateRepresentationSequence=Sequence())
    answers = asked(filled, actor, known)
    assert {answer.status for answer in answers[:-1]} == {Status.PENDING}
    assert not found(answers)[0].AlternateRepresentationSequence


@pytest.mark.req("REQ-DCM-31", "REQ-DCM-45")
def test_the_time_zone_goes_with_the_times(filled: Archive, actor: Actor) -> None:
    (answer,) = found(asked(filled, actor, identifier("STUDY", PatientID="B", StudyTime=None)))
    assert answer.TimezoneOffsetFromUTC == "+0200"
    (answer,) = found(asked(filled, actor, identifier("STUDY", PatientID="A", StudyTime=None)))
    assert "TimezoneOffsetFromUTC" not in answer
    assert answer.StudyTime == "233000"


@pytest.mark.req("REQ-DCM-36")
def test_the_query_of_the_national_drimbox_is_answered(filled: Archive, actor: Actor) -> None:
    """Study Root, IMAGE, no relational negotiation: one Study UID, `*` for the UIDs below, keys of three levels."""
    ds = identifier(
        "IMAGE", StudyInstanceUID=new_uid("A"), SeriesInstanceUID="*", SOPInstanceUID="*", Modality="*",
        StudyDate=None, AccessionNumber=None, PatientID=None, SeriesNumber=None, InstanceNumber=None,
        NumberOfFrames=None, SOPClassUID=None, StudyDescription=None, SeriesDescription=None,
    )  # fmt: skip
    answers = asked(filled, actor, ds)
    assert {answer.status for answer in answers[:-1]} == {Status.PENDING}
    images = found(answers)
    assert [(image.SeriesNumber, image.InstanceNumber) for image in images] == [(1, 1), (1, 2), (1, 3), (2, 1)]
    for image in images:
        assert (image.StudyDate, image.AccessionNumber, image.PatientID) == ("20260105", "ACC1", "A")
    assert [image.NumberOfFrames for image in images] == [1, 1, 1, None]
    assert {image.Modality for image in images} == {"CT", "MR"}
    del ds.SeriesInstanceUID  # absent: as in a relational query
    assert len(found(asked(filled, actor, ds))) == 4


@pytest.mark.req("REQ-DRIM-01", "REQ-DCM-36")
def test_the_query_of_the_national_drimbox_gets_each_value_it_asks_for(archive: Archive, actor: Actor) -> None:
    """Study Root, IMAGE, by the Study UID alone: each image comes with the values of all three levels."""
    of_study = {
        "StudyDate": "20260105", "StudyTime": "233000", "StudyDescription": "SCANNER THORAX", "StudyID": "EX1",
        "ReferringPhysicianName": "MARTIN^Luc", "AccessionNumber": "ACC1", "PatientID": "IPP1",
    }  # fmt: skip
    series = {"SeriesDescription": "AXIAL", "SeriesNumber": 1, "Modality": "CT"}
    made = [
        study("A", **of_study, **series, SOPInstanceUID=new_uid("A", "1", str(number)), InstanceNumber=number, **frames)
        for number, frames in ((1, {}), (2, {"NumberOfFrames": 1}))
    ]
    fill(archive, actor, *made, study("B"))
    asks = dict.fromkeys((*of_study, *series, "InstanceNumber", "NumberOfFrames", "SOPClassUID"))
    ds = identifier("IMAGE", **{**asks, "StudyInstanceUID": new_uid("A"), "SeriesInstanceUID": "*"}, SOPInstanceUID="*")
    answers = asked(archive, actor, ds)
    assert {answer.status for answer in answers[:-1]} == {Status.PENDING}
    images = found(answers)
    assert [image.NumberOfFrames for image in images] == [None, 1]
    uids = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"]
    names = [*of_study, *series, *uids, "InstanceNumber"]
    for image, sent in zip(images, made, strict=True):
        assert {name: image[name].value for name in names} == {name: sent[name].value for name in names}


LEVELS: list[tuple[str, str, dict[str, str], int | None]] = [
    (STUDY_ROOT_FIND, "SERIES", {}, 0x0020000D),
    (STUDY_ROOT_FIND, "SERIES", {"StudyInstanceUID": "*"}, 0x0020000D),
    (STUDY_ROOT_FIND, "IMAGE", {"SeriesInstanceUID": new_uid("A", "1")}, 0x0020000D),
    (STUDY_ROOT_FIND, "SERIES", {"StudyInstanceUID": new_uid("A")}, None),
    (PATIENT_ROOT_FIND, "STUDY", {}, 0x00100020),
    (PATIENT_ROOT_FIND, "STUDY", {"PatientID": "A"}, None),
    (PATIENT_ROOT_FIND, "PATIENT", {}, None),
    (STUDY_ROOT_FIND, "PATIENT", {}, 0x00080052),
    (STUDY_ROOT_FIND, "FRAME", {}, 0x00080052),
    (STUDY_ROOT_FIND, "", {}, 0x00080052),
]


@pytest.mark.req("REQ-DCM-36")
@pytest.mark.parametrize(("root", "level", "keys", "offending"), LEVELS)
def test_the_unique_keys_above_the_level_are_required_unless_relational(
    filled: Archive, actor: Actor, root: str, level: str, keys: dict[str, str], offending: int | None
) -> None:
    ds = identifier(level, **keys)
    if offending is None:
        assert found(asked(filled, actor, ds, root))
        return
    with pytest.raises(InvalidQuery) as refused:
        asked(filled, actor, ds, root)
    assert refused.value.tag == offending
    if offending != 0x00080052:
        assert found(asked(filled, actor, ds, root, relational=True))


@pytest.mark.req("REQ-DCM-36")
def test_the_hierarchy_is_strict_only_when_a_site_says_so(settings: Settings, actor: Actor) -> None:
    strict = settings.model_copy(update={"dicom": settings.dicom.model_copy(update={"strict_hierarchy": True})})
    with open_archive(strict, process="test") as archive:
        filling(archive, actor)
        uid = new_uid("A")
        full = {"StudyInstanceUID": uid, "SeriesInstanceUID": new_uid("A", "1")}
        assert len(found(asked(archive, actor, identifier("IMAGE", **full)))) == 3
        for keys, offending in (
            ({"StudyInstanceUID": uid}, 0x0020000E),
            ({"StudyInstanceUID": uid, "SeriesInstanceUID": "*"}, 0x0020000E),
            ({**full, "StudyInstanceUID": [uid, "1.2"]}, 0x0020000D),
        ):
            with pytest.raises(InvalidQuery) as refused:
                asked(archive, actor, identifier("IMAGE", **keys))
            assert refused.value.tag == offending
            assert asked(archive, actor, identifier("IMAGE", **keys), relational=True)


@pytest.mark.req("REQ-DCM-30", "REQ-DCM-32")
def test_a_sequence_is_matched_and_gives_back_what_was_asked_of_its_items(filled: Archive, actor: Actor) -> None:
    def series(**item_keys: str) -> list[Dataset]:
        item = Dataset()
        for keyword, text in item_keys.items():
            setattr(item, keyword, text)
        ds = identifier("SERIES", StudyInstanceUID=new_uid("A"), SeriesNumber=None)
        ds.RequestAttributesSequence = Sequence([item])
        return found(asked(filled, actor, ds))

    (one,) = series(ScheduledProcedureStepID="SPS1", RequestedProcedureID="")
    (item,) = one.RequestAttributesSequence
    assert [element.keyword for element in item] == ["ScheduledProcedureStepID", "RequestedProcedureID"]
    assert item.RequestedProcedureID == "RP1"
    assert series(ScheduledProcedureStepID="SPS2") == []
    both = series()  # an empty item matches everything and asks for all
    assert len(both) == 2
    assert both[0].RequestAttributesSequence[0].ScheduledProcedureStepDescription == "Thorax"
    assert len(both[1].RequestAttributesSequence) == 0


@pytest.mark.req("REQ-DCM-35")
def test_combined_date_and_time_only_when_negotiated(filled: Archive, actor: Actor) -> None:
    ds = identifier("STUDY", StudyDate="20260105-20260107", StudyTime="2200-2300", StudyInstanceUID=None)
    assert found(asked(filled, actor, ds)) == []
    combined = found(asked(filled, actor, ds, combined_datetime=True))
    assert [answer.StudyInstanceUID for answer in combined] == [new_uid("B"), new_uid("A")]


@pytest.mark.req("REQ-DCM-34")
@pytest.mark.parametrize(
    ("level", "key", "value", "expected"),
    [
        ("STUDY", "StudyDate", '""', ["C"]),
        ("STUDY", "AccessionNumber", '""', ["C"]),
        ("STUDY", "PatientWeight", '""', ["B", "A", "C"]),  # no column: row by row
        ("STUDY", "PatientName", '""', []),
        ("STUDY", "ModalitiesInStudy", "CT\\MR", ["A"]),  # both
        ("STUDY", "ModalitiesInStudy", "CT\\US", []),
        ("STUDY", "NameOfPhysiciansReadingStudy", "martin^luc\\roy^eve", ["C"]),  # no column: row by row
        ("IMAGE", "ImageType", "PRIMARY\\ORIGINAL\\LOCALIZER", ["C"]),
        ("SERIES", "Modality", "CT\\MR", []),  # one value alone is there
    ],
)
def test_empty_and_several_values_are_matched_when_negotiated(
    filled: Archive, actor: Actor, level: str, key: str, value: str, expected: list[str]
) -> None:
    several = {
        "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
        "NameOfPhysiciansReadingStudy": ["ROY^Ève", "MARTIN^Luc", "DUPONT^Jean"],
    }
    without = {"StudyDate": None, "StudyTime": None, "AccessionNumber": "", "SeriesNumber": None}
    fill(filled, actor, study("C", **without, **several))
    ds = identifier(level, StudyInstanceUID=None, PatientID=None)
    setattr(ds, key, None)
    data = with_value(encoded(ds, EXPLICIT), key, value)
    asking = {"identifier": data, "relational": True, "empty_values": True, "multiple_values": True}
    assert [answer.PatientID for answer in found(asked(filled, actor, ds, **asking))] == expected
    with suppress(InvalidQuery):  # otherwise it is a value like any other, or none of its VR
        plain = found(asked(filled, actor, ds, identifier=data, relational=True))
        assert [answer.PatientID for answer in plain] != expected or not expected


@pytest.mark.req("REQ-DCM-44", "REQ-DCM-34")
def test_of_several_modalities_any_will_do_unless_multiple_value_matching_was_negotiated(
    filled: Archive, actor: Actor
) -> None:
    ds = identifier("STUDY", PatientID=None, ModalitiesInStudy=["CT", "MR"])
    assert [answer.PatientID for answer in found(asked(filled, actor, ds))] == ["B", "A"]
    assert [answer.PatientID for answer in found(asked(filled, actor, ds, multiple_values=True))] == ["A"]


@pytest.mark.req("REQ-DCM-34")
def test_the_zone_of_the_request_counts_only_when_that_was_negotiated(filled: Archive, actor: Actor) -> None:
    """B says +0200, 10:15 on the 7th: 17:15 in +0900."""
    ds = identifier("STUDY", PatientID="B", StudyTime="1700-1800", TimezoneOffsetFromUTC="+0900")
    assert found(asked(filled, actor, ds)) == []
    (answer,) = found(asked(filled, actor, ds, timezone=True))
    assert (answer.StudyTime, answer.TimezoneOffsetFromUTC) == ("171500", "+0900")
    ds.TimezoneOffsetFromUTC = "Paris"
    with pytest.raises(InvalidQuery) as refused:
        asked(filled, actor, ds, timezone=True)
    assert refused.value.tag == 0x00080201
    ds.TimezoneOffsetFromUTC = None
    assert found(asked(filled, actor, ds, timezone=True)) == []  # as the images say


@pytest.mark.req("REQ-DCM-38")
def test_more_matches_than_the_limit_end_with_a700(settings: Settings, actor: Actor) -> None:
    few = settings.model_copy(update={"dicom": settings.dicom.model_copy(update={"find_limit": 3})})
    with open_archive(few, process="test") as archive:
        filling(archive, actor)
        ds = identifier("IMAGE", StudyInstanceUID=new_uid("A"))
        answers = asked(archive, actor, ds)
        assert [answer.status for answer in answers] == [Status.PENDING] * 3 + [Status.OUT_OF_RESOURCES]
        assert "3" in answers[-1].comment
        ds.SeriesInstanceUID = new_uid("A", "1")  # exactly as many as the limit
        assert len(found(asked(archive, actor, ds))) == 3


@pytest.mark.req("REQ-DCM-38")
def test_an_identifier_that_is_wrong_is_refused_with_its_element(filled: Archive, actor: Actor) -> None:
    with pytest.raises(InvalidQuery) as refused:
        asked(filled, actor, identifier("STUDY", StudyDate="hier"))
    assert refused.value.tag == 0x00080020
    with pytest.raises(UnreadableInstance):
        asked(filled, actor, identifier("STUDY"), identifier=b"\x08\0\x52\0CS\xff\xffSTUDY")


def test_an_abandoned_query_gives_its_connection_back(filled: Archive, actor: Actor) -> None:
    ds = identifier("IMAGE", StudyInstanceUID=new_uid("A"))
    request = FindRequest(STUDY_ROOT_FIND, encoded(ds, EXPLICIT), EXPLICIT, False, False, actor)
    for _ in range(100):  # more than the pool has
        answers: Iterator[Answer] = find(request, filled)
        next(answers)
        del answers
    assert filled.engine.pool.checkedout() <= 1  # type: ignore[attr-defined] - the writer's


def audited(archive: Archive, *, seconds: float = 5) -> list[Any]:
    """The rows of queries; waits for those that nobody awaits."""
    until = monotonic() + seconds
    while True:
        with archive.engine.connect() as conn:
            rows = conn.execute(select(audit).where(audit.c.event == Event.QUERY).order_by(audit.c.seq)).all()
        if rows or monotonic() > until:
            return list(rows)


def test_a_query_is_audited_with_what_was_asked_and_nothing_of_the_answers(filled: Archive, actor: Actor) -> None:
    ds = identifier("STUDY", PatientName="LEFEVRE^*", StudyInstanceUID=None)
    order: list[str] = []
    event.listen(filled.engine, "before_cursor_execute", lambda c, cur, text, *rest: order.append(text.split()[0]))
    assert len(found(asked(filled, actor, ds))) == 1
    (row,) = audited(filled)
    assert (row.action, row.outcome, row.user, row.source) == ("E", 0, "tester", "127.0.0.1")
    detail = json.loads(row.detail)
    assert base64.b64decode(detail["query"]) == encoded(ds, EXPLICIT)
    assert detail["sop_class"] == STUDY_ROOT_FIND
    assert new_uid("A") not in row.detail


def test_a_refused_query_is_audited_before_it_is_refused(filled: Archive) -> None:
    stranger = Actor("CT1", "10.0.0.7", Door.DICOM, may=frozenset())
    with pytest.raises(NotAllowed):
        asked(filled, stranger, identifier("STUDY"))
    (row,) = audited(filled, seconds=0)
    assert (row.user, row.outcome) == ("CT1", 8)


def test_a_wrong_query_is_audited_as_failed(filled: Archive, actor: Actor) -> None:
    with pytest.raises(InvalidQuery):
        asked(filled, actor, identifier("SERIES"))
    assert [row.outcome for row in audited(filled)] == [4]


# -- real clients -------------------------------------------------------------------------------------------------


def associated(server: Running, *, relational: bool = False, combined: bool = False) -> Any:
    ae = AE("TESTER")
    ae.add_requested_context(STUDY_ROOT_FIND, [IMPLICIT])
    ae.add_requested_context(PATIENT_ROOT_FIND, [EXPLICIT])
    item = SOPClassExtendedNegotiation()
    item.sop_class_uid = STUDY_ROOT_FIND
    item.service_class_application_information = bytes([relational, combined])
    assoc = ae.associate("127.0.0.1", server.port, ae_title="MINIPACS", ext_neg=[item], tls_args=server.tls_args)
    assert assoc.is_established
    return assoc


@pytest.mark.req("REQ-DCM-34", "REQ-DCM-35", "REQ-DCM-36")
def test_pynetdicom_finds_at_every_level_and_negotiates(server: Running, actor: Actor) -> None:
    filling(server.archive, actor)
    assoc = associated(server, relational=True, combined=True)
    try:
        assert assoc.acceptor.sop_class_extended[STUDY_ROOT_FIND] == b"\1\1"

        def statuses(ds: Dataset, root: str = STUDY_ROOT_FIND) -> list[int]:
            return [status.Status for status, _ in assoc.send_c_find(ds, root)]

        assert statuses(identifier("PATIENT", PatientID="*"), PATIENT_ROOT_FIND) == [0xFF00, 0xFF00, 0]
        assert statuses(identifier("STUDY", StudyDate="20260105-")) == [0xFF00, 0xFF00, 0]
        assert statuses(identifier("SERIES", Modality="MR")) == [0xFF00, 0]  # relational
        assert statuses(identifier("IMAGE", InstanceNumber="2")) == [0xFF00, 0]
        night = identifier("STUDY", StudyDate="20260105-20260106", StudyTime="2300-0100")
        assert statuses(night) == [0xFF00, 0]  # one interval over midnight
        ds = identifier("STUDY", PatientName="lefevre*", SpecificCharacterSet="ISO_IR 192")
        (_, answer), _ = assoc.send_c_find(ds, STUDY_ROOT_FIND)
        assert answer.PatientName == "LEFÈVRE^Anaïs"
    finally:
        assoc.release()


@pytest.mark.req("REQ-DCM-38")
def test_a_wrong_query_ends_with_a900_comment_and_offending_element_on_the_wire(server: Running, actor: Actor) -> None:
    filling(server.archive, actor)
    assoc = associated(server)
    try:
        ((status, _),) = assoc.send_c_find(identifier("SERIES", Modality="MR"), STUDY_ROOT_FIND)
        assert status.Status == 0xA900
        assert status.OffendingElement == 0x0020000D
        assert "unique key" in status.ErrorComment
        ((status, _),) = assoc.send_c_find(identifier("STUDY", PatientID="nobody"), STUDY_ROOT_FIND)
        assert status.Status == 0  # the association lives
    finally:
        assoc.release()


@pytest.mark.req("REQ-DCM-30", "REQ-DCM-33")
@pytest.mark.parametrize("syntax", ["-xi", "-xe", "-xb"])
def test_findscu_of_dcmtk_finds(server: Running, actor: Actor, syntax: str) -> None:
    need("findscu")
    filling(server.archive, actor)
    command = [
        "findscu", "-v", "-S", syntax, "-aec", "MINIPACS", *server.options(), "127.0.0.1", str(server.port), "-k",
        "QueryRetrieveLevel=STUDY", "-k", "PatientName=lefevre^*", "-k", "StudyInstanceUID", "-k",
        "NumberOfStudyRelatedInstances", "-k", "0008,0005=ISO_IR 100",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    text = (done.stdout + done.stderr).decode("latin_1")
    assert text.count("(Pending)") == 1, text
    assert "LEFÈVRE^Anaïs" in text
    assert re.search(r"NumberOfStudyRelatedInstances", text)
    assert new_uid("A") in text


@pytest.mark.req("REQ-DCM-38")
def test_a_cancel_ends_the_query_and_not_the_association(server: Running, actor: Actor) -> None:
    filling(server.archive, actor)
    with Getter(server) as peer:
        peer.associate()
        keys = encoded(identifier("IMAGE", StudyInstanceUID=new_uid("A")), IMPLICIT)
        request = retrieve_command(Field.C_FIND_RQ, STUDY_ROOT_FIND)
        peer.say(wire.command(5, request) + wire.data_set(5, keys) + wire.command(5, cancel()))
        statuses = []
        while not statuses or statuses[-1] in (Status.PENDING, Status.PENDING_WITHOUT_KEYS):
            statuses.append(peer.message()[1].status)
        assert statuses[-1] == Status.CANCELLED
        assert len(statuses) < 5  # four matches there are
        assert peer.echoes()


def test_a_request_that_is_remembered_is_still_answered_from_the_index_as_it_is(archive: Archive, actor: Actor) -> None:
    """And by whom and under which agreements it is asked: the same bytes may mean something else."""
    ds = identifier(
        "STUDY", PatientID="*", StudyDate="20300101-20300102", StudyTime="120000-130000", StudyInstanceUID=None
    )
    assert len(asked(archive, actor, ds)) == 1
    fill(archive, actor, study("R", StudyDate="20300102", StudyTime="090000"))
    assert [one.status for one in asked(archive, actor, ds)] == [0]
    assert [one.status for one in asked(archive, actor, ds, combined_datetime=True)] == [0xFF00, 0]
    assert [one.status for one in asked(archive, actor, ds)] == [0]
    with pytest.raises(NotAllowed):
        asked(archive, replace(actor, may=frozenset()), ds, combined_datetime=True)


def test_what_was_asked_is_audited_each_time(archive: Archive, actor: Actor) -> None:
    ds = identifier("STUDY", PatientID="nobody", StudyInstanceUID=None)
    for number in range(3):
        assert [one.status for one in asked(archive, actor, ds)] == [0], number
    archive.commit.run(lambda conn: None)
    with archive.reading() as conn:
        rows = conn.execute(select(audit.c.detail).where(audit.c.event == str(Event.QUERY))).all()
    assert len(rows) == 3
