"""What a power cut leaves on the cold tier, and volumes that are away."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select, update

from archive.access import Actor
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.dicom.file_meta import FileMeta
from archive.errors import StorageFailed
from archive.ingest import Outcome, ingest
from archive.integrity import fsck, verify
from archive.journal import Kind, note
from archive.lifecycle.compute import compute_due
from archive.lifecycle.migrate import migrate
from archive.lifecycle.switch import switch
from archive.recovery import Swept, sweep
from archive.retrieve import select as select_stored
from archive.schema import instance, location
from archive.storage import marker
from tests.archive.lifecycle.studies import at, row_of, send
from tests.archive.test_ingest import MINUTE, files, receive
from tests.builders import ct_slice, part10

SMOOTH = np.add.outer(np.arange(64), np.arange(64)).astype("<u2").tobytes()


def everything(archive: Archive) -> Swept:
    return sweep(archive, older_than=timedelta(seconds=-1), look_back=None)


def stray(archive: Archive, content: bytes) -> Path:
    """A file of the cold tier that nobody was told about."""
    path = Path(archive.cold.path("2026/01/05/1015/stray.dcm"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def cold_files(archive: Archive) -> list[Path]:
    return sorted(archive.cold.root.rglob("*.dcm"))


@pytest.fixture
def aged(archive: Archive) -> Archive:
    """An archive whose one study is in cold storage: an image as a lossy copy, one as it came."""
    at(archive, "2026-01-05")
    for number, pixels in ((1, {"PixelData": SMOOTH}), (2, {})):
        assert send(archive, "old", "20220103", rows=64, columns=64, number=number, **pixels) is Outcome.STORED
    compute_due(archive)
    assert migrate(archive, row_of(archive, "old").pk).grace_until is not None
    return archive


def switched(archive: Archive) -> Archive:
    at(archive, "2026-04-20")
    compute_due(archive)
    done = switch(archive, row_of(archive, "old").pk)
    assert (done.replaced, done.moved) == (1, 1)
    return archive


def test_both_tiers_verify_and_one_altered_byte_in_cold_storage_is_named(aged: Archive) -> None:
    assert (verify(aged, everything=True).checked, fsck(aged).findings) == (4, [])
    archive = switched(aged)
    assert verify(archive, everything=True).findings == fsck(archive).findings == []
    for path in cold_files(archive):
        path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    assert len(verify(archive, everything=True).findings) == 2


def test_a_lost_cold_copy_is_a_row_without_bytes(aged: Archive) -> None:
    for path in cold_files(aged):
        path.unlink()
    assert len(fsck(aged, repair=True).findings) == 2
    with aged.reading() as conn:
        states = conn.execute(select(location.c.tier, location.c.state).order_by(location.c.pk)).all()
    assert sorted(tuple(row) for row in states) == [("cold", "damaged")] * 2 + [("hot", "ok")] * 2


def test_a_check_leaves_what_is_being_removed_alone(aged: Archive) -> None:
    """Law 2: no verdict brings a copy back whose removal has begun."""
    going = update(location).where(location.c.tier == "hot").values(state="purging")
    aged.commit.run(lambda conn: conn.execute(going))
    for path in files(aged):
        path.unlink()
    assert verify(aged, everything=True).findings == fsck(aged, repair=True).findings == []
    with aged.reading() as conn:
        found = conn.execute(select(location.c.state).where(location.c.tier == "hot")).scalars().all()
    assert found == ["purging", "purging"]


def test_a_stray_cold_copy_goes_when_a_good_copy_stands(archive: Archive, actor: Actor) -> None:
    ds = ct_slice()
    ingest(archive, receive(archive, ds), actor=actor)
    path = stray(archive, files(archive)[0].read_bytes())
    assert [one.reason for one in fsck(archive).findings] == ["bytes without a row, on the cold tier"]
    assert sweep(archive, look_back=None) == Swept()  # too young: its COMMIT may follow
    assert everything(archive) == Swept(removed=1)
    assert not path.exists()
    assert files(archive)[0].exists()


def test_a_stray_cold_copy_stays_when_the_other_copy_is_no_good_and_a_repair_takes_it_in(
    archive: Archive, actor: Actor
) -> None:
    ds = ct_slice()
    ingest(archive, receive(archive, ds), actor=actor)
    hot = files(archive)[0]
    path = stray(archive, hot.read_bytes())
    hot.write_bytes(hot.read_bytes()[:-1] + b"\x55")  # nobody has noticed yet
    assert everything(archive) == Swept(kept=1)
    assert path.exists()
    assert fsck(archive, repair=True).repaired == 1
    verify(archive, everything=True)
    (one,) = select_stored(archive, instance_uids=[str(ds.SOPInstanceUID)])
    assert (one.tier, one.path) == ("cold", str(path))
    assert fsck(archive).findings == []


def test_a_stray_cold_copy_of_nothing_that_is_known_stays_and_a_repair_takes_it_in(archive: Archive) -> None:
    ds = ct_slice()
    path = stray(archive, part10(ds))
    assert everything(archive) == Swept(kept=1)
    assert fsck(archive, repair=True).repaired == 1
    (one,) = select_stored(archive, instance_uids=[str(ds.SOPInstanceUID)])
    assert (one.tier, one.path) == ("cold", str(path))
    with archive.reading() as conn:
        assert conn.execute(select(instance.c.received_at)).scalar_one() == MINUTE


def test_other_content_on_the_cold_tier_is_kept_and_not_taken_in(archive: Archive, actor: Actor) -> None:
    ds = ct_slice()
    ingest(archive, receive(archive, ds), actor=actor)
    path = stray(archive, part10(ct_slice(number=9, SOPInstanceUID=ds.SOPInstanceUID)))
    assert everything(archive) == Swept(kept=1)
    report = fsck(archive, repair=True)
    assert (len(report.findings), report.repaired) == (1, 0)
    assert path.exists()


@pytest.mark.parametrize("original", ["good", "damaged", "gone"])
def test_a_stray_lossy_copy_goes_only_while_its_original_is_good(aged: Archive, original: str) -> None:
    """Migration had named it when the power failed, before its COMMIT."""
    (derived,) = [path for path in cold_files(aged) if b"1.2.840.10008.1.2.4.91" in path.read_bytes()[:500]]
    content = derived.read_bytes()
    with aged.reading() as conn:
        row = conn.execute(select(location).where(location.c.tier == "cold").order_by(location.c.file_bytes)).first()
    assert row is not None
    if original == "gone":
        switched(aged)
    aged.commit.run(lambda conn: conn.execute(location.delete().where(location.c.pk == row.pk)))
    if original == "damaged":
        for path in files(aged):
            path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    swept = everything(aged)
    assert (swept.removed, swept.kept) == ((1, 0) if original == "good" else (0, 1))
    assert derived.exists() is (original != "good")
    derived.write_bytes(content)


def test_the_sweep_removes_what_never_got_a_name_on_either_tier(archive: Archive) -> None:
    for tier in (archive.hot, archive.cold):
        incoming = tier.receive(FileMeta("1.2", "1.2.3", "1.2.840.10008.1.2.1"), at=archive.clock())
        incoming.write(b"half")
        incoming.close()
        old = archive.real_clock().timestamp() - 3700
        os.utime(incoming.path, (old, old))
    assert sweep(archive) == Swept(removed=2)


@pytest.mark.parametrize("tier", ["hot", "cold"])
@pytest.mark.parametrize("check", [sweep, lambda a: verify(a, everything=True), lambda a: fsck(a, repair=True)])
def test_nothing_is_called_damaged_because_a_volume_is_away(
    aged: Archive, tier: str, check: Callable[[Archive], object]
) -> None:
    """Its mount point is an empty folder."""
    root = aged.tier(tier).root
    root.rename(root.with_name("elsewhere"))
    (root / "incoming").mkdir(parents=True)
    with pytest.raises(StorageFailed, match="mounted"):
        check(aged)
    with aged.reading() as conn:
        assert set(conn.execute(select(location.c.state)).scalars()) == {"ok"}
    shutil.rmtree(root)
    root.with_name("elsewhere").rename(root)
    assert fsck(aged).findings == []


def test_a_resend_does_not_bring_an_original_back_because_the_cold_volume_is_away(aged: Archive, actor: Actor) -> None:
    at(aged, "2026-01-05")
    contents = {path: path.read_bytes() for path in files(aged)}
    archive = switched(aged)
    archive.cold.root.rename(archive.cold.root.with_name("elsewhere"))
    archive.cold.root.mkdir()
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    swept = everything_hot(archive)
    assert swept == 2
    with archive.reading() as conn:
        assert sorted(conn.execute(select(instance.c.state)).scalars()) == ["replaced", "stored", "stored"]
        assert set(conn.execute(select(location.c.state)).scalars()) == {"ok"}


def everything_hot(archive: Archive) -> int:
    """Files of the hot tier that are refused for now."""
    from archive.access import SYSTEM
    from archive.errors import Unavailable
    from archive.ingest import adopt

    refused = 0
    for path in files(archive):
        try:
            adopt(archive, str(path.relative_to(archive.hot.root)), actor=SYSTEM)
        except Unavailable:
            refused += 1
    return refused


def test_a_tier_of_an_older_version_gets_its_sign_and_a_new_one_too(archive: Archive, settings: Settings) -> None:
    signs = [tier.root / marker.NAME for tier in (archive.hot, archive.cold)]
    assert all(sign.is_file() for sign in signs)
    archive.close()
    for sign in signs:
        sign.unlink()
    Path(settings.hot_dir / "2026").mkdir()
    with open_archive(settings, process="test"):
        assert all(sign.is_file() for sign in signs)


def test_a_lost_journal_is_written_anew_from_the_rows(archive: Archive) -> None:
    for number in range(3):
        archive.commit.run(lambda conn, number=number: note(conn, Kind.HOLD, f"h{number}", {}, at=MINUTE))
    before = archive.journal.read()
    archive.close()
    with open_archive(archive.settings, process="test") as again:
        (path,) = again.journal.folder.iterdir()
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(lines[0] + lines[1].replace(b'"h1"', b'"h7"') + lines[2])
        assert [one.reason for one in fsck(again).findings] == ["fact 2 has no line in the journal"]
        assert fsck(again, repair=True).repaired == 1
        path.unlink()
        assert fsck(again, repair=True).repaired == 3
        assert fsck(again).findings == []
        assert again.journal.read() == before
