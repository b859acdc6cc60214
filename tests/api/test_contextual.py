"""A contextual call (REQ-DRIM-09): another program opens the exam that it means, and never somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from archive.access import Actor
from archive.config import Settings
from archive.core import Archive, open_archive
from minipacs import viewer
from tests.api.conftest import PASSWORD
from tests.api.test_auth import rows
from tests.api.test_manifests import INS, NAMES, OID, WHO, configured
from tests.api.test_viewer import packed
from tests.builders import new_uid
from tests.hl7_listener.saying import ISSUER, cx, pid, say, store

pytestmark = pytest.mark.req("REQ-DRIM-09")
MINE = f"{ISSUER}&2.25.171717001&ISO"
NATIONAL = f"ASIP-SANTE-INS-NIR&{OID}&ISO"


@pytest.fixture
def archive(settings: Settings, tmp_path: Path) -> Iterator[Archive]:
    viewer.make(packed(), tmp_path / "viewer")
    told = configured(settings, api={**settings.api.model_dump(), "viewer": tmp_path / "viewer"})
    with open_archive(told, process="test") as opened:
        yield opened


@pytest.fixture
def exams(archive: Archive, actor: Actor) -> tuple[str, str, str]:
    """Two of somebody with an INS, the later first; one of somebody else."""
    say(archive, "A28", pid("R1", NAMES, **WHO))
    say(archive, "A40", pid("R1", NAMES), f"MRG|{cx('OLD')}")
    say(archive, "A28", pid("R2"))
    exams = (("R1", "20260106", "A0"), ("R1", "20250101", "A1"), ("R2", "20260106", "A2"))
    later, earlier, other = (
        store(
            *(archive, actor),
            PatientID=ipp,
            IssuerOfPatientID=ISSUER,
            StudyDate=day,
            AccessionNumber=number,
            SOPInstanceUID=new_uid(),
        )
        for ipp, day, number in exams
    )
    return later, earlier, other


def called(client: httpx.Client, **said: str) -> str | int:
    """The studies that are opened, or the status."""
    answer = client.get(f"/viewer/open?{urlencode(said)}")
    if answer.status_code != 303:
        return answer.status_code
    return httpx.URL(answer.headers["location"]).params["StudyInstanceUIDs"]


def test_the_exam_that_is_meant_opens_and_all_that_is_said_is_true_of_it(
    archive: Archive, client: httpx.Client, exams: tuple[str, str, str]
) -> None:
    later, earlier, other = exams
    assert called(client, studyInstanceUID=later) == later
    assert called(client, accessionNumber="A1", idCDA="1.2.3^4") == earlier
    for identifier, issuer in (("R1", MINE), ("R1", ISSUER), ("R1", "2.25.171717001"), ("OLD", MINE), (INS, NATIONAL)):
        assert called(client, PatientID=identifier, PatientIDIssuer=issuer) == f"{later},{earlier}", (
            identifier,
            issuer,
        )
        assert called(client, PatientID=identifier, PatientIDIssuer=issuer, studyInstanceUID=later) == later
        assert called(client, PatientID=identifier, PatientIDIssuer=issuer, studyInstanceUID=other) == 404
    assert called(client, PatientID="R1", PatientIDIssuer="NOBODY&1.2.3&ISO") == 404
    assert called(client, accessionNumber="A1", studyInstanceUID=later) == 404
    assert called(client, studyInstanceUID="1.2.3") == 404
    for nothing in ({}, {"PatientIDIssuer": MINE}, {"studyInstanceUID": later, "PatientIDIssuer": MINE}):
        assert called(client, **nothing) == 400
    assert called(client, studyInstanceUID="1" * 300) == 400
    archive.commit.run(lambda _conn: None)  # what was to be written within a second is written
    asked = [row["detail"]["query"] for row in rows(archive, event="110112") if "contextual_call" in str(row["detail"])]
    assert {"contextual_call": {"study_uid": later}} in asked


def test_the_log_in_comes_first_and_then_the_exam(
    stranger: httpx.Client, log_in: Callable[[str], httpx.Client], exams: tuple[str, str, str]
) -> None:
    address = f"/viewer/open?{urlencode({'studyInstanceUID': exams[0], 'PatientID': 'R1', 'PatientIDIssuer': MINE})}"
    answer = stranger.get(address)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/connexion?")
    wanted = httpx.URL(answer.headers["location"]).params["suite"]
    assert wanted == address
    assert log_in("sophie").get(address).status_code == 403  # a secretary sees no image
    log_in("anne")
    sent = {"name": "anne", "password": PASSWORD, "suite": wanted}
    entered = stranger.post("/connexion", data=sent)
    assert entered.headers["location"] == address
    opened = stranger.get(entered.headers["location"])
    assert opened.headers["location"] == f"/viewer/viewer?StudyInstanceUIDs={exams[0]}"
