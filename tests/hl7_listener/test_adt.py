"""A28, A31, A08, A40: who somebody is, and who is the same (sheet 20 §4)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from pydicom.dataset import Dataset

from archive.access import Actor
from archive.audit.read import list_rows
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.identity import dicom
from tests.archive.test_ingest import receive
from tests.builders import ct_slice, new_uid
from tests.hl7_listener.saying import (
    AUTHORITY,
    ISSUER,
    apply,
    bytes_of,
    cx,
    facts,
    ins,
    items,
    known,
    pid,
    record,
    refused,
    row,
    say,
)

INS = "285073599990118"
ANNE = {
    "p7": "19850712",
    "p8": "F",
    "p11": "12 rue^^SAINT-MALO^^35400^FRA^H~^^RENNES^^^FRA^BDL^^35999",
    "p13": "^PRN^CP^^^^^^^^^0600000001",
    "p32": "VALI",
}
L = "LE GOFF^ANNE-MARIE^ANNE-MARIE LOUISE^^Mme^^L"


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    """One with a RIS, whose INS are for tests."""
    told = {
        **settings.model_dump(),
        "test_mode": True,
        "hl7": {"authorities": [AUTHORITY, {"namespace": "OTHER", "default_for": ["OLD|RIS"]}]},
        "identity": {"ins_oids": ["1.2.250.1.213.1.4.10", "1.2.250.1.213.1.4.9"]},
    }
    with open_archive(Settings.model_validate(told), process="test") as opened:
        yield opened


@pytest.fixture
def send(archive: Archive, actor: Actor) -> Callable[[Dataset], object]:
    from archive.ingest import ingest

    return lambda ds: ingest(archive, receive(archive, ds), actor=actor)


def audits(archive: Archive, event: str = "110110") -> list[tuple[str, str | None]]:
    with archive.reading() as conn:
        found = list_rows(conn, event=event, limit=100).items
    return [(one["action"], one["patient"]) for one in reversed(found)]


def shown(archive: Archive, ipp: str) -> dict[str, object]:
    return dicom.by_keyword(orjson.loads(row(archive, ipp).attributes))


def test_a28_makes_a_patient_with_corrections_fact_and_audit(archive: Archive) -> None:
    assert say(archive, "A28", pid("R1", f"KERVÉADOU^Anne^^^^^D~{L}", p3=ins(INS), **ANNE)) == []
    found = row(archive, "R1")
    assert (found.version, found.ins, found.provisional) == (1, f"{INS}^1.2.250.1.213.1.4.10", 0)
    assert (found.patient_name, found.birth_date, found.sex) == ("le goff^anne marie", "19850712", "F")
    assert shown(archive, "R1")["OtherPatientNames"] == ["KERVÉADOU^Anne", "LE GOFF^ANNE-MARIE LOUISE"]
    corrections = orjson.loads(found.corrections)
    assert (corrections["reason"], corrections["attributes"]["00100020"]["Value"]) == ("COERCE", ["R1"])
    assert audits(archive) == [("C", f"R1^^^{ISSUER}")]
    assert facts(archive)[found.identity_key]["version"] == 1


@pytest.mark.req("REQ-HL7-P2")
def test_a31_of_somebody_unknown_makes_them_and_a28_of_somebody_known_changes_them(archive: Archive) -> None:
    for event in ("A31", "A28", "A08"):
        say(archive, event, pid("R1", f"DUPONT^{event}^^^^^L"))
    assert record(archive, "R1").birth_name.given == "A08"
    assert row(archive, "R1").version == 3
    assert [action for action, _ in audits(archive)] == ["C", "U", "U"]


def test_a_message_that_says_nothing_new_makes_no_revision(archive: Archive) -> None:
    say(archive, "A28", pid("R1"))
    say(archive, "A31", pid("R1"))
    assert row(archive, "R1").version == 1


@pytest.mark.req("REQ-HL7-13", "REQ-HL7-P3", "REQ-HL7-P8")
def test_null_deletes_and_absent_changes_nothing(archive: Archive) -> None:
    say(archive, "A28", pid("R1", f"KERVÉADOU^Anne^^^^^D~{L}", p3=ins(INS), **ANNE))
    say(archive, "A31", pid("R1", f'""^Anne-Marie^^^^^D~{L}', p11="7 quai^^BREST^^29200^FRA^H"))
    after = record(archive, "R1")
    assert (after.used_name.family, after.used_name.given) == ("", "Anne-Marie")
    assert (after.phones[0].number, after.home.city, after.home.street) == ("0600000001", "BREST", "7 quai")
    assert after.ins is not None
    say(archive, "A31", pid("R1", L, p8='""', p13='""', p11='""'))
    after = record(archive, "R1")
    assert (after.sex, after.phones, after.addresses, after.ins) == ("", (), (), None)
    assert shown(archive, "R1")["PatientSex"] == ""


@pytest.mark.req("REQ-HL7-P1")
def test_the_identifier_is_the_trusted_ipp_whatever_stands_before_it(archive: Archive) -> None:
    others = f"{INS}^^^ASIP-SANTE-INS-NIR&1.2.250.1.213.1.4.10&ISO^INS~X9^^^HOPITAL^PI~A5^^^{ISSUER}^AN"
    say(archive, "A28", f"PID|1||{others}~{cx('R1')}||DUPONT^Anne")
    assert {(one.value, one.issuer, one.type) for one in record(archive, "R1").identifiers} == {
        ("X9", "HOPITAL", "PI"),
        ("A5", ISSUER, "AN"),
        ("R1", ISSUER, "PI"),
    }


@pytest.mark.req("REQ-HL7-P1")
@pytest.mark.parametrize(
    ("field", "issuer", "ipp"),
    [
        ("R1^^^&2.25.171717001&ISO^PI", ISSUER, "R1"),  # by OID alone
        ("R1^^^cim-rivages^PI", ISSUER, "R1"),
        ("R1^^^OTHER&2.25.999&ISO^PI", "OTHER", "R1"),
        ("N1^^^X^PN~R1^^^OTHER", "OTHER", "R1"),  # no PI at all
    ],
)
def test_an_authority_is_known_in_each_of_its_spellings(archive: Archive, field: str, issuer: str, ipp: str) -> None:
    say(archive, "A28", f"PID|1||{field}||DUPONT^Anne")
    assert row(archive, ipp, issuer).record


@pytest.mark.req("REQ-HL7-P1")
def test_an_identifier_without_authority_is_the_senders_default_or_nobodys(archive: Archive) -> None:
    assert refused(archive, "A28", "PID|1||R1^^^^PI||DUPONT^Anne") == (101, "PID^1^3")
    raw = bytes_of("A28", "PID|1||R1^^^^PI||DUPONT^Anne").replace(b"|RIS|RIVAGES|", b"|OLD|RIS|", 1)
    apply(archive, raw)
    assert row(archive, "R1", "OTHER").record


@pytest.mark.parametrize(
    ("segment", "code", "location"),
    [
        ("PID|1||||DUPONT^Anne", 101, "PID^1^3"),
        ('PID|1||""||DUPONT^Anne', 101, "PID^1^3"),
        (f"PID|1||{ins(INS)}||DUPONT^Anne", 101, "PID^1^3"),
        (f"PID|1||{'R' * 65}^^^{ISSUER}^PI||DUPONT^Anne", 102, "PID^1^3"),
        (pid("R1", ""), 101, "PID^1^5"),
        (pid("R1", '""^""^^^^^L'), 101, "PID^1^5"),
        (pid("R1", "NOM^X^^^^^M"), 101, "PID^1^5"),
        (pid("R1", p7="19890231"), 102, "PID^1^7"),
        (pid("R1", p7="hier"), 102, "PID^1^7"),
        (pid("R1", p8="f"), 103, "PID^1^8"),
        (pid("R1", p8="X"), 103, "PID^1^8"),
        (pid("R1", p29="20261301"), 102, "PID^1^29"),
    ],
)
def test_what_is_wrong_is_refused_where_it_stands(archive: Archive, segment: str, code: int, location: str) -> None:
    assert refused(archive, "A28", segment) == (code, location)
    assert not known(archive, "R1")
    assert audits(archive) == []


@pytest.mark.req("REQ-HL7-P4")
@pytest.mark.parametrize("date", ["1954", "195402", "19540228", "195402281130"])
def test_a_birth_date_is_kept_as_precise_as_it_is_known(archive: Archive, date: str) -> None:
    say(archive, "A28", pid("R1", p7=date))
    assert record(archive, "R1").birth_date == date[:8]
    assert shown(archive, "R1")["PatientBirthDate"] == (date[:8] if len(date) >= 8 else "")


@pytest.mark.req("REQ-HL7-P5")
def test_race_religion_and_ethnic_group_are_not_kept(archive: Archive) -> None:
    say(archive, "A28", pid("R1", p10="RACE", p17="RELIGION", p19="SECU", p22="ETHNIE"))
    for word in ("RACE", "RELIGION", "SECU", "ETHNIE"):
        assert word not in row(archive, "R1").record


@pytest.mark.req("REQ-HL7-P9")
def test_a_status_that_no_table_has_is_kept_with_a_warning(archive: Archive) -> None:
    found = say(archive, "A28", pid("R1", p32="NEUF"))
    assert [(one.code, one.location) for one in found] == [(103, "PID^1^32")]
    assert record(archive, "R1").status == "NEUF"


@pytest.mark.req("REQ-HL7-P10")
def test_death_twins_mother_and_the_french_segments_are_kept(archive: Archive) -> None:
    fields = {"p21": f"M1^^^{ISSUER}^PI", "p24": "Y", "p25": "2", "p29": "20260101", "p30": "Y"}
    segments = ("ZFD||||N|INSI|20260105|CN|20301231", "ZFA|ACTIF||||||||INO||IC")
    say(archive, "A28", pid("R1", **fields), *segments)
    after = record(archive, "R1")
    assert (after.death_date, after.multiple_birth, after.birth_order) == ("20260101", "Y", "2")
    assert (after.mother[0].value, after.proof.means, after.proof.document) == ("M1", "INSI", "CN")
    assert (after.dmp.status, after.dmp.alimentation, after.dmp.consultation) == ("ACTIF", "INO", "IC")
    assert after.level == "récupérée"


@pytest.mark.req("REQ-HL7-62", "REQ-HL7-66")
def test_a_message_whose_ins_may_not_be_used_is_integrated_without_it(archive: Archive) -> None:
    for value, fields in ((INS, {"p32": "PROV"}), (INS[:13] + "19", {})):
        found = say(archive, "A28", pid(value, L, p3=ins(value), **(ANNE | fields)))
        assert [one.location for one in found] == ["PID^1^3"]
        assert record(archive, value).ins is None
    reasons = {one["evidence"]["reason"] for one in items(archive).values()}
    assert items(archive).keys() == {"ins_refused"}
    assert reasons == {"key"}


@pytest.mark.req("REQ-HL7-65")
def test_the_same_ins_is_not_stored_on_a_second_patient(archive: Archive) -> None:
    for ipp in ("R1", "R2"):
        say(archive, "A28", pid(ipp, L, p3=ins(INS), **ANNE))
    assert row(archive, "R1").ins
    assert row(archive, "R2").ins is None
    assert items(archive)["ins_collision"]["patient"] == f"R2^^^{ISSUER}"
    say(archive, "A31", pid("R1", L, p32="PROV"))
    say(archive, "A31", pid("R2", L, p3=ins(INS), **ANNE))
    assert row(archive, "R2").ins, "the first one gave it up"


@pytest.mark.req("REQ-HL7-25")
def test_demographics_that_are_older_than_the_known_ones_are_not_applied(archive: Archive) -> None:
    say(archive, "A28", pid("R1", "NEUF^A^^^^^L", p33="20260105100000"))
    found = say(archive, "A31", pid("R1", "VIEUX^A^^^^^L", p33="20260105095959"))
    assert [one.location for one in found] == ["PID^1^33"]
    assert record(archive, "R1").birth_name.family == "NEUF"
    assert items(archive)["stale_update"]["patient"] == f"R1^^^{ISSUER}"
    say(archive, "A31", pid("R1", "PLUS^A^^^^^L"))
    assert record(archive, "R1").birth_name.family == "PLUS", "without PID-33 the order of arrival rules"


@pytest.mark.req("REQ-HL7-40")
def test_a40_moves_studies_and_leaves_a_tombstone(archive: Archive, send: Callable[[Dataset], object]) -> None:
    """DD-10: the demographics of an existing survivor stay."""
    study = new_uid()
    send(ct_slice(PatientID="URG", IssuerOfPatientID=ISSUER, PatientName="INCONNU^X", StudyInstanceUID=study))
    assert items(archive).keys() == {"unknown_patient"}
    say(archive, "A28", pid("R1", "MAËSTRACCI^Toussaint^^^^^L", p7="19610817", p8="M"))
    say(archive, "A40", pid("R1", "AUTRE^Nom^^^^^L", p32="VALI"), f"MRG|{cx('URG')}")
    loser, survivor = row(archive, "URG"), row(archive, "R1")
    assert (loser.merged_into_pk, loser.tombstone) == (survivor.pk, "merged")
    assert record(archive, "R1").birth_name.family == "MAËSTRACCI"
    assert record(archive, "R1").status == "PROV"
    from archive.studies import describe

    with archive.reading() as conn:
        found = describe(conn, study)
    assert found is not None
    assert found.patient == f"R1^^^{ISSUER}"
    assert items(archive) == {}
    closed = items(archive, "closed")["unknown_patient"]
    assert (closed["closed_by"], closed["resolution"]) == ("RIS|RIVAGES", "merged by A40")
    assert audits(archive)[-2:] == [("U", f"URG^^^{ISSUER}"), ("U", f"R1^^^{ISSUER}")]
    assert facts(archive)[loser.identity_key]["merged_into"] == {
        "identity_key": survivor.identity_key,
        "patient_id": "R1",
        "issuer": ISSUER,
    }


@pytest.mark.req("REQ-HL7-40")
def test_a40_makes_whom_nobody_has_heard_of(archive: Archive) -> None:
    say(archive, "A40", pid("NEW", "DUPONT^Anne^^^^^L", p8="F"), f"MRG|{cx('OLD')}||||||DUPOND^Anne")
    assert record(archive, "NEW").birth_name.family == "DUPONT"
    assert record(archive, "NEW").sex is None, "only PID-3 and PID-5 are read"
    assert row(archive, "OLD").merged_into_pk == row(archive, "NEW").pk
    assert record(archive, "OLD").birth_name.family == "DUPOND"


@pytest.mark.req("REQ-HL7-40")
def test_a40_again_does_nothing_and_is_acknowledged(archive: Archive) -> None:
    for _ in range(2):
        found = say(archive, "A40", pid("B"), f"MRG|{cx('A')}")
    assert [one.location for one in found] == ["MRG^1^1"]
    assert len([one for one in audits(archive) if one[0] == "U"]) == 2


@pytest.mark.req("REQ-HL7-40")
def test_a_chain_of_merges_ends_on_the_last_survivor(archive: Archive) -> None:
    say(archive, "A40", pid("B"), f"MRG|{cx('A')}")
    say(archive, "A40", pid("C"), f"MRG|{cx('B')}")
    assert {row(archive, ipp).merged_into_pk for ipp in ("A", "B")} == {row(archive, "C").pk}
    merged = facts(archive)[row(archive, "A").identity_key]["merged_into"]
    assert isinstance(merged, dict)
    assert merged["patient_id"] == "C"


@pytest.mark.req("REQ-HL7-40")
@pytest.mark.parametrize(
    ("survivor", "mrg", "code", "location", "kind"),
    [
        ("C", f"MRG|{cx('A')}", 204, "MRG^1^1", "merge_conflict"),  # merged into B before
        ("A", f"MRG|{cx('C')}", 204, "PID^1^3", "merge_conflict"),  # a tombstone
        ("C", f"MRG|{cx('C')}", 205, "MRG^1^1", ""),
        ("C", "MRG|", 101, "MRG^1^1", ""),
        ("C", f"MRG|{ins(INS)}", 101, "MRG^1^1", ""),
        ("C", "MRG|D^^^HOPITAL^PI", 204, "MRG^1^1", ""),
    ],
)
def test_a_merge_that_cannot_be_is_refused_and_changes_nothing(
    archive: Archive, survivor: str, mrg: str, code: int, location: str, kind: str
) -> None:
    say(archive, "A40", pid("B"), f"MRG|{cx('A')}")
    before = facts(archive)
    assert refused(archive, "A40", pid(survivor), mrg) == (code, location)
    assert items(archive).keys() == ({kind} if kind else set())
    assert facts(archive) == before
    assert not known(archive, "C")


@pytest.mark.req("REQ-HL7-40")
def test_several_pairs_are_merged_in_order_or_not_at_all(archive: Archive) -> None:
    pairs = [pid("B"), f"MRG|{cx('A')}", pid("C"), f"MRG|{cx('B')}"]
    assert refused(archive, "A40", *pairs, pid("D"), f"MRG|{cx('A')}") == (204, "MRG^3^1")
    assert not known(archive, "C")
    say(archive, "A40", *pairs)
    assert {row(archive, ipp).merged_into_pk for ipp in ("A", "B")} == {row(archive, "C").pk}


@pytest.mark.req("REQ-HL7-40")
def test_the_ins_of_a_loser_is_dropped_and_the_survivor_gets_none(archive: Archive) -> None:
    say(archive, "A28", pid("A", L, p3=ins(INS), **ANNE))
    say(archive, "A28", pid("B", L))
    say(archive, "A40", pid("B", L), f"MRG|{cx('A')}")
    assert row(archive, "A").ins is None
    assert row(archive, "B").ins is None
    assert record(archive, "A").ins_history[-1].reason == "merged"


@pytest.mark.req("REQ-HL7-P11")
def test_a_message_about_somebody_merged_away_is_refused_and_waits_for_a_person(archive: Archive) -> None:
    say(archive, "A40", pid("B"), f"MRG|{cx('A')}")
    before = row(archive, "A")
    assert refused(archive, "A31", pid("A", "CHANGE^X^^^^^L")) == (204, "PID^1^3")
    assert row(archive, "A") == before
    waiting = items(archive)["merged_id_used"]
    assert waiting["evidence"]["merged_into"] == f"B^^^{ISSUER}"
    assert waiting["evidence"]["message"] == 1


@pytest.mark.req("REQ-DCM-70")
def test_a_moved_study_never_leaves_with_the_birth_date_of_the_loser(
    archive: Archive, send: Callable[[Dataset], object]
) -> None:
    """The record of the survivor does not know it; the survivor's own images do."""
    for ipp, born in (("A", "19000101"), ("B", "19700101")):
        uids = {"StudyInstanceUID": new_uid(), "SeriesInstanceUID": new_uid()}
        send(ct_slice(PatientID=ipp, IssuerOfPatientID=ISSUER, PatientBirthDate=born, **uids))
    say(archive, "A40", pid("B"), f"MRG|{cx('A')}")
    attributes = orjson.loads(row(archive, "B").corrections)["attributes"]
    assert attributes["00100030"]["Value"] == ["19700101"]


@pytest.mark.parametrize("name", ["a28-ins-utf8", "a28-8859-15", "a28-particles", "a31-null"])
def test_the_shared_samples_are_taken(archive: Archive, name: str) -> None:
    data = os.environ.get("MINIPACS_TEST_DATA")
    if not data:
        pytest.skip("MINIPACS_TEST_DATA is not set")
    apply(archive, (Path(data) / f"spec/samples/pam/{name}.hl7").read_bytes())
    ipp = {"a28-8859-15": "R1003", "a28-particles": "R1009"}.get(name, "R1001")
    if name == "a28-8859-15":
        assert shown(archive, ipp)["SpecificCharacterSet"] == "ISO_IR 192"
    if name == "a28-particles":
        assert record(archive, ipp).death_date == "20260101"
    if name == "a28-ins-utf8":
        assert record(archive, ipp).level == "qualifiée"
    assert known(archive, ipp)
