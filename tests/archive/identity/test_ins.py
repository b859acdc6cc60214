"""The national identity: its key, its form, and when it may be used (sheet 20 §6)."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from archive.identity.ins import NIA, NIR, NIR_TEST, Fault, Verdict, disagreements, fault_of, judge, key_of
from archive.identity.record import Address, Ins, Name, Proof, Record, Statement, apply

ANNE = Ins("285073599990118", NIR_TEST)
OTHER = Ins("173097599990688", NIR_TEST)
COMPLETE = Record(
    names={"L": Name("LE GOFF", "ANNE-MARIE")},
    birth_date="19850712",
    sex="F",
    addresses=(Address("BDL", city="RENNES", code="35999"),),
    codes=("VALI",),
)
SAID = Statement(codes=("VALI",), ins=(ANNE,))
AT = "2026-01-05T08:30:00+00:00"


def judged(
    record: Record, said: Statement, *, accepted: tuple[str, ...] = (NIR_TEST, NIA), taken: bool = False
) -> Verdict:
    return judge(apply(record, said), said, accepted=accepted, taken=lambda _: taken, at=AT)


def faults(verdict: Verdict) -> list[Fault]:
    return [one.fault for one in verdict.refusals]


@pytest.mark.req("REQ-HL7-60")
@pytest.mark.parametrize(
    ("number", "key"),
    [
        ("2790351215189", "89"),
        ("2740751760794", "30"),
        ("2600588154002", "33"),
        ("1600599327100", "27"),
        ("192032A999902", "92"),  # Corse-du-Sud
        ("269112B999903", "62"),  # Haute-Corse
    ],
)
def test_the_key_is_what_the_sheet_says(number: str, key: str) -> None:
    assert key_of(number) == key
    assert fault_of(Ins(number + key, NIR), accepted=[NIR]) is None
    assert fault_of(Ins(number + f"{int(key) % 97 + 1:02}", NIR), accepted=[NIR]) is Fault.KEY


def test_every_shared_vector_is_judged_as_it_is_marked() -> None:
    data = os.environ.get("MINIPACS_TEST_DATA")
    if not data:
        pytest.skip("MINIPACS_TEST_DATA is not set")
    for one in json.loads((Path(data) / "spec/samples/nir-vectors.json").read_text(encoding="utf-8")):
        value = one.get("full") or one["n13"] + one["key"]
        assert (fault_of(Ins(value, NIR), accepted=[NIR]) is None) == one["valid"], one


@pytest.mark.req("REQ-HL7-61")
@pytest.mark.parametrize(
    "value",
    ["2790351215189", "27903512151898", "579035121518989", "279135121518989", "279032C21518989", "2790351215189 89"],
)
def test_what_is_not_thirteen_characters_and_a_key_is_no_ins(value: str) -> None:
    assert fault_of(Ins(value, NIR), accepted=[NIR]) is Fault.FORM


@pytest.mark.parametrize("month", ["01", "12", "20", "30", "42", "50", "99"])
def test_months_that_are_none_of_the_calendar_are_legal(month: str) -> None:
    number = f"190{month}35999901"
    assert fault_of(Ins(number + key_of(number), NIR), accepted=[NIR]) is None


@pytest.mark.req("REQ-HL7-60")
def test_only_the_accepted_numbers_are_used() -> None:
    assert judged(COMPLETE, SAID).record.ins == ANNE
    refused = judged(COMPLETE, SAID, accepted=(NIR,))
    assert refused.record.ins is None
    assert faults(refused) == [Fault.OID]


@pytest.mark.req("REQ-HL7-62")
@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (replace(COMPLETE, codes=("PROV",)), Fault.STATUS),
        (replace(COMPLETE, codes=("VALI", "DOUT")), Fault.DOUBT),
        (replace(COMPLETE, codes=("VALI", "FICT")), Fault.DOUBT),
        (replace(COMPLETE, proof=Proof(corrected="Y")), Fault.CORRECTED),
        (replace(COMPLETE, names={"L": Name("LE GOFF")}), Fault.TRAITS),
        (replace(COMPLETE, names={"D": Name("LE GOFF", "ANNE-MARIE")}), Fault.TRAITS),
        (replace(COMPLETE, birth_date="198507"), Fault.TRAITS),
        (replace(COMPLETE, sex="U"), Fault.TRAITS),
        (replace(COMPLETE, addresses=()), Fault.TRAITS),
    ],
)
def test_an_ins_is_used_only_when_every_condition_holds(record: Record, fault: Fault) -> None:
    verdict = judge(record, SAID, accepted=(NIR_TEST,), taken=lambda _: False, at=AT)
    assert verdict.record.ins is None
    assert faults(verdict) == [fault]


@pytest.mark.req("REQ-HL7-62")
def test_a_message_that_does_not_say_the_status_brings_no_new_ins() -> None:
    assert faults(judged(COMPLETE, Statement(ins=(ANNE,)))) == [Fault.NOT_SAID]
    kept = judged(replace(COMPLETE, ins=ANNE), Statement(ins=(ANNE,)))
    assert kept.record.ins == ANNE
    assert not kept.refusals


@pytest.mark.req("REQ-HL7-69")
@pytest.mark.parametrize(
    "said",
    [
        Statement(birth_date=""),
        Statement(sex=""),
        Statement(names={"L": Name(family="")}),
        Statement(addresses=()),
        Statement(proof=Proof(corrected="Y")),
    ],
)
def test_a_trait_that_is_deleted_withdraws_the_ins(said: Statement) -> None:
    verdict = judged(replace(COMPLETE, ins=ANNE), said)
    assert verdict.record.ins is None
    assert verdict.record.ins_history[-1].event == "withdrawn"
    assert [one.withdrawn for one in verdict.refusals] == [True]


@pytest.mark.req("REQ-HL7-64")
def test_an_ins_leaves_with_the_status_and_does_not_come_back_by_itself() -> None:
    withdrawn = judged(replace(COMPLETE, ins=ANNE), Statement(codes=("PROV",)))
    assert withdrawn.record.ins is None
    assert withdrawn.record.ins_history[-1].value == ANNE.value
    assert not withdrawn.refusals, "the RIS says so itself: nothing for a person to do"
    assert judged(withdrawn.record, Statement(codes=("VALI",))).record.ins is None
    assert judged(withdrawn.record, SAID).record.ins == ANNE


@pytest.mark.req("REQ-HL7-69")
def test_of_two_different_ones_none_is_taken_and_the_stored_one_stays() -> None:
    two = replace(SAID, ins=(ANNE, OTHER))
    assert faults(judged(COMPLETE, two)) == [Fault.SEVERAL, Fault.SEVERAL]
    assert judged(COMPLETE, two).record.ins is None
    assert judged(replace(COMPLETE, ins=OTHER), two).record.ins == OTHER


@pytest.mark.req("REQ-HL7-69", "REQ-HL7-66")
def test_a_refused_ins_never_replaces_the_stored_one() -> None:
    wrong = Ins(OTHER.value[:13] + "01", NIR_TEST)
    verdict = judged(replace(COMPLETE, ins=ANNE), replace(SAID, ins=(wrong,)))
    assert verdict.record.ins == ANNE
    assert faults(verdict) == [Fault.KEY]


@pytest.mark.req("REQ-HL7-63")
def test_a_nir_is_used_before_a_nia_that_its_history_keeps() -> None:
    nia = Ins(OTHER.value, NIA)
    verdict = judged(COMPLETE, replace(SAID, ins=(nia, ANNE)))
    assert verdict.record.ins == ANNE
    assert [(one.event, one.oid) for one in verdict.record.ins_history] == [("beside", NIA), ("accepted", NIR_TEST)]
    alone = judged(COMPLETE, replace(SAID, ins=(nia,)))
    assert alone.record.ins == nia
    assert judged(alone.record, SAID).record.ins == ANNE
    assert judged(verdict.record, replace(SAID, ins=(nia,))).record == verdict.record


@pytest.mark.req("REQ-HL7-65")
def test_an_ins_that_another_patient_has_is_not_taken() -> None:
    verdict = judged(COMPLETE, SAID, taken=True)
    assert verdict.record.ins is None
    assert faults(verdict) == [Fault.COLLISION]


@pytest.mark.req("REQ-HL7-67")
def test_traits_are_compared_with_the_digits_and_never_corrected() -> None:
    wrong = replace(COMPLETE, sex="M", birth_date="19860812")
    assert disagreements(wrong, ANNE) == ["sex", "year of birth", "month of birth"]
    assert disagreements(COMPLETE, ANNE) == []
    kept = judged(wrong, SAID).record
    assert (kept.sex, kept.birth_date, kept.ins) == ("M", "19860812", ANNE)


@pytest.mark.req("REQ-HL7-68")
@pytest.mark.parametrize(
    ("codes", "ins", "proof", "level"),
    [
        (("PROV",), None, Proof(), "provisoire"),
        (("PROV",), None, Proof(means="INSI"), "récupérée"),
        (("VALI",), None, Proof(document="CN"), "validée"),
        (("VALI",), ANNE, Proof(means="INSI", document="CN"), "qualifiée"),
    ],
)
def test_the_four_levels_of_trust(codes: tuple[str, ...], ins: Ins | None, proof: Proof, level: str) -> None:
    assert replace(COMPLETE, codes=codes, ins=ins, proof=proof).level == level
