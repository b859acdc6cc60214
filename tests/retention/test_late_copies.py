"""A late copy of what was purged is refused at every door, until an import brings it back (C0F2, sheet 30 §9)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage
from sqlalchemy import func, select

from archive import accounts
from archive.access import Action, Actor, Door
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import InvalidRequest, NotAllowed
from archive.lifecycle.tombstones import restore_restored
from archive.media import import_paths
from archive.schema import instance, tombstone
from retention.tick import tick
from tests.api.conftest import serving
from tests.builders import part10
from tests.dicom_scp.conftest import running
from tests.retention.life import audited, image_files, move_clock, put_clock, receive_exam, rows

quick = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)  # the wire says the same on both


@pytest.fixture
def gone(archive: Archive) -> list[Dataset]:
    """The slices of an exam that was purged."""
    slices = receive_exam(archive, images=3)
    put_clock(archive, "2031-01-05T09:00:00")
    tick(archive)
    move_clock(archive, 30)
    assert tick(archive).purged == 1
    return slices


@pytest.fixture
def operator(actor: Actor) -> Actor:
    return Actor(user="paul", source="local", door=Door.COMMAND, may=actor.may)


@pytest.fixture
def medium(gone: list[Dataset], tmp_path: Path) -> Path:
    """Two of its three slices, on a medium."""
    folder = tmp_path / "medium"
    folder.mkdir()
    for number, ds in enumerate(gone[:2]):
        (folder / f"{number}.dcm").write_bytes(part10(ds))
    return folder


@quick
@pytest.mark.req("REQ-IHE-09", "REQ-DCM-92")
def test_c_store_is_answered_c0f2_and_says_why(settings: Settings, archive: Archive, gone: list[Dataset]) -> None:
    with running(settings) as server:
        ae = AE("CT1")
        ae.add_requested_context(CTImageStorage)
        assoc = ae.associate("127.0.0.1", server.port, ae_title="MINIPACS")
        status = assoc.send_c_store(gone[0])
        assoc.release()
    assert status.Status == 0xC0F2
    assert "purged at the end of its retention" in status.ErrorComment
    assert rows(archive, instance) == 0
    assert image_files(archive) == []
    refused = audited(archive, "110104", outcome=8)
    assert [(row.action, row.user, row.study) for row in refused] == [("C", "CT1", gone[0].StudyInstanceUID)]


@quick
@pytest.mark.req("REQ-IHE-09")
def test_stow_reports_failure_reason_c0f2(archive: Archive, actor: Actor, gone: list[Dataset]) -> None:
    token = accounts.create_token(archive, "robot", ("service",), actor=actor).secret
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/dicom"}
    with serving(archive) as url:
        answer = httpx.post(f"{url}/dicom-web/studies", headers=headers, content=part10(gone[0]))
    assert answer.status_code == 409
    (failed,) = answer.json()["00081198"]["Value"]
    assert failed["00081197"]["Value"] == [0xC0F2]
    assert failed["00081155"]["Value"] == [gone[0].SOPInstanceUID]
    assert image_files(archive) == []


def test_import_refuses_with_the_reason(archive: Archive, operator: Actor, medium: Path) -> None:
    summary = import_paths(archive, [medium], actor=operator)
    assert (summary.stored, len(summary.refused)) == (0, 2)
    assert "--restore-purged" in summary.refused[0].reason
    assert image_files(archive) == []


@pytest.mark.req("REQ-IHE-09")
def test_import_brings_back_what_it_is_told_to(
    archive: Archive, operator: Actor, gone: list[Dataset], medium: Path
) -> None:
    summary = import_paths(archive, [medium], actor=operator, restore_purged="demande du juge")
    assert (summary.stored, summary.refused) == (2, [])
    assert rows(archive, instance) == 2
    with archive.reading() as conn:
        left = list(conn.execute(select(tombstone.c.sop_instance_uid)).scalars())
    assert left == [gone[2].SOPInstanceUID]  # of what it did not bring back
    (lifted,) = audited(archive, "110103", user="paul")
    assert (lifted.action, lifted.patient, lifted.study) == ("C", "IPP1", gone[0].StudyInstanceUID)
    assert json.loads(lifted.detail)["reason"] == "demande du juge"
    assert [row.outcome for row in audited(archive, "110104", user="paul")] == [0]
    # kept as if it were new: announced again after ninety days
    assert tick(archive).announced == 0
    move_clock(archive, 90)
    assert tick(archive).announced == 1
    again = import_paths(archive, [medium], actor=operator, restore_purged="encore")
    assert again.already_stored == 2


def test_what_cannot_be_brought_back_stays_purged(
    archive: Archive, operator: Actor, gone: list[Dataset], medium: Path
) -> None:
    del gone[0].StudyInstanceUID
    (medium / "0.dcm").write_bytes(part10(gone[0]))
    summary = import_paths(archive, [medium], actor=operator, restore_purged="demande du juge")
    assert (summary.stored, len(summary.refused)) == (1, 1)
    with archive.reading() as conn:
        left = set(conn.execute(select(tombstone.c.sop_instance_uid)).scalars())
    assert left == {gone[0].SOPInstanceUID, gone[2].SOPInstanceUID}


@quick
def test_whoever_brings_back_says_why_and_may(archive: Archive, operator: Actor, medium: Path) -> None:
    with pytest.raises(InvalidRequest, match="reason"):
        import_paths(archive, [medium], actor=operator, restore_purged=" ")
    technologist = Actor(user="t", source="x", door=Door.COMMAND, may=frozenset({Action.STORE}))
    with pytest.raises(NotAllowed):
        import_paths(archive, [medium], actor=technologist, restore_purged="demande du juge")
    assert rows(archive, tombstone) == 3


def test_lifting_is_made_true_again_from_the_facts(
    archive: Archive, operator: Actor, gone: list[Dataset], medium: Path, settings: Settings
) -> None:
    (medium / "broken.dcm").write_bytes(part10(gone[2])[:400])  # its head names it; it cannot be read
    import_paths(archive, [medium], actor=operator, restore_purged="demande du juge")
    with archive.reading() as conn:
        kept = set(conn.execute(select(tombstone.c.sop_instance_uid)).scalars())
        before = conn.execute(select(func.count()).select_from(tombstone)).scalar_one()
    facts = [one for one in archive.journal.read() if one.kind == "restored"]
    assert facts
    for one in facts:
        archive.commit.run(lambda conn, one=one: restore_restored(conn, one.subject, one.body, one.at))
    with archive.reading() as conn:
        assert set(conn.execute(select(tombstone.c.sop_instance_uid)).scalars()) == kept
        assert conn.execute(select(func.count()).select_from(tombstone)).scalar_one() == before
    with open_archive(settings, process="again"):
        pass


@quick
def test_the_command_asks_for_a_reason(gone: list[Dataset], medium: Path, run: Callable[..., tuple[int, str]]) -> None:
    assert run("import", str(medium), "--restore-purged")[0] == 2
    assert run("import", str(medium), "--reason", "demande du juge")[0] == 2
    code, said = run("import", str(medium))
    assert code == 1
    assert "refused 2" in said
    code, said = run("import", str(medium), "--restore-purged", "--reason", "demande du juge", "--json")
    assert (code, json.loads(said)["stored"]) == (0, 2)
