"""The drill of docs/operations.md: a copy of the database, then of the files, makes a whole archive again."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.builders import ct_slice, part10
from tests.server import Server


def test_a_backup_is_restored_with_what_came_in_between(tmp_path: Path) -> None:
    original = Server(tmp_path / "original")
    original.folder.mkdir()
    files = [tmp_path / f"{number}.dcm" for number in (1, 2)]
    for number, file in enumerate(files):
        file.write_bytes(part10(ct_slice(number=number)))
    assert original.command("migrate").returncode == 0
    assert original.command("import", str(files[0])).returncode == 0

    restored = Server(tmp_path / "restored")
    restored.data_dir.mkdir(parents=True)
    with (
        sqlite3.connect(original.data_dir / "minipacs.sqlite3") as source,
        sqlite3.connect(restored.data_dir / "minipacs.sqlite3") as target,
    ):
        source.backup(target)
    assert original.command("import", str(files[1])).returncode == 0  # after the database, before the files
    shutil.copytree(original.data_dir / "hot", restored.data_dir / "hot", ignore=shutil.ignore_patterns("incoming"))

    assert restored.command("fsck", "--repair").returncode == 1  # it had something to settle
    assert restored.command("fsck").returncode == 0
    verified = restored.command("verify", "--all", "--json")
    assert verified.returncode == 0
    assert json.loads(verified.stdout)["checked"] == 2
    assert restored.command("verify-audit").returncode == 0


def test_a_lost_database_is_made_anew_from_files_and_journal(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    server.folder.mkdir()
    file = tmp_path / "1.dcm"
    ds = ct_slice()
    file.write_bytes(part10(ds))
    assert server.command("migrate").returncode == 0
    assert server.command("import", str(file)).returncode == 0
    held = server.command("hold", "add", "--study", str(ds.StudyInstanceUID), "--reason", "expertise", "--json")
    assert held.returncode == 0, held.stderr
    assert server.command("rebuild-index").returncode == 1  # it is not empty
    for path in server.data_dir.glob("minipacs.sqlite3*"):
        path.unlink()

    with pytest.raises(RuntimeError, match="rebuild-index"):
        server.start()
    rebuilt = server.command("rebuild-index", "--json")
    assert rebuilt.returncode == 0, rebuilt.stderr
    told = json.loads(rebuilt.stdout)
    assert (told["ok"], told["stored"], told["facts"]) == (True, 1, 1)
    assert server.command("fsck").returncode == 0
    assert server.command("verify-audit").returncode == 0
    listed = server.command("hold", "list", "--json")
    assert "expertise" in listed.stdout
    server.start()
    try:
        with server.client("radiologist") as client:
            found = client.get("/dicom-web/studies")
            assert [one["0020000D"]["Value"] for one in found.json()] == [[str(ds.StudyInstanceUID)]]
    finally:
        server.stop()
    assert server.command("retention", "resume", "--reason", "checked").returncode == 0


def test_what_cannot_be_taken_in_is_listed(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    folder = server.data_dir / "hot" / "2026" / "01" / "05" / "1015"
    folder.mkdir(parents=True)
    (folder / "a.dcm").write_bytes(part10(ct_slice()))
    (folder / "b.dcm").write_bytes(b"not DICOM")
    done = server.command("rebuild-index")
    assert done.returncode == 1
    assert "stored 1," in done.stdout
    assert "hot/2026/01/05/1015/b.dcm" in done.stdout


def test_a_backup_older_than_the_journal_is_brought_up_to_date_by_serving_it(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    server.folder.mkdir()
    file = tmp_path / "1.dcm"
    ds = ct_slice()
    file.write_bytes(part10(ds))
    assert server.command("migrate").returncode == 0
    assert server.command("import", str(file)).returncode == 0
    shutil.copy(server.data_dir / "minipacs.sqlite3", tmp_path / "backup.sqlite3")
    uid = str(ds.StudyInstanceUID)
    assert server.command("hold", "add", "--study", uid, "--reason", "expertise").returncode == 0
    for path in server.data_dir.glob("minipacs.sqlite3*"):
        path.unlink()
    shutil.copy(tmp_path / "backup.sqlite3", server.data_dir / "minipacs.sqlite3")

    refused = server.command("hold", "add", "--study", uid, "--reason", "another")
    assert refused.returncode == 3
    assert "older than the journal" in refused.stderr
    server.start()
    assert server.stop() == 0
    listed = server.command("hold", "list", "--json")
    assert "expertise" in listed.stdout
    assert server.command("hold", "add", "--study", uid, "--reason", "another").returncode == 0
    resumed = server.command("retention", "resume", "--reason", "all is there", "--json")
    assert "older than the journal" in resumed.stdout
