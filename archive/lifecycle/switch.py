"""From hot to cold, a whole study in one transaction (REQ-DCM-83): whoever reads sees all old or all new.

Before it every copy in cold storage is read once more, to its end; after it the originals go by law 2. A hold or a
changed fact during the grace period leads back: `undo_grace`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from typing import Any

import structlog
from sqlalchemy import BindParameter, Connection, Select, bindparam, or_, select, update

from archive.audit.record import Outcome
from archive.config import Settings
from archive.core import Archive
from archive.errors import CommitInDoubt
from archive.index.conditions import constant
from archive.index.replaced import note_replaced, restore_replaced
from archive.instance import CopyState, State
from archive.lifecycle import companions
from archive.lifecycle.cold import FORMS, Stays, aged, damage, derived, has_hot, over, tell
from archive.lifecycle.companions import Made
from archive.lifecycle.compute import may_try
from archive.lifecycle.guard import Terms, on_hold, terms
from archive.lifecycle.migrate import drop_derived
from archive.lifecycle.remove import finish_removals, mark_copies, mark_copies_of
from archive.policy import Policy, local_day
from archive.schema import instance, location, series, study
from archive.schema.types import AnyRow
from archive.workflow.availability import announce

__all__ = ["Switched", "due_for_switch", "restore_replaced", "switch", "to_undo", "undo_grace"]

log = structlog.get_logger(__name__)

_BATCH = 500
_PAGE = 200
_BY_PKS: BindParameter[Sequence[int]] = bindparam("pks", expanding=True)


@dataclass(slots=True)
class Switched:
    """What a call did, in images. `stays`: why the study stays as it was."""

    replaced: int = 0  # originals of which only the lossy copy is left
    moved: int = 0  # images that lie in cold storage as they came
    companions: int = 0  # of key objects and presentation states, in sight from now on
    damaged: int = 0  # copies in cold storage that were no good, and are made again
    stays: Stays | None = None


@dataclass(frozen=True, slots=True)
class _Form:
    """An image, and its form in cold storage that was read to its end."""

    pk: int
    derived_pk: int | None
    location_pk: int


def due_for_switch(
    conn: Connection, policy: Policy, *, today: date, at: datetime, real_now: datetime, limit: int
) -> list[int]:
    """Studies (keys) whose grace is over, the longest first, but those that rest (`life_failure`); `switch` asks all
    again."""
    old = (study.c.policy_version == policy.version, study.c.online_until <= f"{today:%Y%m%d}")
    ready = (*old, ~on_hold(today), may_try("switch", real_now))
    found = select(study.c.pk).where(study.c.grace_until <= at, *ready).order_by(study.c.grace_until, study.c.pk)
    return list(conn.execute(found.limit(limit)).scalars())


def to_undo(conn: Connection, policy: Policy, *, today: date, real_now: datetime, limit: int) -> list[int]:
    """Studies (keys) in grace that somebody holds, or whose images may not leave the hot tier any more; but those that
    rest (`life_failure`)."""
    later = (study.c.policy_version == policy.version) & (study.c.online_until > f"{today:%Y%m%d}")
    ready = (study.c.grace_until.is_not(None), or_(on_hold(today), later), may_try("undo", real_now))
    found = select(study.c.pk).where(*ready)
    return list(conn.execute(found.order_by(study.c.pk).limit(limit)).scalars())


def switch(archive: Archive, study_pk: int, *, proceed: Callable[[], bool] = lambda: True) -> Switched:
    """Replace a study's originals by what is in cold storage, if its grace is over and every copy is good.

    `proceed` is asked before each copy is read; False ends the call with nothing changed. Where a copy turns out
    missing or damaged, the study goes back to `migrate`. Companions come in sight with the copies that they name.

    Raises:
        Unavailable: a volume or the index is away. Before the transaction nothing has changed; after it the rest of
            the removal is finished by `finish_removals`.
    """
    on = local_day(archive.clock())
    with archive.reading() as conn:
        stays = _may(conn, archive.settings, study_pk, on=on, at=archive.clock())
    if isinstance(stays, Stays):
        return Switched(stays=stays)
    good: dict[int, _Form] = {}
    bad: list[AnyRow] = []
    for row in _forms(archive, study_pk):
        if not proceed():
            return Switched(stays=Stays.STOPPED)
        if row.location_pk is None:
            if row.good:  # it came late; without a good copy of its own it stays as it is, and holds nobody back
                return _back(archive, study_pk)
        elif reason := damage(archive.cold, row):
            log.error("a copy in cold storage is damaged", sop_instance_uid=row.sop_instance_uid, why=reason)
            bad.append(row)
        else:
            good[row.pk] = _Form(row.pk, row.derived_pk, row.location_pk)
    if bad:
        archive.commit.run(partial(_drop_bad, study_pk=study_pk, bad=bad, at=archive.clock()))
        finish_removals(archive, study_pk=study_pk)
        return Switched(damaged=len(bad), stays=Stays.DAMAGED)
    at, now = archive.clock(), archive.real_clock()
    switching = {one.pk: one.derived_pk for one in good.values() if one.derived_pk is not None}
    made = companions.make(archive, study_pk, switching=switching)
    write = partial(_switch, settings=archive.settings, study_pk=study_pk, good=good, made=made, on=on, at=at, now=now)
    done = _commit(archive, write, made)
    if done.stays is Stays.INCOMPLETE:
        return _back(archive, study_pk)
    if done.stays is None:
        finish_removals(archive, study_pk=study_pk)
    return done


def _commit(archive: Archive, write: Callable[[Connection], Switched], made: Sequence[Made]) -> Switched:
    """Only an unknown COMMIT keeps the files of companions that it does not file (law 7): the sweep settles them."""
    try:
        done = archive.commit.run(write, directories=sorted({one.incoming.directory for one in made}))
    except CommitInDoubt:
        raise
    except BaseException:
        companions.discard(made)
        raise
    if done.stays is not None:
        companions.discard(made)
    return done


def _may(
    conn: Connection, settings: Settings, study_pk: int, *, on: date, at: datetime, lock: bool = False
) -> Terms | Stays:
    known = aged(conn, settings, study_pk, on=on, lock=lock)
    return known if isinstance(known, Stays) else over(conn, known, at=at) or known


def _forms(archive: Archive, study_pk: int) -> Iterator[AnyRow]:
    """Each image once, with its best form; a page at a time."""
    after = 0
    while True:
        with archive.reading() as conn:
            rows = conn.execute(FORMS.limit(_PAGE), {"study_pk": study_pk, "after": after}).all()
        if not rows:
            return
        for row in rows:
            if row.pk != after:
                after = row.pk
                yield row


def _back(archive: Archive, study_pk: int) -> Switched:
    """To `migrate`: images came late."""
    archive.commit.run(lambda conn: conn.execute(_END_GRACE, {"study_pk": study_pk}))
    return Switched(stays=Stays.INCOMPLETE)


_END_GRACE = update(study).where(study.c.pk == bindparam("study_pk")).values(grace_until=None)
_DERIVED_STANDS = update(instance).where(instance.c.pk.in_(_BY_PKS)).values(state=State.STORED)
_ORIGINAL_GOES = update(instance).where(instance.c.pk.in_(_BY_PKS)).values(state=State.REPLACED)
_READ = update(location).where(location.c.pk.in_(_BY_PKS)).values(verified_at=bindparam("at"))


def _switch(
    conn: Connection,
    *,
    settings: Settings,
    study_pk: int,
    good: dict[int, _Form],
    made: Sequence[Made],
    on: date,
    at: datetime,
    now: datetime,
) -> Switched:
    known = _may(conn, settings, study_pk, on=on, at=at, lock=True)
    if isinstance(known, Stays):
        return Switched(stays=known)
    forms: dict[int, _Form] = {}
    for row in conn.execute(FORMS, {"study_pk": study_pk, "after": 0}):
        if row.pk in forms:
            continue
        if row.location_pk is not None:
            forms[row.pk] = _Form(row.pk, row.derived_pk, row.location_pk)
        elif row.good:
            return Switched(stays=Stays.INCOMPLETE)
    if forms != good or not all(companions.wanted(conn, one) for one in made):  # what was read is not what stands now
        return Switched(stays=Stays.CHANGED)
    replaced = [one.pk for one in forms.values() if one.derived_pk is not None]
    for some in _batches(replaced):  # locks them against a resend that repairs
        conn.execute(_ORIGINAL_GOES, {"pks": some})
    for some in _batches([one.derived_pk for one in forms.values() if one.derived_pk is not None]):
        conn.execute(_DERIVED_STANDS, {"pks": some})
    for some in _batches([one.location_pk for one in forms.values()]):
        conn.execute(_READ, {"pks": some, "at": at})
    for one in made:
        companions.file(conn, one, study_pk=study_pk, at=at)
    mark_copies_of(conn, forms, tier="hot")
    conn.execute(_END_GRACE, {"study_pk": study_pk})
    note_replaced(conn, study_pk, at=at)
    done = Switched(replaced=len(replaced), moved=len(forms) - len(replaced), companions=len(made))
    detail = {
        "migration": "switched to cold storage",
        "replaced": done.replaced,
        "moved": done.moved,
        "companions": done.companions,
    }
    tell(conn, known, "U", detail)
    announce(conn, known.study_instance_uid, at=now)
    return done


_DAMAGED = update(location).where(location.c.pk.in_(_BY_PKS)).values(state=CopyState.DAMAGED)


def _drop_bad(conn: Connection, *, study_pk: int, bad: Sequence[AnyRow], at: datetime) -> None:
    """Copies that are no good go, but never the last that is left of an image (law 7)."""
    going = [row for row in bad if row.good]
    drop_derived(conn, pks=[row.derived_pk for row in going if row.derived_pk is not None], at=at)
    mark_copies(conn, [row.location_pk for row in going if row.derived_pk is None])
    conn.execute(_DAMAGED, {"pks": [row.location_pk for row in bad if not row.good]})
    conn.execute(_END_GRACE, {"study_pk": study_pk})
    detail = {"migration": "copies in cold storage are damaged, and made again", "instances": len(bad)}
    known = terms(conn, study_pk)
    assert known is not None
    tell(conn, known, "D", detail, Outcome.MINOR_FAILURE)


def undo_grace(archive: Archive, study_pk: int, *, reason: str) -> int:
    """Take a study out of grace: its lossy copies go, and were never seen; how many. `reason` is for the audit.

    A copy goes only when its original was read to its end and found good (law 7). Second copies of images that were
    not compressed stay: they are the same image.

    Raises:
        Unavailable: a volume or the index is away.
    """
    going: list[int] = []
    after = 0
    while True:
        with archive.reading() as conn:
            rows = conn.execute(_IN_GRACE, {"study_pk": study_pk, "after": after}).all()
        if not rows:
            break
        going += [row.derived_pk for row in rows if not damage(archive.hot, row)]
        after = rows[-1].derived_pk
    write = partial(_undo, study_pk=study_pk, pks=sorted(set(going)), reason=reason, at=archive.clock())
    if archive.commit.run(write):
        finish_removals(archive, study_pk=study_pk)
    return len(set(going))


_IN_GRACE: Select[Any] = (
    select(
        derived.c.pk.label("derived_pk"),
        location.c.path,
        location.c.digest,
        location.c.file_bytes,
        location.c.data_set_offset,
    )
    .select_from(
        derived.join(instance, instance.c.pk == derived.c.derived_from_pk)
        .join(series, series.c.pk == instance.c.series_pk)
        .join(location, location.c.instance_pk == instance.c.pk)
    )
    .where(
        series.c.study_pk == bindparam("study_pk"),
        derived.c.state == constant(str(State.PENDING)),
        instance.c.state == constant(str(State.STORED)),
        location.c.tier == "hot",
        location.c.state == constant(str(CopyState.OK)),
        derived.c.pk > bindparam("after"),
    )
    .order_by(derived.c.pk, location.c.pk)
    .limit(_PAGE)
)
_STILL = (
    select(derived.c.pk)
    .select_from(derived.join(instance, instance.c.pk == derived.c.derived_from_pk))
    .where(
        derived.c.pk.in_(_BY_PKS),
        derived.c.state == constant(str(State.PENDING)),
        instance.c.state == constant(str(State.STORED)),
        has_hot(good=True),
    )
)


def _undo(conn: Connection, *, study_pk: int, pks: Sequence[int], reason: str, at: datetime) -> bool:
    known = terms(conn, study_pk, lock=True)
    if known is None:
        return False
    still = [pk for some in _batches(list(pks)) for pk in conn.execute(_STILL, {"pks": some}).scalars()]
    if not still and known.grace_until is None:
        return False
    drop_derived(conn, pks=still, at=at)
    conn.execute(_END_GRACE, {"study_pk": study_pk})
    detail = {"migration": "undone: the originals stay", "why": reason, "instances": len(still)}
    tell(conn, known, "U", detail)
    return True


def _batches(pks: Sequence[int]) -> Iterator[list[int]]:
    return (list(pks[start : start + _BATCH]) for start in range(0, len(pks), _BATCH))
