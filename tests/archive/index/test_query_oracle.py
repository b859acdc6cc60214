"""Random values against random keys: what the database finds is what matching row by row finds, on both databases."""

from __future__ import annotations

import unicodedata
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from archive.core import Archive
from archive.dicom.attributes import ATTRIBUTES, BY_KEYWORD, Attribute, Level, Match
from archive.dicom.keys import normalise
from archive.errors import InvalidQuery
from archive.index.conditions import TABLES
from archive.index.match import Key, is_asking, row_meets
from archive.index.query import Query, find
from archive.schema import instance, patient, series, study

# few letters, so that values and keys meet; with all that SQL, DICOM and folding take for special
LETTERS = "aAeéÉœ b1%_!'’-^"
TEXT = st.text(LETTERS, max_size=6).map(lambda text: " ".join(text.split()))
GROUPS = st.lists(st.text(LETTERS + "山", max_size=5).map(str.strip), min_size=1, max_size=3).map("=".join)
DATES = st.sampled_from(["20260105", "20260106", "20260110", "20261231", "2026.01.06", "none", ""])
TIMES = st.sampled_from(["10", "1000", "100000", "100000.5", "235959", "2359", "22:30:00", "none", ""])
NUMBERS = st.sampled_from(["1", "01", "2", "-3", "x", ""])
UIDS = st.sampled_from(["1.2", "1.2.3", "1.2.30", "1.3"])
OF_VR = {"PN": GROUPS, "DA": DATES, "TM": TIMES, "IS": NUMBERS, "UI": UIDS}
PLAIN = [attribute for attribute in ATTRIBUTES if attribute.column and attribute.match is not Match.UID]


@st.composite
def values(draw: st.DrawFn) -> dict[str, str]:
    """One instance's worth of indexed attributes."""
    row = {attribute.keyword: draw(OF_VR.get(attribute.vr, TEXT)) for attribute in PLAIN}
    row["OtherPatientNames"] = draw(GROUPS)
    row["PatientComments"] = draw(TEXT)
    return row


@st.composite
def keys(draw: st.DrawFn) -> Key:
    """A matching key: a value, made wild or a range now and then."""
    choices = [*PLAIN, BY_KEYWORD["OtherPatientNames"], BY_KEYWORD["PatientComments"], BY_KEYWORD["StudyInstanceUID"]]
    attribute = draw(st.sampled_from(choices))
    text = draw(OF_VR.get(attribute.vr, TEXT))
    if attribute.vr in ("DA", "TM"):
        other = draw(OF_VR[attribute.vr])
        text = draw(st.sampled_from([text, f"{text}-", f"-{text}", f"{text}-{other}"]))
    elif attribute.vr == "UI":
        text = draw(st.sampled_from([text, f"{text}\\1.3", "*", f"{text}*"]))
    elif attribute.vr != "IS":
        text = "".join(draw(st.sampled_from([letter, letter, letter, "*", "?"])) for letter in text)
        text += draw(st.sampled_from(["", "*", "^*"]))
    return Key(attribute.tag, attribute.vr, text)


def element(attribute: Attribute, text: str) -> dict[str, Any]:
    if not text:
        return {"vr": attribute.vr}
    if attribute.vr == "PN":
        groups = zip(("Alphabetic", "Ideographic", "Phonetic"), text.split("="), strict=False)
        name = {group: part for group, part in groups if part}
        return {"vr": "PN", "Value": [name]} if name else {"vr": "PN"}
    return {"vr": attribute.vr, "Value": [text]}


def insert(conn: Any, archive: Archive, number: int, row: dict[str, str]) -> dict[str, Any]:
    """A patient, study, series and instance of these values, under the key `number`; their DICOM JSON."""
    everything: dict[str, Any] = {}
    extra: dict[Level, dict[str, Any]] = {
        Level.PATIENT: {"identity_key": str(number), "provisional": 0, "created_at": archive.clock()},
        Level.STUDY: {"patient_pk": number, "first_received_at": archive.clock()},
        Level.SERIES: {"study_pk": number, "created_at": archive.clock()},
        Level.IMAGE: {
            "series_pk": number, "state": "stored", "digest": "", "source": "", "received_at": archive.clock(),
        },
    }  # fmt: skip
    for level in Level:
        columns: dict[str, Any] = {"pk": number}
        attributes: dict[str, Any] = {}
        for attribute in ATTRIBUTES:
            if attribute.level is not level or (attribute.keyword not in row and attribute.match is not Match.UID):
                continue
            text = row.get(attribute.keyword, f"1.2.{number}" if number > 1 else "1.2")
            attributes[attribute.key] = element(attribute, text)
            if attribute.column:
                columns[attribute.column] = normalise(text.strip(" "), attribute.match)
        everything |= attributes
        conn.execute(TABLES[level].insert(), columns | extra[level] | {"attributes": orjson.dumps(attributes).decode()})
    return everything


@pytest.mark.req("REQ-DCM-32", "REQ-DCM-33")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(values(), min_size=1, max_size=4), asked=st.lists(keys(), min_size=1, max_size=2))
def test_the_database_finds_what_matching_row_by_row_finds(
    archive: Archive, rows: list[dict[str, str]], asked: list[Key]
) -> None:
    def search(conn: Any) -> tuple[list[int], list[int]] | None:
        for table in (instance, series, study, patient):
            conn.execute(delete(table))
        stored = {number: insert(conn, archive, number, row) for number, row in enumerate(rows, 1)}
        try:
            for key in asked:
                is_asking(key)
            expected = [number for number, row in stored.items() if row_meets(asked, row)]
        except InvalidQuery:
            with pytest.raises(InvalidQuery):
                list(find(conn, query))
            return None
        found = [row["0020000D"]["Value"][0] for row in find(conn, query)]
        return sorted(expected), sorted(int(uid.removeprefix("1.2").strip(".") or 1) for uid in found)

    query = Query(Level.IMAGE, tuple({key.tag: key for key in asked}.values()), want=frozenset({0x0020000D}))
    asked = list(query.keys)
    with archive.engine.connect() as conn:
        outcome = search(conn)
        conn.rollback()
    if outcome is not None:
        assert outcome[0] == outcome[1], [unicodedata.normalize("NFC", key.value) for key in asked]
