"""`import`: files, folders and ZIPs, with a summary that explains each file that was not stored."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from pydicom.fileset import FileSet
from sqlalchemy import select

from archive.access import Actor, Door
from archive.core import Archive
from archive.errors import NotAllowed
from archive.media import import_paths
from archive.schema import instance
from tests.builders import ct_slice, part10


@pytest.fixture
def operator(actor: Actor) -> Actor:
    return Actor(user="paul", source="local", door=Door.COMMAND, may=actor.may)


def test_folders_files_and_zips_are_taken_in_and_tagged_as_media(
    archive: Archive, operator: Actor, tmp_path: Path
) -> None:
    slices = [ct_slice(number=number) for number in range(4)]
    (tmp_path / "cd" / "deep").mkdir(parents=True)
    (tmp_path / "cd" / "deep" / "a").write_bytes(part10(slices[0]))
    (tmp_path / "cd" / "b.dcm").write_bytes(part10(slices[1]))
    (tmp_path / "cd" / "README.txt").write_text("Bonjour")
    (tmp_path / "cd" / "empty").touch()
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("x/y.dcm", part10(slices[2]))
        bundle.writestr("x/z.dcm", part10(slices[2]))
    seen: list[tuple[int, int]] = []
    summary = import_paths(
        archive, [tmp_path / "cd", tmp_path / "c.zip"], actor=operator, progress=lambda *step: seen.append(step)
    )
    assert (summary.stored, summary.already_stored, summary.held) == (3, 1, 0)
    assert sorted(Path(left.path).name for left in summary.ignored) == ["README.txt", "empty"]
    assert summary.clean
    assert seen[-1] == (5, 5)
    with archive.engine.connect() as conn:
        assert set(conn.execute(select(instance.c.source)).scalars()) == {"media:paul"}


def test_a_second_run_stores_nothing_again(archive: Archive, operator: Actor, tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(part10(ct_slice()))
    assert import_paths(archive, [tmp_path / "a.dcm"], actor=operator).stored == 1
    again = import_paths(archive, [tmp_path / "a.dcm"], actor=operator)
    assert (again.stored, again.already_stored) == (0, 1)


def test_what_cannot_be_stored_is_refused_with_its_reason(archive: Archive, operator: Actor, tmp_path: Path) -> None:
    (tmp_path / "no-study.dcm").write_bytes(part10(ct_slice(StudyInstanceUID=None)))
    (tmp_path / "cut.dcm").write_bytes(part10(ct_slice())[:300])
    (tmp_path / "damaged.zip").write_bytes(b"PK\x03\x04" + bytes(60))
    first = ct_slice()
    (tmp_path / "one.dcm").write_bytes(part10(first))
    (tmp_path / "other.dcm").write_bytes(part10(ct_slice(number=9, SOPInstanceUID=first.SOPInstanceUID)))
    summary = import_paths(archive, [tmp_path], actor=operator)
    assert summary.stored == 1
    assert sorted(Path(left.path).name for left in summary.refused) == ["cut.dcm", "no-study.dcm"]
    assert len(summary.quarantined) == 1
    assert all(left.reason for left in summary.refused + summary.quarantined + summary.ignored)
    assert not summary.clean


def test_a_damaged_member_of_a_zip_does_not_hide_the_others(archive: Archive, operator: Actor, tmp_path: Path) -> None:
    path = tmp_path / "cd.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for number in range(4):
            bundle.writestr(f"{number}.dcm", part10(ct_slice(number=number)))
        inside = [member.header_offset for member in bundle.infolist()]
    raw = bytearray(path.read_bytes())
    raw[inside[1] + 60] ^= 0xFF  # the compressed bytes of one
    raw[inside[2] + 14] ^= 0xFF  # the local checksum of another is not looked at: the directory's counts
    raw[raw.rindex(b"PK\x01\x02") + 16] ^= 0xFF  # the checksum of the last
    path.write_bytes(raw)
    summary = import_paths(archive, [path], actor=operator)
    assert summary.stored == 2
    assert [left.path[-5:] for left in summary.refused] == ["1.dcm", "3.dcm"]


def test_what_is_no_file_does_not_stop_an_import(archive: Archive, operator: Actor, tmp_path: Path) -> None:
    (tmp_path / "cd").mkdir()
    os.mkfifo(tmp_path / "cd" / "pipe")
    (tmp_path / "cd" / "a.dcm").write_bytes(part10(ct_slice()))
    summary = import_paths(archive, [tmp_path / "cd"], actor=operator)
    assert (summary.stored, [Path(left.path).name for left in summary.ignored]) == (1, ["pipe"])


def test_a_folder_that_cannot_be_listed_is_said(
    archive: Archive, operator: Actor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cd" / "closed").mkdir(parents=True)
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root may read everything
    summary = import_paths(archive, [tmp_path / "cd"], actor=operator)
    assert [Path(left.path).name for left in summary.refused] == ["closed"]
    assert not summary.clean


def test_a_dicomdir_is_read_past(archive: Archive, operator: Actor, tmp_path: Path) -> None:
    medium = FileSet()
    for number in range(3):
        medium.add(ct_slice(number=number))
    medium.write(tmp_path / "cd")
    summary = import_paths(archive, [tmp_path / "cd"], actor=operator)
    assert summary.stored == 3
    assert [Path(left.path).name for left in summary.ignored] == ["DICOMDIR"]


def test_who_may_not_store_may_not_import(archive: Archive, tmp_path: Path) -> None:
    nobody = Actor(user="x", source="local", door=Door.COMMAND, may=frozenset())
    with pytest.raises(NotAllowed):
        import_paths(archive, [tmp_path], actor=nobody)
