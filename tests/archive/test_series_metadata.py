"""Metadata of series that lie ready are what would be made from the files now, whatever happened since (the slow way,
`told_of` of each instance, is the oracle here); and they are told without opening a file."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from pydicom.dataset import Dataset
from sqlalchemy import func, update
from sqlalchemy import select as sql_select

from archive import series_metadata
from archive.access import EVERYTHING, Actor, Door
from archive.core import Archive
from archive.dicom import json, lines
from archive.dicom.file_meta import data_set_offset
from archive.dicom.syntaxes import EXPLICIT_LE
from archive.dicom.tree import parse
from archive.ingest import Outcome, ingest
from archive.instance import CopyState
from archive.lifecycle.purge import purge_study
from archive.outgoing import Outgoing
from archive.rejecting import revoke_note
from archive.retrieve import Stored, named
from archive.schema import instance, location, series
from archive.schema import series_metadata as kept
from archive.series_metadata import prepare, tag, told, told_of
from archive.storage.part10 import Part10
from retention.preparing import Preparing
from retention.tick import tick
from tests.archive.dicom.correcting import INS, correct, element, pn
from tests.archive.index.filling import fill
from tests.archive.index.test_merged import merge
from tests.archive.lifecycle.aging import migrated, noise, received, switched
from tests.archive.lifecycle.aging import slices as passing
from tests.builders import ct_slice, key_object, new_uid, part10
from tests.retention.life import put_clock, receive_exam, study_row

UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
STUDY, SERIES = new_uid("study"), new_uid("series")  # those of `ct_slice`
SERVICE = "http://pacs/dicom-web"
CT1 = Actor("CT1", "127.0.0.1", Door.DICOM, EVERYTHING)
QUALITY = ("113001", "Rejected for Quality Reasons")
SAFETY = ("113037", "Rejected for Patient Safety Reasons")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose metadata are read to be kept."""
    seen: list[str] = []
    stored_line = Outgoing.stored_line

    def read(one: Outgoing, *how: Any) -> bytes:
        seen.append(one.stored.path)
        return stored_line(one, *how)

    monkeypatch.setattr(Outgoing, "stored_line", read)
    return seen


def settled(archive: Archive) -> None:
    """What nobody awaits is written."""
    archive.commit.run(lambda conn: None)


def standing(archive: Archive, series_uid: str = "", *, quality: bool = False) -> list[Stored]:
    return [one for one in named(archive, STUDY, series_uid, quality=quality) if one.stands()]


def body(archive: Archive, series_uid: str = "", *, quality: bool = False) -> bytes:
    """What is told now, once it was compared with what the files say."""
    found = standing(archive, series_uid, quality=quality)
    slowly = b"[" + b",\n".join(told_of(archive, one, SERVICE) for one in found) + b"]"
    answer = b"".join(told(archive, found, SERVICE))
    assert orjson.loads(answer) == orjson.loads(slowly)
    assert answer == slowly
    settled(archive)
    assert b"".join(told(archive, found, SERVICE)) == slowly  # from what was kept
    return answer


def quickly(archive: Archive, reads: list[str], series_uid: str = "") -> int:
    """How many files are opened for what is told."""
    found = standing(archive, series_uid)
    reads.clear()
    b"".join(told(archive, found, SERVICE))
    settled(archive)
    return len(reads)


def kept_rows(archive: Archive) -> int:
    with archive.reading() as conn:
        return int(conn.execute(sql_select(func.count()).select_from(kept)).scalar_one())


def series_pk(archive: Archive, uid: str = SERIES) -> int:
    with archive.reading() as conn:
        return int(conn.execute(sql_select(series.c.pk).where(series.c.series_instance_uid == uid)).scalar_one())


def copies(archive: Archive, state: CopyState, of: CopyState, ds: Dataset) -> None:
    def write(conn: Any) -> None:
        mine = sql_select(instance.c.pk).where(instance.c.sop_instance_uid == ds.SOPInstanceUID).scalar_subquery()
        conn.execute(update(location).where(location.c.instance_pk == mine, location.c.state == of).values(state=state))

    archive.commit.run(write)


def send(archive: Archive, ds: Dataset) -> Outcome:
    file = Part10(archive.hot, at=archive.real_clock())
    file.feed(part10(ds))
    return ingest(archive, file.finish(), actor=CT1)


