"""Whatever happens in which order, the last copy of an image goes by a purge that was announced, or not at all
(FIELD, pains 1 and 2; the table of STYLE §4)."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage
from sqlalchemy import select

from archive.access import EVERYTHING, Actor, Door
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import Gone, NotFound, RejectedBefore
from archive.instance import HIDDEN, CopyState, State
from archive.lifecycle.holds import add_hold, remove_hold
from archive.lifecycle.suspension import Kind, resume, suspend, suspensions
from archive.policy import local_day
from archive.rejecting import reject, revoke_note
from archive.retrieve import select as select_images
from archive.schema import audit, hold, instance, location, purge, tombstone
from retention.tick import tick
from tests.builders import ct_slice, data_set, new_uid
from tests.retention.life import move_clock, put_clock, receive

STUDIES = ("a", "b", "c")
SMOOTH = bytes(b for row in range(32) for column in range(32) for b in (row + column, 0))  # passes the lossy gate
PERSON = Actor(user="anne", source="127.0.0.1", door=Door.SYSTEM, may=EVERYTHING)
NOTICE_DAYS = 30

studies = st.sampled_from(STUDIES)
DAYS = st.sampled_from([1, 29, 31, 31, 31, 95, 1100, 1100, 1900])


class Life(RuleBasedStateMachine):
    """One archive through the years."""

    template: str  # a file with the schema
    purges: list[str]  # of all walks

    def __init__(self) -> None:
        super().__init__()
        self.parts = ExitStack()
        folder = Path(tempfile.mkdtemp(prefix="minipacs-life-"))
        self.parts.callback(shutil.rmtree, folder, ignore_errors=True)
        shutil.copy(self.template, folder / "index.sqlite3")
        values = {
            "data_dir": folder / "data",
            "database": {"url": f"sqlite:///{folder / 'index.sqlite3'}"},
            "storage": {"reserve_bytes": 0},
        }
        self.archive: Archive = self.parts.enter_context(open_archive(Settings.model_validate(values), process="test"))
        self.acknowledged: dict[str, str] = {}  # SOP Instance UID to digest
        self.sent: dict[str, Dataset] = {}
        self.holds: list[str] = []
        self.notes: list[str] = []  # rejections that stand
        self.in_doubt = False
        self.seen: set[str] = set()  # purges that were looked at

    def teardown(self) -> None:
        self.purges.extend(self.seen)
        self.parts.close()

    @initialize()
    def begin(self) -> None:
        put_clock(self.archive, "2026-01-05T09:00:00")
        for study in STUDIES:
            self.arrive(study=study, smooth=study != "a")

    @rule(study=studies, smooth=st.booleans())
    def arrive(self, study: str, smooth: bool) -> None:
        """A slice of today, of a study that may be old."""
        ds = ct_slice(
            rows=32,
            columns=32,
            number=len(self.sent) + 1,
            StudyInstanceUID=new_uid(study),
            SeriesInstanceUID=new_uid(study, "series"),
            StudyDate="20260105",
            **({"PixelData": SMOOTH} if smooth else {}),
        )
        receive(self.archive, ds)
        uid = str(ds.SOPInstanceUID)
        self.sent[uid] = ds
        self.acknowledged[uid] = hashlib.sha256(data_set(ds)).hexdigest()

    @rule(which=st.integers(0, 50))
    def arrive_again(self, which: int) -> None:
        if not self.sent:
            return
        uid = sorted(self.sent)[which % len(self.sent)]
        try:
            receive(self.archive, self.sent[uid])
        except Gone:
            assert self._has_tombstone(uid)
        except RejectedBefore:
            assert not select_images(self.archive, instance_uids=[uid], quality=True)

    @rule(study=studies, code=st.sampled_from(["113001", "113037"]))
    def reject(self, study: str, code: str) -> None:
        """Somebody says that an image is not to be used any more."""
        seen = select_images(self.archive, study_uids=[new_uid(study)])
        images = [one for one in seen if one.sop_class_uid == CTImageStorage]
        if not images:
            return
        wish = {"code": code, "reason": "x", "instances": [images[0].sop_instance_uid]}
        note = reject(self.archive, new_uid(study), actor=PERSON, **wish).uid
        self.acknowledged[note] = ""
        self.notes.append(note)

    @precondition(lambda self: self.notes)
    @rule()
    def think_again(self) -> None:
        """A rejection is taken back, also of what retention has removed meanwhile."""
        revoke_note(self.archive, self.notes.pop(), reason="x", actor=PERSON)

    @rule(study=studies)
    def keep(self, study: str) -> None:
        try:
            self.holds.append(add_hold(self.archive, new_uid(study), reason="x", until=None, actor=PERSON).id)
        except (NotFound, Gone):
            return

    @precondition(lambda self: self.holds)
    @rule()
    def let_go(self) -> None:
        remove_hold(self.archive, self.holds.pop(), actor=PERSON)

    @precondition(lambda self: not self.in_doubt)
    @rule()
    def doubt(self) -> None:
        at = self.archive.clock()
        self.archive.commit.run(lambda conn: suspend(conn, Kind.REBUILT, "in doubt", at=at))
        self.in_doubt = True

    @precondition(lambda self: self.in_doubt)
    @rule()
    def confirm(self) -> None:
        resume(self.archive, reason="x", actor=PERSON)
        self.in_doubt = False

    @rule(days=DAYS)
    def live(self, days: int) -> None:
        """Some time, then a tick."""
        move_clock(self.archive, days)
        tick(self.archive)

    @rule(days=DAYS)
    def live_on(self, days: int) -> None:
        """The same: time passes more often than anything else happens."""
        self.live(days)

    @rule(days=DAYS)
    def live_dangerously(self, days: int) -> None:
        """A tick as if it were killed between a COMMIT and the removal of bytes."""
        move_clock(self.archive, days)
        with nothing_unlinked(self.archive):
            tick(self.archive)

    @invariant()
    def every_image_has_a_good_copy_or_was_purged(self) -> None:
        with self.archive.reading() as conn:
            rows = conn.execute(
                select(
                    instance.c.pk,
                    instance.c.sop_instance_uid,
                    instance.c.state,
                    instance.c.state_before,
                    instance.c.derived_from_pk,
                )
            ).all()
            good = {row.instance_pk for row in conn.execute(select(location)) if self._is_good(row)}
            buried = {row.sop_instance_uid: row.purge_id for row in conn.execute(select(tombstone))}
        by_uid = {row.sop_instance_uid: row for row in rows}
        there = (State.STORED, *HIDDEN)
        copies = {row.derived_from_pk: row for row in rows if row.state in there and row.pk in good}
        for uid in self.acknowledged:
            if uid in buried:
                assert uid not in by_uid or by_uid[uid].state == State.PURGING
                continue
            row = by_uid[uid]
            if State.REPLACED in (row.state, row.state_before):
                assert row.pk in copies
            else:
                assert row.state in there
                assert row.pk in good

    @invariant()
    def every_purge_was_announced_and_nothing_forbade_it(self) -> None:
        with self.archive.reading() as conn:
            for row in conn.execute(select(purge)).all():
                if row.id in self.seen:
                    continue
                self.seen.add(row.id)
                on = local_day(row.begun_at)
                announced_on = self._announced_on(conn, row.study_instance_uid, row.begun_at)
                assert (on - announced_on).days >= NOTICE_DAYS
                assert json.loads(row.certificate)["legal_basis"]["keep_until"] <= f"{on:%Y%m%d}"
                standing = select(hold).where(
                    hold.c.study_instance_uid == row.study_instance_uid, hold.c.removed_at.is_(None)
                )
                # looked at after each rule: what stands now stood then, or was placed on what came later
                assert all(one.placed_at > row.begun_at for one in conn.execute(standing))
                assert suspensions(conn) == []

    def _announced_on(self, conn: Any, study: str, before: datetime) -> date:
        """The day of the last word about it, which has to be an announcement."""
        told = conn.execute(
            select(audit.c.time, audit.c.detail)
            .where(audit.c.event == "110103", audit.c.study == study, audit.c.time <= before)
            .order_by(audit.c.time.desc(), audit.c.pk.desc())
        ).all()
        last = next(row for row in told if json.loads(row.detail).get("retention") in ("announced", "withdrawn"))
        assert json.loads(last.detail)["retention"] == "announced"
        return local_day(last.time)

    def _is_good(self, row: Any) -> bool:
        if row.state != CopyState.OK:
            return False
        raw = Path(self.archive.tier(row.tier).path(row.path)).read_bytes()
        return hashlib.sha256(raw[row.data_set_offset :]).hexdigest() == row.digest

    def _has_tombstone(self, uid: str) -> bool:
        with self.archive.reading() as conn:
            there = conn.execute(select(tombstone.c.pk).where(tombstone.c.sop_instance_uid == uid)).first()
        return there is not None


@contextmanager
def nothing_unlinked(archive: Archive) -> Iterator[None]:
    """Neither tier lets go of a file."""
    patch = pytest.MonkeyPatch()

    def refuse(name: str) -> None:
        raise OSError(5, "Input/output error")

    for tier in (archive.hot, archive.cold):
        patch.setattr(tier, "unlink", refuse)
    try:
        yield
    finally:
        patch.undo()


@pytest.mark.req("REQ-DCM-83")
def test_the_last_copy_goes_by_an_announced_purge_alone(migrated_sqlite: str) -> None:
    purges: list[str] = []
    run_state_machine_as_test(
        type("LifeOfTheTest", (Life,), {"template": migrated_sqlite, "purges": purges}),
        settings=settings(
            max_examples=15,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert len(purges) > 5, "the walks hardly lead to a purge: they prove nothing"
