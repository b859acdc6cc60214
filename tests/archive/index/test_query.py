"""Queries on real rows, both databases: what is found, what is computed, what is not seen, in which order."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from sqlalchemy import update

from archive.access import Actor
from archive.core import Archive
from archive.dicom.attributes import Level
from archive.errors import IndexUnavailable, InvalidQuery
from archive.index.query import Query, count, find
from archive.index.zones import zone_of
from archive.instance import CopyState, State
from archive.schema import instance, location
from archive.schema.prepared import Prepared
from tests.archive.index.filling import ask, fill, key, names, study, tag, value
from tests.builders import new_uid

P, ST, SE, IM = Level.PATIENT, Level.STUDY, Level.SERIES, Level.IMAGE
MR = "1.2.840.10008.5.1.4.1.1.4"


@pytest.fixture
def three(archive: Archive, actor: Actor) -> Archive:
    """Three studies of three days: A (CT and MR, 3 instances), B, C."""
    fill(
        archive,
        actor,
        study("A", StudyDate="20260105", StudyTime="093000", PatientName="LEFÈVRE^Anaïs", AccessionNumber="ACC_1"),
        study("A", StudyDate="20260105", StudyTime="093000", SOPInstanceUID=new_uid("A", "1", "2"), InstanceNumber=2),
        study(
            "A", SeriesInstanceUID=new_uid("A", "2"), SOPInstanceUID=new_uid("A", "2", "1"), Modality="MR",
            SOPClassUID=MR, SeriesNumber=2,
        ),
        study("B", StudyDate="20260106", StudyTime="1400", PatientName="Martin-Dupont^Zoé", AccessionNumber="ACC%1"),
        study("C", StudyDate="20260107", StudyTime="200000.5", PatientName="MARTIN^Luc", AccessionNumber="ACCX1"),
    )  # fmt: skip
    return archive


@pytest.mark.req("REQ-DCM-32", "REQ-DCM-33")
def test_every_kind_of_matching_is_done_by_the_database(three: Archive) -> None:
    def found(keyword: str, text: str) -> list[str]:
        return names(ask(three, ST, key(keyword, text)))

    assert found("PatientID", "A") == ["A"]
    assert found("PatientID", "a") == []
    assert found("StudyInstanceUID", f"{new_uid('A')}\\{new_uid('C')}") == ["C", "A"]
    assert found("StudyInstanceUID", "*") == ["C", "B", "A"]
    assert found("PatientName", "lefevre^*") == ["A"]
    assert found("PatientName", "LEFEVRE^ANAIS") == ["A"]
    assert found("PatientName", "MARTIN*") == ["C", "B"]
    assert found("PatientName", "MARTIN^*") == ["C"]
    assert found("PatientName", "*Zoe") == ["B"]
    assert found("PatientName", "?artin*") == ["C", "B"]
    assert found("AccessionNumber", "ACC_1") == ["A"]
    assert found("AccessionNumber", "ACC_*") == ["A"]
    assert found("AccessionNumber", "ACC%*") == ["B"]
    assert found("AccessionNumber", "ACC?1") == ["C", "B", "A"]
    assert found("AccessionNumber", "*1") == ["C", "B", "A"]
    assert found("AccessionNumber", "*_1") == ["A"]
    assert found("AccessionNumber", "*%1") == ["B"]
    assert found("AccessionNumber", "*!_1") == []
    assert found("StudyDate", "20260106") == ["B"]
    assert found("StudyDate", "20260106-") == ["C", "B"]
    assert found("StudyDate", "-20260106") == ["B", "A"]
    assert found("StudyDate", "20260105-20260106") == ["B", "A"]
    assert found("StudyTime", "140000") == ["B"]
    assert found("StudyTime", "0900-1400") == ["B", "A"]
    assert found("ReferringPhysicianName", "lefevre^anais") == ["C", "B", "A"]


@pytest.mark.req("REQ-DCM-35")
def test_date_and_time_are_daily_windows_or_when_negotiated_one_interval(three: Archive) -> None:
    keys = (key("StudyDate", "20260105-20260107"), key("StudyTime", "1000-1800"))
    assert names(ask(three, ST, *keys)) == ["B"]
    assert names(ask(three, ST, *keys, combined_datetime=True)) == ["B"]  # A is before 10, C after 18 o'clock
    keys = (key("StudyDate", "20260105-20260107"), key("StudyTime", "1800-1000"))
    assert names(ask(three, ST, *keys)) == []
    assert names(ask(three, ST, *keys, combined_datetime=True)) == ["B"]
    keys = (key("StudyDate", "20260105-20260107"), key("StudyTime", "0930-2001"))
    assert names(ask(three, ST, *keys, combined_datetime=True)) == ["C", "B", "A"]
    keys = (key("StudyDate", "20260106-"), key("StudyTime", "1500-"))
    assert names(ask(three, ST, *keys, combined_datetime=True)) == ["C"]
    assert names(ask(three, ST, key("StudyDate", "20260106"), key("StudyTime", "*"), combined_datetime=True)) == ["B"]


@pytest.mark.req("REQ-DCM-44")
def test_modalities_in_study_match_any_and_are_listed(three: Archive) -> None:
    want = ("StudyDescription", "ModalitiesInStudy", "SOPClassesInStudy")
    (row,) = ask(three, ST, key("ModalitiesInStudy", "MR"), want=want)
    assert value(row, "StudyDescription") == "A"
    assert row["00080061"]["Value"] == ["CT", "MR"]
    assert MR in row["00080062"]["Value"]
    assert names(ask(three, ST, key("ModalitiesInStudy", "MR\\CT"))) == ["C", "B", "A"]
    assert names(ask(three, ST, key("ModalitiesInStudy", "M*"))) == ["A"]
    assert names(ask(three, ST, key("ModalitiesInStudy", "*"))) == ["C", "B", "A"]
    assert names(ask(three, ST, key("ModalitiesInStudy", "US"))) == []
    assert names(ask(three, ST, key("SOPClassesInStudy", MR))) == ["A"]
    assert len(ask(three, SE, key("ModalitiesInStudy", "MR"))) == 2  # the series of that study


@pytest.mark.req("REQ-DCM-42")
def test_only_current_instances_are_counted_and_seen(three: Archive) -> None:
    want = (
        "StudyDescription", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances", "ModalitiesInStudy",
        "NumberOfPatientRelatedStudies", "NumberOfPatientRelatedSeries", "NumberOfPatientRelatedInstances",
    )  # fmt: skip

    def counts() -> list[tuple[object, ...]]:
        return [tuple(value(row, name) for name in (*want[1:3], *want[4:])) for row in ask(three, ST, want=want)]

    assert counts() == [(1, 1, 1, 1, 1), (1, 1, 1, 1, 1), (2, 3, 1, 2, 3)]
    held = update(instance).values(state=State.HELD)
    hide = [new_uid("A", "2", "1"), new_uid("B", "1", "1")]
    three.commit.run(lambda conn: conn.execute(held.where(instance.c.sop_instance_uid.in_(hide))))
    assert counts() == [(1, 1, 1, 1, 1), (1, 2, 1, 1, 2)]
    assert names(ask(three, ST)) == ["C", "A"]
    assert [value(row, "ModalitiesInStudy") for row in ask(three, ST, want=want)] == ["CT", "CT"]
    assert len(ask(three, P, want=("PatientID",))) == 2
    assert len(ask(three, SE)) == 2
    assert len(ask(three, IM)) == 3
    assert ask(three, ST, key("ModalitiesInStudy", "MR")) == []
    assert ask(three, ST, key("PatientID", "B")) == []


@pytest.mark.req("REQ-DCM-31")
def test_availability_is_that_of_the_worst_instance_by_its_best_good_copy(three: Archive) -> None:
    def availability(level: Level) -> list[str]:
        return [value(row, "InstanceAvailability") for row in ask(three, level, want=("InstanceAvailability",))]

    assert set(availability(ST)) == {"ONLINE"}
    second = (
        update(location)
        .where(location.c.instance_pk == 2)  # the second instance of A
        .values(tier="cold")
    )
    three.commit.run(lambda conn: conn.execute(second))
    assert availability(ST) == ["ONLINE", "ONLINE", "NEARLINE"]
    three.commit.run(lambda conn: conn.execute(second.values(state=CopyState.DAMAGED)))
    assert availability(ST) == ["ONLINE", "ONLINE", "UNAVAILABLE"]
    assert availability(IM).count("UNAVAILABLE") == 1
    assert availability(SE).count("UNAVAILABLE") == 1
    assert availability(P).count("UNAVAILABLE") == 1


def test_rows_of_lower_levels_bring_what_the_levels_above_keep_and_count(three: Archive) -> None:
    want = (
        "PatientName", "StudyDate", "AccessionNumber", "SeriesNumber", "InstanceNumber", "AvailableTransferSyntaxUID",
        "NumberOfSeriesRelatedInstances", "NumberOfStudyRelatedInstances", "NumberOfPatientRelatedStudies",
    )  # fmt: skip
    rows = ask(three, IM, key("PatientID", "A"), want=want)
    assert [tuple(value(row, name) for name in want[2:5]) for row in rows] == [
        ("ACC_1", 1, 1),
        ("ACC_1", 1, 2),
        ("ACC_1", 2, 1),
    ]
    assert {tuple(value(row, name) for name in want[7:]) for row in rows} == {(3, 1)}
    assert [value(row, "NumberOfSeriesRelatedInstances") for row in rows] == [2, 2, 1]
    assert {value(row, "AvailableTransferSyntaxUID") for row in rows} == {"1.2.840.10008.1.2.1"}
    assert value(rows[0], "PatientName") == {"Alphabetic": "LEFÈVRE^Anaïs"}


@pytest.mark.req("REQ-DCM-45")
def test_the_time_zone_of_a_study_comes_with_all_its_levels(archive: Archive, actor: Actor) -> None:
    fill(archive, actor, study("A", StudyTime="233000", TimezoneOffsetFromUTC="+0200"), study("B"))
    for level in (ST, SE, IM):
        rows = ask(archive, level, key("PatientID", "A"), want=("StudyInstanceUID",))
        assert rows[0]["00080201"] == {"vr": "SH", "Value": ["+0200"]}
        other = ask(archive, level, key("PatientID", "B"), want=("StudyInstanceUID",))
        assert "00080201" not in other[0]
    # the study is found by the time that it says, not by that of another zone
    assert names(ask(archive, ST, key("StudyTime", "2330"))) == ["A"]


@pytest.mark.req("REQ-DCM-34", "REQ-DCM-45")
@pytest.mark.parametrize(
    ("keys", "combined", "expected"),
    [
        ({"StudyDate": "20260106"}, False, ["Z", "P"]),
        ({"StudyDate": "20260105"}, False, []),
        ({"StudyDate": "-20260105"}, False, ["O"]),
        ({"StudyTime": "0600-0700"}, False, ["Z"]),
        ({"StudyDate": "20260106", "StudyTime": "0700-"}, False, ["P"]),
        ({"StudyDate": "20260104-20260106", "StudyTime": "0600-0640"}, True, ["Z", "O"]),
        ({"StudyDate": "20260105-20260106", "StudyTime": "0640-0800"}, True, ["Z", "P"]),
        ({"StudyDate": "20260106-", "StudyTime": "0700-"}, True, ["P"]),
        ({"StudyDescription": "O"}, False, ["O"]),
    ],
)
def test_dates_and_times_are_asked_and_given_in_the_zone_of_whoever_asks(
    archive: Archive, actor: Actor, keys: dict[str, str], combined: bool, expected: list[str]
) -> None:
    """At +0900: Z is of the 6th 06:30, P, without an offset and so in Paris, of the 6th 07:30, O of the 4th 12:00."""
    fill(
        archive,
        actor,
        study("Z", StudyDate="20260105", StudyTime="233000", TimezoneOffsetFromUTC="+0200"),
        study("P", StudyDate="20260105", StudyTime="233000"),
        study("O", StudyDate="20260104", StudyTime="120000", TimezoneOffsetFromUTC="+0900"),
    )
    asked = [key(name, text) for name, text in keys.items()]
    options = {"zone": zone_of("+0900"), "combined_datetime": combined}
    rows = ask(archive, ST, *asked, want=("StudyDescription", "StudyDate", "StudyTime"), **options)
    assert sorted(names(rows)) == sorted(expected)
    told = {"Z": ("20260106", "063000"), "P": ("20260106", "073000"), "O": ("20260104", "120000")}
    for row in rows:
        said = (value(row, "StudyDate"), value(row, "StudyTime"))
        assert said == told[value(row, "StudyDescription")]
        assert value(row, "TimezoneOffsetFromUTC") == "+0900"
    with archive.engine.connect() as conn:
        assert count(conn, Query(ST, tuple(asked), **options), at_most=9) == len(expected)
    assert len(ask(archive, ST, *asked, limit=1, **options)) == min(1, len(expected))


def _requested(step: str) -> Sequence:
    item = Dataset()
    item.ScheduledProcedureStepID, item.RequestedProcedureID = step, "RP1"
    return Sequence([item])


@pytest.mark.req("REQ-DCM-32")
def test_what_has_no_column_is_matched_on_the_rows_with_paging_after(archive: Archive, actor: Actor) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "ZBQK002", "CCAM", "Radiographie du thorax"
    fill(
        archive,
        actor,
        *(study(f"S{n}", RequestAttributesSequence=_requested(f"SPS{n}"), StudyTime=f"0{n}00") for n in range(1, 6)),
        study("X", ProcedureCodeSequence=Sequence([code]), PatientComments="Allergie à l'iode"),
    )
    step = key("RequestAttributesSequence", "", key_of("00400009", "SH", "SPS2"))
    assert names(ask(archive, SE, step)) == ["S2"]
    any_step = key("RequestAttributesSequence", "", key_of("00400009", "SH", "SPS*"))
    everything = names(ask(archive, SE, any_step))
    assert everything == ["S1", "S2", "S3", "S4", "S5"]
    assert names(ask(archive, SE, any_step, limit=2, offset=1)) == everything[1:3]
    with archive.engine.connect() as conn:
        assert count(conn, Query(SE, (any_step,)), at_most=100) == 5
        assert count(conn, Query(SE, (any_step,)), at_most=3) == 3
    coded = key("ProcedureCodeSequence", "", key_of("00080100", "SH", "ZBQK002"), key_of("00080102", "SH", "CCAM"))
    assert names(ask(archive, ST, coded)) == ["X"]
    assert names(ask(archive, ST, key("PatientComments", "Allergie*"))) == ["X"]
    assert names(ask(archive, ST, key("PatientComments", "allergie*"))) == []
    rows = ask(archive, SE, step, want=("RequestAttributesSequence", "NumberOfStudyRelatedInstances"))
    assert rows[0]["00400275"]["Value"][0]["00401001"]["Value"] == ["RP1"]
    assert value(rows[0], "NumberOfStudyRelatedInstances") == 1


def key_of(name: str, vr: str, text: str) -> object:
    from archive.index.match import Key

    return Key(int(name, 16), vr, text)


@pytest.mark.req("REQ-DCM-37")
def test_a_patient_id_is_told_apart_by_its_issuer_and_found_by_another_of_his_ids(
    archive: Archive, actor: Actor
) -> None:
    ins = Dataset()
    ins.PatientID, ins.IssuerOfPatientID = "180017509912345", "ASIP-SANTE-INS-NIR"
    fill(
        archive,
        actor,
        study("A", PatientID="IPP1", IssuerOfPatientID="CABINET1", OtherPatientIDsSequence=Sequence([ins])),
        study("B", PatientID="IPP1", IssuerOfPatientID="CABINET2"),
    )
    assert sorted(names(ask(archive, ST, key("PatientID", "IPP1")))) == ["A", "B"]
    assert names(ask(archive, ST, key("PatientID", "IPP1"), key("IssuerOfPatientID", "CABINET2"))) == ["B"]
    items = (key("PatientID", ins.PatientID), key("IssuerOfPatientID", ins.IssuerOfPatientID))
    assert names(ask(archive, ST, key("OtherPatientIDsSequence", "", *items))) == ["A"]
    items = (key("PatientID", ins.PatientID), key("IssuerOfPatientID", "CABINET1"))
    assert names(ask(archive, ST, key("OtherPatientIDsSequence", "", *items))) == []


@pytest.mark.req("REQ-DCM-33")
def test_names_in_other_scripts_are_found_by_any_of_their_groups(archive: Archive, actor: Actor) -> None:
    yamada = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    fill(archive, actor, study("Y", PatientName=yamada, SpecificCharacterSet="ISO_IR 192"), study("D"))
    for asked in (
        "yamada*",
        "YAMADA^TAROU",
        "山田*",
        "山田^太郎",
        "やまだ^*",
        "*太郎",
        "=山田^*",
        "yamada^*=山田^太郎",
    ):
        assert names(ask(archive, ST, key("PatientName", asked))) == ["Y"], asked
        assert names(ask(archive, ST, key("PatientName", asked), limit=1)) == ["Y"], asked
    for asked in ("山田", "=やまだ*", "suzuki=山田*", "tarou*", "yamada"):
        assert names(ask(archive, ST, key("PatientName", asked))) == [], asked


@pytest.mark.parametrize("keys", [(), (("PatientID", "S*"),), (("PatientName", "DUPONT*"),), (("Laterality", "L"),)])
def test_pages_follow_each_other_without_gap_or_repetition(
    archive: Archive, actor: Actor, keys: tuple[tuple[str, str], ...]
) -> None:
    """Newest studies first, whichever way the rows are found; equal dates in a fixed order."""
    days = ["20260103", "20260101", "20260102", "20260101", "20260103", "20260101", "20260102"]
    fill(archive, actor, *(study(f"S{n}", StudyDate=day, Laterality="L") for n, day in enumerate(days)))
    level = SE if keys and keys[0][0] == "Laterality" else ST
    asked = [key(*one) for one in keys]
    everything = names(ask(archive, level, *asked))
    assert len(everything) == len(days)
    pages = [names(ask(archive, level, *asked, limit=3, offset=offset)) for offset in (0, 3, 6, 9)]
    assert [name for page in pages for name in page] == everything
    assert [len(page) for page in pages] == [3, 3, 1, 0]
    if level is ST:
        assert [days[int(name[1:])] for name in everything] == sorted(days, reverse=True)
    with archive.engine.connect() as conn:
        assert count(conn, Query(level, tuple(asked)), at_most=100) == len(days)
        assert count(conn, Query(level, tuple(asked)), at_most=4) == 4


def test_a_page_costs_the_same_statements_whatever_its_number_of_rows(
    archive: Archive, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(archive, actor, *(study("A", SOPInstanceUID=new_uid("A", str(n)), InstanceNumber=n) for n in range(1, 13)))
    want = ("InstanceNumber", "NumberOfSeriesRelatedInstances", "NumberOfStudyRelatedSeries", "PatientName")
    statements: list[Prepared] = []
    pages = Prepared.pages

    def noted(self: Prepared, *arguments: Any, **options: Any) -> Any:
        statements.append(self)
        return pages(self, *arguments, **options)

    monkeypatch.setattr(Prepared, "pages", noted)
    assert len(ask(archive, IM, want=want)) == 12
    few = len(statements)
    assert few > 0
    fill(archive, actor, *(study("A", SOPInstanceUID=new_uid("A", str(n)), InstanceNumber=n) for n in range(13, 40)))
    statements.clear()
    rows = ask(archive, IM, want=want)
    assert [value(row, "NumberOfSeriesRelatedInstances") for row in rows] == [39] * 39
    assert len(statements) == few


def test_a_key_that_does_not_belong_to_the_level_is_refused(archive: Archive) -> None:
    with pytest.raises(InvalidQuery) as refused:
        ask(archive, ST, key("Modality", "CT"))
    assert refused.value.tag == tag("Modality")
    with pytest.raises(InvalidQuery):
        ask(archive, ST, key("NumberOfStudyRelatedInstances", "3"))
    with pytest.raises(InvalidQuery):
        ask(archive, P, key("StudyDate", "20260105"))


def test_values_at_the_edges_of_what_a_database_takes(three: Archive) -> None:
    for text in (
        "x" * 5000,
        "%",
        "_",
        "!",
        "\\x",
        "'; DROP TABLE study; --",
        "\ud7ff*",
        "\U0010ffff*",
        "é*",
        "*" * 50 + "x",
    ):
        assert ask(three, ST, key("AccessionNumber", text)) == []
        assert ask(three, ST, key("PatientName", text)) == []
    assert ask(three, SE, key("SeriesNumber", "99999999999")) == []
    assert ask(three, SE, key("SeriesNumber", "1.5")) == []
    many = "\\".join(f"1.2.3.{n}" for n in range(2000))
    assert names(ask(three, ST, key("StudyInstanceUID", f"{many}\\{new_uid('A')}"))) == ["A"]


def test_a_database_that_fails_is_unavailable(archive: Archive) -> None:
    with archive.engine.connect() as conn:
        rows = find(conn, Query(ST))
        conn.exec_driver_sql("ALTER TABLE study RENAME TO gone")
        with pytest.raises(IndexUnavailable):
            list(rows)
        conn.rollback()