def test_files_are_read_once(archive: Archive, actor: Actor, reads: list[str]) -> None:
    fill(archive, actor, *(ct_slice(number=number) for number in (3, 1, 2)))
    assert quickly(archive, reads) == 3
    assert quickly(archive, reads) == 0
    assert [one["00200013"]["Value"] for one in orjson.loads(body(archive))] == [[1], [2], [3]]
    fill(archive, actor, ct_slice(number=4))
    assert quickly(archive, reads) == 1  # the late one
    assert quickly(archive, reads) == 0


def test_a_study_is_its_series_one_after_the_other(archive: Archive, actor: Actor, reads: list[str]) -> None:
    other = new_uid("other")
    fill(archive, actor, *(ct_slice(number=number) for number in (1, 2)))
    fill(archive, actor, ct_slice(SeriesInstanceUID=other, SeriesNumber=7, SOPInstanceUID=new_uid("o")))
    assert quickly(archive, reads, other) == 1
    assert quickly(archive, reads) == 2
    found = orjson.loads(body(archive))
    assert [one["0020000E"]["Value"][0] for one in found] == [SERIES, SERIES, other]
    assert orjson.loads(body(archive, SERIES)) == found[:2]


@pytest.mark.req("REQ-DCM-70")
def test_corrections_are_told_without_reading_a_file_again(archive: Archive, actor: Actor, reads: list[str]) -> None:
    fill(archive, actor, *(ct_slice(number=number) for number in (1, 2)))
    before = body(archive)
    correct(archive, "IPP1", {"00100010": pn("MARTIN^Zoé"), "00101002": element("SQ", INS)}, accession="A2002")
    assert quickly(archive, reads) == 0
    after = orjson.loads(body(archive))
    assert {one["00100010"]["Value"][0]["Alphabetic"] for one in after} == {"MARTIN^Zoé"}
    assert {one["04000561"]["Value"][0]["04000564"]["vr"] for one in after} == {"LO"}
    correct(archive, "IPP1", {"00100010": pn("DUPONT^Anne")})  # what they said themselves
    assert body(archive) != before  # the accession number is still another
    merged = ct_slice(StudyInstanceUID=new_uid("theirs"), SeriesInstanceUID=new_uid("their series"),
                      SOPInstanceUID=new_uid("their image"), PatientID="IPP2")  # fmt: skip
    fill(archive, actor, merged)
    merge(archive, "IPP1", "IPP2")
    assert quickly(archive, reads) == 0
    assert {one["00100020"]["Value"][0] for one in orjson.loads(body(archive))} == {"IPP2"}


@pytest.mark.req("REQ-IHE-09")
def test_what_is_rejected_is_told_to_whoever_may_see_it_alone(archive: Archive) -> None:
    blurred, dangerous, good = (ct_slice(number=number) for number in (1, 2, 3))
    for ds in (blurred, dangerous, good):
        send(archive, ds)
    assert len(orjson.loads(body(archive))) == 3
    note = key_object(blurred, title=QUALITY)
    send(archive, note)
    send(archive, key_object(dangerous, title=SAFETY))
    for _ in range(2):
        seen = orjson.loads(body(archive, SERIES))
        assert [one["00080018"]["Value"][0] for one in seen] == [good.SOPInstanceUID]
        judged = orjson.loads(body(archive, SERIES, quality=True))
        assert [one["00080018"]["Value"][0] for one in judged] == [blurred.SOPInstanceUID, good.SOPInstanceUID]
    revoke_note(archive, note.SOPInstanceUID, reason="lisible", actor=CT1)
    assert len(orjson.loads(body(archive, SERIES))) == 2


@pytest.mark.req("REQ-DCM-83")
def test_lossy_copies_are_told_of_when_they_stand_in_the_originals_stead(archive: Archive) -> None:
    received(archive, *passing(2), noise())
    before = orjson.loads(body(archive))
    assert migrated(archive).derived == 2
    assert orjson.loads(body(archive)) == before  # in grace
    assert switched(archive).stays is None
    after = orjson.loads(body(archive))
    assert len(after) == 3
    assert sum("00082111" in one for one in after) == 2  # Derivation Description
    assert orjson.loads(body(archive, SERIES)) == [one for one in after if one["0020000E"]["Value"] == [SERIES]]


