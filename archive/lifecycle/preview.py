"""What will leave when, and what keeps it: for any day, under the policy of today or a draft of one. Writes nothing.

Everything is decided anew from the facts; what the index stores only tells which studies to look at. The calendar that
is foretold: ticks run every day, holds and facts stay as they are, nobody approves or resumes anything.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Connection, or_, select, true

from archive.config import Settings
from archive.core import Archive
from archive.errors import InvalidRequest
from archive.lifecycle.approvals import NEEDED, approved
from archive.lifecycle.compute import policy_of
from archive.lifecycle.facts import Known, gather
from archive.lifecycle.guard import Blocker
from archive.lifecycle.suspension import suspensions
from archive.policy import Decision, Policy, Reason, add_days, decide, local_day
from archive.schema import hold, study

_BATCH = 200  # studies that are gathered at once

Shape = dict[str, str | None]

_FRENCH = {
    Blocker.SUSPENDED: "toute suppression est suspendue",
    Blocker.HELD_BACK: "des images retenues contredisent le dossier",
    Blocker.APPROVALS: "des approbations manquent",
}


class Action(StrEnum):
    """What becomes of a study."""

    MIGRATE = "migrate"  # its images leave the hot tier; in grace: its originals do
    ANNOUNCE = "announce"
    PURGE = "purge"
    BLOCKED = "blocked"  # one of these would have its day, but for the reasons


@dataclass(frozen=True, slots=True)
class Item:
    """One act, the first day on which it happens, and why; of a blocked one, what keeps it."""

    study_instance_uid: str
    action: Action
    day: date
    reasons: tuple[Shape, ...]

    def shape(self) -> dict[str, Any]:
        """As `/api/v1` and the command give it."""
        return {
            "study": self.study_instance_uid,
            "action": str(self.action),
            "date": self.day.isoformat(),
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True, slots=True)
class _Foretold:
    """What all studies of a preview share."""

    settings: Settings
    policy: Policy
    today: date
    on: date
    suspended: tuple[Shape, ...]

    @property
    def first(self) -> date:
        """The first tick that is foretold."""
        return min(self.today, self.on)


def preview(
    archive: Archive, *, on: date | None = None, draft: Settings | None = None, after: int = 0
) -> Iterator[tuple[int, list[Item]]]:
    """What has its day up to and including `on` (today, unless said), a study at a time: its key, and its items.

    In the order of their keys, after the one `after`; however many studies there are, some hundreds are in memory.
    `draft` are settings to try instead of the archive's (`draft_of`).

    Raises:
        Unavailable: the index cannot be read.
    """
    settings = draft or archive.settings
    today = local_day(archive.clock())
    with archive.reading() as conn:
        suspended = tuple(_shape(Blocker.SUSPENDED, f"{one.kind}: {one.detail}") for one in suspensions(conn))
    said = _Foretold(settings, policy_of(settings), today, on or today, suspended)
    wanted = true() if said.policy.version != policy_of(archive.settings).version else _perhaps(said)
    while True:
        with archive.reading() as conn:
            found = select(study.c.pk).where(study.c.pk > after, wanted).order_by(study.c.pk).limit(_BATCH)
            pks = list(conn.execute(found).scalars())
            answers = [(known.pk, _items(conn, known, said)) for known in gather(conn, settings, pks)]
        yield from ((pk, items) for pk, items in answers if items)
        if len(pks) < _BATCH:
            return
        after = pks[-1]


def draft_of(settings: Settings, toml: bytes) -> Settings:
    """The settings with the `[retention]` table of a draft over their own.

    Raises:
        InvalidRequest: it is not TOML, holds anything else, or breaks a rule; the message names the key.
    """
    try:
        values = tomllib.loads(toml.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the draft is not TOML: {error}") from error
    if set(values) != {"retention"} or not isinstance(values["retention"], dict):
        raise InvalidRequest("a draft of a policy holds one table, [retention], and nothing else")
    kept = settings.model_dump(exclude_unset=True)
    try:
        return Settings.model_validate({**kept, "retention": {**kept.get("retention", {}), **values["retention"]}})
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequest(f"{'.'.join(map(str, first['loc'])) or 'settings'}: {first['msg']}") from error


def _perhaps(said: _Foretold) -> ColumnElement[bool]:
    """Studies that may have something: all others are computed, and their days are later."""
    day = f"{said.on:%Y%m%d}"
    held = select(hold.c.study_instance_uid).where(hold.c.removed_at.is_(None))
    return or_(
        study.c.policy_version.is_(None),
        study.c.policy_version != said.policy.version,
        study.c.keep_until.is_(None),
        study.c.keep_until <= day,
        study.c.online_until <= day,
        study.c.grace_until.is_not(None),
        study.c.study_instance_uid.in_(held),
    )


def _items(conn: Connection, known: Known, said: _Foretold) -> list[Item]:
    decision = decide(known.facts, said.policy)
    return [*_migration(known, decision, said), *_purge(conn, known, decision, said)]


def _migration(known: Known, decision: Decision, said: _Foretold) -> Iterator[Item]:
    day = max(decision.online_until, said.first)
    if known.grace_until is not None:
        day = max(day, local_day(known.grace_until))
    if not known.hot or day > said.on:
        return
    holds = _standing([reason for reason in decision.reasons if reason.rule == "hold"], day)
    if holds:
        yield Item(known.study_instance_uid, Action.BLOCKED, day, holds)
    else:
        yield Item(known.study_instance_uid, Action.MIGRATE, day, (_online(decision, said),))


def _purge(conn: Connection, known: Known, decision: Decision, said: _Foretold) -> Iterator[Item]:
    uid = known.study_instance_uid
    due = max(decision.otherwise, said.first)
    if due > said.on:
        return
    keeps = _standing([reason for reason in decision.reasons if reason.blocks], said.on)
    if known.held_back:
        keeps = (*keeps, _shape(Blocker.HELD_BACK))
    if keeps:
        yield Item(uid, Action.BLOCKED, due, keeps)
        return
    assert decision.keep_until is not None
    reasons = tuple(reason.shape() for reason in decision.reasons)
    if known.announced_at is None or known.purge_on is None:
        day = max(decision.keep_until, said.first)
        yield Item(uid, Action.ANNOUNCE, day, reasons)
        purge_on = add_days(day, said.settings.retention.purge_notice_days)
    else:
        purge_on = max(date.fromisoformat(known.purge_on), said.first)
    if purge_on > said.on:
        return
    forbids = said.suspended
    if said.settings.retention.purge_approval == "two-person":
        count = 0 if known.announced_at is None else approved(conn, uid, since=known.announced_at)
        if count < NEEDED:
            forbids = (*forbids, _shape(Blocker.APPROVALS, f"{count} sur {NEEDED}"))
    if forbids:
        yield Item(uid, Action.BLOCKED, purge_on, forbids)
    else:
        yield Item(uid, Action.PURGE, purge_on, reasons)


def _standing(reasons: Sequence[Reason], day: date) -> tuple[Shape, ...]:
    """Those that do not let go on that day."""
    return tuple(reason.shape() for reason in reasons if reason.until is None or reason.until > day)


def _online(decision: Decision, said: _Foretold) -> Shape:
    years = said.settings.retention.immediate_years
    until = decision.online_until.isoformat()
    text = f"accès immédiat pendant {years} ans à partir de l’examen"
    return {"rule": "online", "since": None, "basis": "exam", "until": until, "source": "Annexe 5 §3.1", "text": text}


def _shape(blocker: Blocker, detail: str = "") -> Shape:
    text = f"{_FRENCH[blocker]} ({detail})" if detail else _FRENCH[blocker]
    return {"rule": blocker.name.lower(), "since": None, "basis": "", "until": None, "source": "", "text": text}
