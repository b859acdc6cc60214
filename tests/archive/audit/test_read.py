"""For a patient: who saw what, when, from where, how; for a user: which patients (REQ-SEC-20)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from archive.access import EVERYTHING, Actor, Door
from archive.audit.read import list_rows, patients_of
from archive.audit.record import Event, record
from archive.core import Archive
from archive.errors import InvalidRequest

ANNE, PAUL, OTHER = "IPP1^^^HOPITAL", "IPP2^^^HOPITAL", "IPP1^^^CABINET"
START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
ACTS = [  # user, source, door, event, action, outcome, patient, study
    ("dr.martin", "10.0.0.7", Door.DESK, Event.INSTANCES_ACCESSED, "R", 0, ANNE, "1.1"),
    ("CT1", "10.0.0.8", Door.DICOM, Event.INSTANCES_TRANSFERRED, "C", 0, ANNE, "1.1"),
    ("dr.martin", "10.0.0.7", Door.DICOMWEB, Event.INSTANCES_TRANSFERRED, "R", 0, PAUL, "1.2"),
    ("accueil", "10.0.0.9", Door.DICOMWEB, Event.INSTANCES_TRANSFERRED, "R", 8, ANNE, "1.1"),
    ("dr.martin", "10.0.0.7", Door.DESK, Event.QUERY, "E", 0, None, None),
    ("drimbox", "10.0.0.10", Door.DICOMWEB, Event.EXPORT, "R", 0, OTHER, "1.3"),
]


@pytest.fixture
def day(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Six acts, an hour apart."""
    for hour, (user, source, door, event, action, outcome, patient, study) in enumerate(ACTS):
        monkeypatch.setattr(archive.time, "now", lambda hour=hour: START + timedelta(hours=hour))
        who = Actor(user=user, source=source, door=door, may=EVERYTHING)
        archive.commit.run(
            lambda conn, who=who, event=event, action=action, outcome=outcome, patient=patient, study=study: record(
                conn, who, event, action, outcome=outcome, patient=patient, study=study, detail={"n": 1}
            )
        )
    return archive


def listed(archive: Archive, **conditions: Any) -> list[int]:
    """Which of the acts are listed."""
    with archive.engine.connect() as conn:
        page = list_rows(conn, **conditions)
    assert page.next is None
    hours = [datetime.fromisoformat(str(item["time"])) - START for item in page.items]
    return [int(hour.total_seconds()) // 3600 for hour in hours]


@pytest.mark.req("REQ-SEC-20")
def test_for_a_patient_who_had_access_when_from_where_and_how(day: Archive) -> None:
    with day.engine.connect() as conn:
        items = list_rows(conn, patient=ANNE).items
        number = items[0]["id"]
        assert isinstance(number, int)
        assert list_rows(conn, number=number).items == items[:1]
    assert [(item["user"], item["source"], item["door"]) for item in items] == [
        ("accueil", "10.0.0.9", "dicomweb"),
        ("CT1", "10.0.0.8", "dicom"),
        ("dr.martin", "10.0.0.7", "desk"),
    ]
    assert items[0] == {
        "id": number,
        "time": "2026-01-05T11:00:00.000000Z",
        "event": "110104",
        "action": "R",
        "outcome": 8,
        "user": "accueil",
        "source": "10.0.0.9",
        "door": "dicomweb",
        "patient": ANNE,
        "study": "1.1",
        "detail": {"n": 1},
    }


@pytest.mark.req("REQ-SEC-20")
def test_for_a_user_the_patients(day: Archive) -> None:
    with day.engine.connect() as conn:
        seen = patients_of(conn, "dr.martin")
        later = patients_of(conn, "dr.martin", since=START + timedelta(hours=1))
    assert [(one.patient, one.rows, one.last) for one in seen] == [
        (PAUL, 1, START + timedelta(hours=2)),
        (ANNE, 1, START),
    ]
    assert [one.patient for one in later] == [PAUL]


@pytest.mark.parametrize(
    ("conditions", "acts"),
    [
        ({}, [5, 4, 3, 2, 1, 0]),
        ({"patient": "IPP1"}, [5, 3, 1, 0]),  # without issuer: every issuer's
        ({"patient": "IPP1^^^CABINET"}, [5]),
        ({"patient": "IPP"}, []),
        ({"patient": "IPP_"}, []),
        ({"user": "dr.martin"}, [4, 2, 0]),
        ({"user": "DR.MARTIN"}, []),
        ({"study": "1.1"}, [3, 1, 0]),
        ({"event": "110104"}, [3, 2, 1]),
        ({"event": "110104", "action": "C"}, [1]),
        ({"outcome": 8}, [3]),
        ({"since": START + timedelta(hours=4)}, [5, 4]),
        ({"until": START + timedelta(hours=1)}, [0]),
        ({"user": "dr.martin", "patient": ANNE}, [0]),
    ],
)
def test_conditions_narrow_the_list(day: Archive, conditions: dict[str, Any], acts: list[int]) -> None:
    assert listed(day, **conditions) == acts


def test_pages_follow_each_other(day: Archive) -> None:
    users: list[object] = []
    after: str | None = None
    pages = 0
    with day.engine.connect() as conn:
        while pages == 0 or after is not None:
            page = list_rows(conn, limit=2, after=after)
            users += [item["user"] for item in page.items]
            after, pages = page.next, pages + 1
    assert pages == 3
    assert users == [user for user, *_ in reversed(ACTS)]


@pytest.mark.parametrize(
    "wrong", [{"limit": 0}, {"limit": 1001}, {"after": "x"}, {"after": "-1"}, {"after": "9" * 30}, {"after": "²"}]
)
def test_strange_pages_are_refused(archive: Archive, wrong: dict[str, Any]) -> None:
    with archive.engine.connect() as conn, pytest.raises(InvalidRequest):
        list_rows(conn, **wrong)


def test_a_spoilt_detail_is_shown_as_it_is(day: Archive) -> None:
    with day.engine.connect().execution_options(minipacs_write=True) as conn:
        conn.execute(text("UPDATE audit SET detail = '{spoilt' WHERE outcome = 8"))
        conn.commit()
    with day.engine.connect() as conn:
        assert [item["detail"] for item in list_rows(conn, outcome=8).items] == ["{spoilt"]