@pytest.mark.parametrize("seed", range(2))
def test_whatever_happens_in_whatever_order(archive: Archive, actor: Actor, seed: int) -> None:
    """A walk at random; equal tags stand for equal answers."""
    random, numbers = Random(seed), count(1)
    images: list[Dataset] = []
    notes: dict[str, Dataset] = {}
    tags: dict[str, bytes] = {}

    def arrive() -> None:
        number = next(numbers)
        where = {"SeriesInstanceUID": new_uid("second"), "SeriesNumber": 1} if number % 3 == 0 else {}
        images.append(ct_slice(number=random.randrange(50), SOPInstanceUID=new_uid(f"walk{number}"), **where))
        fill(archive, actor, images[-1])

    def rename() -> None:
        correct(archive, "IPP1", {"00100010": pn(random.choice(["MARTIN^Zoé", "DUPONT^Anne", "LE GALL^A"]))})

    def hide() -> None:
        ds = random.choice([one for one in images if one.SOPInstanceUID not in notes] or images[:1])
        if ds.SOPInstanceUID not in notes:
            notes[ds.SOPInstanceUID] = key_object(ds, title=QUALITY, SOPInstanceUID=new_uid(f"note{next(numbers)}"))
            send(archive, notes[ds.SOPInstanceUID])

    def show() -> None:
        if notes:
            _, note = notes.popitem()
            revoke_note(archive, note.SOPInstanceUID, reason="lisible", actor=CT1)

    def damage() -> None:
        copies(archive, CopyState.DAMAGED, CopyState.OK, random.choice(images))

    def mend() -> None:
        copies(archive, CopyState.OK, CopyState.DAMAGED, random.choice(images))

    arrive()
    for _ in range(25):
        random.choice([arrive, arrive, rename, hide, show, damage, mend])()
        for quality in (False, True):
            answer = body(archive, quality=quality)
            mark = tag(archive, standing(archive, quality=quality), SERVICE)
            assert tags.setdefault(mark, answer) == answer
    assert len(set(tags.values())) > 5


def test_a_resend_in_place_of_a_lost_copy_is_read(archive: Archive, actor: Actor, reads: list[str]) -> None:
    ds = ct_slice()
    fill(archive, actor, ds)
    assert quickly(archive, reads) == 1
    Path(standing(archive)[0].path).unlink()
    assert standing(archive) == []
    fill(archive, actor, ds)
    assert quickly(archive, reads) == 1
    body(archive)


def test_what_cannot_be_followed_is_named(archive: Archive, actor: Actor) -> None:
    fill(archive, actor, ct_slice(number=1), ct_slice(number=2))
    [one, _] = standing(archive)
    content = bytearray(Path(one.path).read_bytes())
    place = content.index(b"\x08\x00\x60\x00CS")  # Modality: its length now leads beyond the end of the data set
    content[place + 4 : place + 8] = b"OB\0\0"
    Path(one.path).write_bytes(content)
    assert [len(said) > 5 for said in orjson.loads(body(archive))] == [False, True]


@pytest.mark.req("REQ-DCM-92")
def test_nothing_stays_of_what_is_purged(archive: Archive) -> None:
    put_clock(archive, "2026-01-05T09:00:00")
    receive_exam(archive, images=2)
    body(archive)
    found = standing(archive)
    late = series_metadata._Writer()
    for one in found:
        late.add(series_metadata._file(archive, one), "CT1", b"{}")
    assert kept_rows(archive) == 1
    put_clock(archive, "2031-01-05T09:00:00")
    assert tick(archive).announced == 1
    put_clock(archive, "2031-02-04T09:00:00")
    assert purge_study(archive, int(study_row(archive, STUDY).pk)) is None
    assert kept_rows(archive) == 0
    archive.commit.run(partial(series_metadata._keep, series_uid=SERIES, done=late.done()))
    assert kept_rows(archive) == 0


def test_lines_of_a_file_that_is_gone_are_not_kept(archive: Archive, actor: Actor) -> None:
    first, second = (ct_slice(number=number) for number in (1, 2))
    fill(archive, actor, first, second)
    late = series_metadata._Writer()
    for one in standing(archive):
        late.add(series_metadata._file(archive, one), "CT1", b"{}")
    copies(archive, CopyState.PURGING, CopyState.OK, first)
    archive.commit.run(partial(series_metadata._keep, series_uid=SERIES, done=late.done()))
    assert kept_rows(archive) == 0


def test_lines_that_another_program_wrote_are_made_anew(archive: Archive, actor: Actor, reads: list[str]) -> None:
    fill(archive, actor, ct_slice())
    body(archive)
    archive.commit.run(lambda conn: conn.execute(update(kept).values(form="0", lines=b"?", sources=b"?")))
    assert quickly(archive, reads) == 1
    assert quickly(archive, reads) == 0
    body(archive)


def test_what_is_too_much_to_keep_is_read_each_time(
    archive: Archive, actor: Actor, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series_metadata, "MOST_BYTES", 100)
    fill(archive, actor, ct_slice())
    body(archive)
    assert kept_rows(archive) == 0
    assert quickly(archive, reads) == 1


