"""The command line: exit codes, words, JSON, and that it answers at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from archive.schema import REVISION
from minipacs import settings_page
from minipacs.commands.serve import masked
from tests.builders import ct_slice, part10
from tests.server import Server

ROOT = Path(__file__).parents[2]


@pytest.fixture
def archive_folder(tmp_path: Path) -> Server:
    """Settings of an archive whose server is not running."""
    server = Server(tmp_path / "server")
    server.folder.mkdir()
    return server


@pytest.fixture
def migrated(archive_folder: Server) -> Server:
    assert archive_folder.command("migrate").returncode == 0
    return archive_folder


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_does_not_load_the_database_nor_dicom() -> None:
    assert not loaded_by("minipacs.cli") & {"sqlalchemy", "pydicom", "pynetdicom", "numpy", "fastapi"}


def test_the_supervisor_stays_small() -> None:
    assert not loaded_by("minipacs.supervise") & {"sqlalchemy", "pydicom", "pynetdicom", "numpy", "migrations"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["serve", "--only", "fhir"],
        ["verify", "--all", "--study", "1.2"],
        ["import"],
        ["import", "x"],
    ],
)
def test_wrong_usage_is_code_two(archive_folder: Server, arguments: list[str]) -> None:
    done = archive_folder.command(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[dicom]\nprot = 104\n", "dicom.prot; did you mean dicom.port?"),
        ("[dicon]\nport = 104\n", "dicon; did you mean dicom?"),
        ('[dicom.peers.CT1]\nhots = "10.0.0.1"\n', "did you mean dicom.peers.CT1.host?"),
        ("[dicom]\nmax_pdu = 1\n", "dicom.max_pdu"),
        ("dicom = \n", "not TOML"),
    ],
)
@pytest.mark.req("REQ-FACE-03")
def test_a_wrong_setting_is_refused_by_name(archive_folder: Server, line: str, said: str) -> None:
    file = archive_folder.folder / "wrong.toml"
    file.write_text(line)
    done = archive_folder.command("serve", "--config", str(file))
    assert done.returncode == 1
    assert said in done.stderr
    assert not archive_folder.data_dir.exists()


def test_an_unknown_variable_is_refused_by_name(archive_folder: Server) -> None:
    archive_folder.environment["MINIPACS_DICOM__PROT"] = "104"
    done = archive_folder.command("check-config")
    assert done.returncode == 1
    assert "did you mean dicom.port?" in done.stderr


def test_check_config_gives_advice_and_hides_passwords(archive_folder: Server) -> None:
    archive_folder.database_url = "postgresql+psycopg://minipacs:secret@db/minipacs"
    archive_folder.environment |= {"MINIPACS_TEST_MODE": "true"}
    done = archive_folder.command("check-config", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["ok"] is True
    assert any("test_mode" in line for line in said["advice"])
    assert said["settings"]["database"]["url"] == "postgresql+psycopg://minipacs:***@db/minipacs"
    assert "secret" not in done.stdout + done.stderr


def test_check_config_finds_a_full_disk_and_one_port_for_two(archive_folder: Server) -> None:
    archive_folder.environment |= {"MINIPACS_STORAGE__RESERVE_BYTES": str(1 << 60)}
    archive_folder.api_port = archive_folder.dicom_port
    done = archive_folder.command("check-config")
    assert done.returncode == 1
    assert "storage.reserve_bytes" in done.stdout
    assert "dicom.port and api.port" in done.stdout


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////data/minipacs.sqlite3", "sqlite:////data/minipacs.sqlite3"),
        ("postgresql+psycopg://u:p@ss@db/x", "postgresql+psycopg://u:***@db/x"),
        ("postgresql+psycopg://u@db/x", "postgresql+psycopg://u@db/x"),
    ],
)
def test_a_database_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_migrate_says_what_it_did(archive_folder: Server) -> None:
    first, second = archive_folder.command("migrate"), archive_folder.command("migrate")
    assert (first.returncode, second.returncode) == (0, 0)
    assert f"from empty to {REVISION}" in first.stdout
    assert second.stdout.strip() == f"The schema is {REVISION}."


def test_a_command_on_an_empty_database_says_what_to_run(archive_folder: Server) -> None:
    done = archive_folder.command("verify")
    assert done.returncode == 1
    assert "minipacs migrate" in done.stderr
    assert "Traceback" not in done.stderr


def test_import_tells_what_became_of_each_file(migrated: Server, tmp_path: Path) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    slices = [ct_slice(number=number) for number in (1, 2)]
    for number, ds in enumerate(slices):
        (folder / f"{number}.dcm").write_bytes(part10(ds))
    (folder / "readme.txt").write_text("not DICOM")
    first = migrated.command("import", str(folder), "--json")
    assert first.returncode == 0, first.stderr
    said = json.loads(first.stdout)
    assert (said["stored"], said["already_stored"], said["quarantined"], said["refused"]) == (2, 0, [], [])
    assert [Path(one["path"]).name for one in said["ignored"]] == ["readme.txt"]

    changed = ct_slice(number=1, SOPInstanceUID=slices[0].SOPInstanceUID, PatientName="AUTRE^Nom")
    (folder / "3.dcm").write_bytes(part10(changed))
    second = migrated.command("import", str(folder))
    assert second.returncode == 1
    assert "already there 2" in second.stdout
    assert "quarantined 1" in second.stdout
    assert "AUTRE" not in second.stdout + second.stderr


def test_verify_and_fsck_name_what_is_wrong(migrated: Server, tmp_path: Path) -> None:
    file = tmp_path / "one.dcm"
    file.write_bytes(part10(ct_slice()))
    assert migrated.command("import", str(file)).returncode == 0
    for command in (["verify"], ["verify", "--all"], ["fsck"]):
        done = migrated.command(*command, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["checked"] == 1

    kept = next(path for path in migrated.data_dir.rglob("*.dcm"))
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    done = migrated.command("verify", "--all")
    assert done.returncode == 1
    assert kept.name in done.stdout

    kept.unlink()
    assert migrated.command("fsck").returncode in (0, 1)
    stray = kept.with_name("00000000-0000-4000-8000-000000000000.dcm")
    stray.write_bytes(part10(ct_slice()))
    done = migrated.command("fsck", "--repair", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["repaired"] >= 1
    assert migrated.command("fsck").returncode == 0


def test_work_items_are_listed(migrated: Server, tmp_path: Path) -> None:
    file = tmp_path / "one.dcm"
    file.write_bytes(part10(ct_slice(PatientID=None)))
    assert migrated.command("import", str(file)).returncode == 0
    items = json.loads(migrated.command("work-items", "list", "--json").stdout)["items"]
    assert [(item["kind"], item["state"]) for item in items] == [("unknown_patient", "open")]
    assert migrated.command("work-items", "list", "--kind", "nothing").returncode == 2
    assert "0 items" in migrated.command("work-items", "list", "--state", "closed").stdout


def test_the_clock_is_fixed_outside_the_test_bed(migrated: Server) -> None:
    done = migrated.command("testbed", "clock", "advance", "1d")
    assert done.returncode == 1
    assert "test_mode" in done.stderr


def test_the_clock_takes_dates_that_are_dates(migrated: Server) -> None:
    migrated.environment["MINIPACS_TEST_MODE"] = "true"
    assert migrated.command("testbed", "clock", "set", "yesterday").returncode == 2
    assert migrated.command("testbed", "clock", "advance", "soon").returncode == 1
    done = migrated.command("testbed", "clock", "set", "2026-01-05", "--json")
    assert json.loads(done.stdout)["now"].startswith("2026-01-05T00:00")


def test_the_page_of_settings_is_current() -> None:
    """Every key is documented (sheet 60 §3); `make docs` writes the page."""
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings_page.page()
