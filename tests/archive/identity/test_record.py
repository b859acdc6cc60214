"""What a message changes of a record, and what becomes of it in DICOM."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archive.identity import dicom
from archive.identity.ins import NIR, NIR_TEST
from archive.identity.record import (
    Address,
    Identifier,
    Ins,
    InsEvent,
    Name,
    Phone,
    Record,
    Statement,
    apply,
    is_older,
    of_json,
    to_json,
)

KNOWN = Record(
    names={"L": Name("LE GOFF", "ANNE-MARIE", "ANNE-MARIE LOUISE", "Mme"), "D": Name("KERVÉADOU", "Anne")},
    birth_date="19850712",
    sex="F",
    addresses=(Address("H", "12 rue", city="SAINT-MALO"), Address("BDL", city="RENNES", country="FRA", code="35999")),
    phones=(Phone("0600000001"),),
)


@pytest.mark.req("REQ-HL7-13")
def test_what_is_absent_stays_and_what_is_null_goes() -> None:
    after = apply(KNOWN, Statement(names={"D": Name(family="", given="Anne-Marie")}, sex=""))
    assert (after.used_name.family, after.used_name.given) == ("", "Anne-Marie")
    assert after.birth_name == KNOWN.birth_name
    assert (after.sex, after.birth_date, after.phones) == ("", "19850712", KNOWN.phones)


def test_an_unspecified_name_stands_in_only_while_there_is_no_legal_one() -> None:
    unknown = apply(Record(), Statement(names={"U": Name("INCONNU", "X")}))
    assert unknown.birth_name.family == "INCONNU"
    assert apply(unknown, Statement(names={"L": Name("DUPONT", "Anne")})).birth_name.family == "DUPONT"


@pytest.mark.req("REQ-HL7-P7")
def test_an_address_replaces_all_of_its_type_and_the_place_of_birth_keeps_its_code() -> None:
    after = apply(KNOWN, Statement(addresses=(Address("H", "7 quai", city="BREST"), Address("BDL", city="RENNES"))))
    assert [one.street for one in after.addresses if one.type == "H"] == ["7 quai"]
    assert after.birth_place_code == "35999"
    elsewhere = apply(KNOWN, Statement(addresses=(Address("BDL", city="LYON"),)))
    assert elsewhere.birth_place_code == "", "the code of another place"
    assert elsewhere.home.city == "SAINT-MALO"


@pytest.mark.req("REQ-HL7-P6")
def test_identifiers_only_become_more() -> None:
    one, two = Identifier("1", "A", "PI"), Identifier("2", "B", "PI")
    after = apply(apply(KNOWN, Statement(identifiers=(one,))), Statement(identifiers=(two, one)))
    assert after.identifiers == (one, two)


def test_a_status_that_is_not_said_stays_and_a_new_patient_is_provisional() -> None:
    assert Record().status == "PROV"
    after = apply(Record(), Statement(codes=("VALI", "DOUT")))
    assert (after.status, after.attributes) == ("VALI", ("DOUT",))
    assert apply(after, Statement()).status == "VALI"
    assert apply(after, Statement(codes=())).status == "PROV"


def test_whoever_lives_has_no_day_of_death() -> None:
    dead = apply(KNOWN, Statement(death_day="20260101", deceased="Y"))
    assert dead.death_date == "20260101"
    assert apply(dead, Statement(deceased="N")).death_date == ""


@pytest.mark.req("REQ-HL7-25")
@pytest.mark.parametrize(
    ("said", "known", "older"),
    [
        ("20260105082900", "20260106", True),
        ("20260106", "20260105082900", False),
        ("20260105", "20260105082900", False),  # perhaps later that day
        ("20260105082900+0100", "20260105083000.5", True),
        ("20260105082900", "20260105082900", False),
    ],
)
def test_times_are_compared_as_far_as_both_are_precise(said: str, known: str, older: bool) -> None:
    assert is_older(said, known) is older


def test_a_record_survives_its_json() -> None:
    full = apply(KNOWN, Statement(death_day="", identifiers=(Identifier("1", "A"),), codes=("VALI",)))
    assert of_json(to_json(full)) == full
    assert of_json(to_json(Record())) == Record()


def attributes(record: Record) -> dict[str, object]:
    found = dicom.attributes_of(record, patient_id="R1", issuer="CIM-RIVAGES", oid="2.25.1")
    return dicom.by_keyword(found)


@pytest.mark.req("REQ-DCM-73")
def test_identity_in_dicom() -> None:
    ins = Ins("285073599990118", NIR)
    shown = attributes(apply(KNOWN, Statement(sex="U")))
    assert shown == {
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientName": "LE GOFF^ANNE-MARIE",
        "PatientID": "R1",
        "IssuerOfPatientID": "CIM-RIVAGES",
        "TypeOfPatientID": "TEXT",
        "IssuerOfPatientIDQualifiersSequence": [{"UniversalEntityID": "2.25.1", "UniversalEntityIDType": "ISO"}],
        "PatientBirthDate": "19850712",
        "PatientSex": "",
        "OtherPatientNames": ["KERVÉADOU^Anne", "LE GOFF^ANNE-MARIE LOUISE"],
        "PatientBirthName": "LE GOFF^ANNE-MARIE",
    }
    with_ins = dicom.attributes_of(
        Record(ins=ins, ins_history=(InsEvent("", ins.value, ins.oid, "accepted"),)), patient_id="R1", issuer="A"
    )
    assert dicom.by_keyword(with_ins)["OtherPatientIDsSequence"] == [
        {
            "PatientID": "285073599990118",
            "IssuerOfPatientID": "ASIP-SANTE-INS-NIR",
            "TypeOfPatientID": "TEXT",
            "IssuerOfPatientIDQualifiersSequence": [{"UniversalEntityID": NIR, "UniversalEntityIDType": "ISO"}],
        }
    ]


@pytest.mark.req("REQ-HL7-64")
def test_an_ins_that_was_withdrawn_leaves_no_output_with_it() -> None:
    record = Record(ins_history=(InsEvent("", "285073599990118", NIR_TEST, "withdrawn"),))
    assert attributes(record)["OtherPatientIDsSequence"] == []
    assert "OtherPatientIDsSequence" not in attributes(KNOWN)


def test_what_was_deleted_or_is_not_a_whole_date_leaves_without_value() -> None:
    found = dicom.attributes_of(apply(KNOWN, Statement(birth_date="1954", sex="")), patient_id="R1", issuer="A")
    assert found["00100030"] == {"vr": "DA"}
    assert found["00100040"] == {"vr": "CS"}
    assert "00100030" not in dicom.attributes_of(Record(), patient_id="R1", issuer="A"), "never said"


@pytest.mark.req("REQ-DCM-61")
def test_the_character_set_is_the_smallest_that_holds_every_letter() -> None:
    assert attributes(Record(names={"L": Name("CŒURDEVEY", "Loïc")}))["SpecificCharacterSet"] == "ISO_IR 192"
    assert attributes(Record(names={"L": Name("CUR", "Loïc")}))["SpecificCharacterSet"] == "ISO_IR 100"


def test_characters_that_pn_may_not_hold_become_spaces_in_dicom_alone() -> None:
    name = Name("D^A\\B=C", "Je\tan")
    assert dicom.person_name(name) == "D A B C^Je an"


@pytest.mark.req("REQ-HL7-15")
@given(st.text(max_size=120), st.text(max_size=120))
def test_a_name_in_dicom_is_legal_whatever_it_is_in_the_record(family: str, given_name: str) -> None:
    made = dicom.person_name(Name(family, given_name))
    assert len(made) <= 64
    assert made.count("^") <= 1
    assert not set("\\=\n\r\t") & set(made)


@pytest.mark.req("REQ-HL7-15")
def test_a_long_name_is_cut_where_a_word_ends() -> None:
    made = dicom.person_name(Name("DE LA TOUR DU PIN", " ".join(["Marie-Éléonore"] * 6)))
    assert made == "DE LA TOUR DU PIN^Marie-Éléonore Marie-Éléonore Marie-Éléonore"
