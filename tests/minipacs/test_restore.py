"""The drill of docs/operations.md: a copy of the database, then of the files, makes a whole archive again."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

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