def test_a_change_of_what_lines_say_is_a_change_of_their_form(tmp_path: Path) -> None:
    """Whoever changes `archive.dicom.json` raises FORM, and notes the digest: kept lines would tell the old."""
    ds = ct_slice(number=1, PatientName="LEFÈVRE^Anaïs", **dict.fromkeys(UIDS, "1.2.3"))
    ds.add_new(0x00091010, "UN", b"\1\2")
    ds.add_new(0x00189810, "FD", 0.5)
    ds.add_new(0x00281201, "OW", bytes(2048))
    ds.add_new(0x00280106, "US or SS", 7)
    path = tmp_path / "one.dcm"
    path.write_bytes(part10(ds))
    offset = data_set_offset(str(path))
    said = json.metadata(str(path), data_set_offset=offset, transfer_syntax_uid=EXPLICIT_LE, bulk_uri=lambda at: at)
    digest = hashlib.sha256(orjson.dumps(said)).hexdigest()[:16]
    assert (series_metadata.FORM.split()[0], digest) == ("1", "56d9bfb9765ed357")


# -- in the background --------------------------------------------------------------------------------------------


def test_a_series_is_made_ready_when_it_is_quiet(archive: Archive, actor: Actor, reads: list[str]) -> None:
    fill(archive, actor, ct_slice(number=1), ct_slice(number=2))
    waiting = Preparing(archive, threading.Event(), quiet_seconds=3600)
    waiting.look()
    assert kept_rows(archive) == 0
    quiet = Preparing(archive, threading.Event(), quiet_seconds=0)
    quiet.look()
    settled(archive)
    assert (kept_rows(archive), len(reads)) == (1, 2)
    quiet.look()  # nothing new
    fill(archive, actor, ct_slice(number=3))
    quiet.look()
    settled(archive)
    assert len(reads) == 3
    assert quickly(archive, reads) == 0
    assert not prepare(archive, series_pk(archive))


def test_series_that_are_alike_help_each_other(archive: Archive, actor: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        exam = {"StudyInstanceUID": new_uid(f"exam{number}"), "SeriesInstanceUID": new_uid(f"exam{number}", "1")}
        fill(archive, actor, ct_slice(SOPInstanceUID=new_uid(f"image{number}"), PatientName=f"A^{number}", **exam))
    whole: list[int] = []
    monkeypatch.setattr(lines, "parse", lambda *how, **more: (whole.append(1), parse(*how, **more))[1])
    preparing = Preparing(archive, threading.Event(), quiet_seconds=0)
    preparing.look()
    settled(archive)
    assert (kept_rows(archive), len(whole)) == (3, 1)
    assert preparing._alike._layouts == []  # nothing of it stays in memory
    for number in range(3):
        found = named(archive, new_uid(f"exam{number}"))
        assert b"".join(told(archive, found, SERVICE)) == b"[" + told_of(archive, found[0], SERVICE) + b"]"


def test_a_series_that_cannot_be_made_ready_stops_no_other(
    archive: Archive, actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(archive, actor, ct_slice(), ct_slice(SeriesInstanceUID=new_uid("o"), SOPInstanceUID=new_uid("o1")))
    broken = series_pk(archive)
    make: Callable[..., bool] = prepare

    def breaks(archive: Archive, pk: int, **how: Any) -> bool:
        if pk == broken:
            raise OSError("broken")
        return make(archive, pk, **how)

    monkeypatch.setattr(series_metadata, "prepare", breaks)
    Preparing(archive, threading.Event(), quiet_seconds=0).look()
    settled(archive)
    assert kept_rows(archive) == 1


def test_whoever_stops_waits_for_one_file_at_most(
    archive: Archive, actor: Actor, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(archive, actor, *(ct_slice(number=number) for number in (1, 2, 3, 4)))
    stopping = threading.Event()
    stored_line = Outgoing.stored_line

    def told_to_stop(one: Outgoing, *how: Any) -> bytes:
        stopping.set()
        return stored_line(one, *how)

    monkeypatch.setattr(Outgoing, "stored_line", told_to_stop)
    preparing = Preparing(archive, stopping, quiet_seconds=0)
    preparing.look()
    settled(archive)
    assert (len(reads), kept_rows(archive)) == (1, 0)
    monkeypatch.undo()
    assert prepare(archive, series_pk(archive)) is True


def test_a_series_that_is_gone_is_not_made_ready(archive: Archive) -> None:
    assert not prepare(archive, 4711)
