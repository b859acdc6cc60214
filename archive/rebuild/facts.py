"""Facts from the journal: read into rows that wait, then applied in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

import orjson
import structlog
from sqlalchemy import Connection, bindparam, func, select, text, update

from archive.commitment import restore_commitment
from archive.core import Archive
from archive.errors import Unavailable
from archive.identity.restore import restore_link, restore_patient, restore_study, restore_visit
from archive.index.aside import restore_conflict
from archive.index.held import restore_held
from archive.index.rejections import restore_rejection
from archive.index.replaced import restore_derived, restore_replaced
from archive.journal import BadLine, Fact, Kind, unknown
from archive.lifecycle.finish import restore_purge
from archive.lifecycle.holds import restore_hold
from archive.lifecycle.remove import mark_instances
from archive.lifecycle.tombstones import restore_restored
from archive.manifests import restore_manifest
from archive.probing import restore_probe
from archive.rebuild.tally import CHUNK, NotTaken, Rebuilt, Steps, chunks
from archive.schema import fact, instance, purge, tombstone
from archive.schema.upsert import insert
from archive.workflow.restore import restore_order, restore_performed

log = structlog.get_logger(__name__)

Restore = Callable[[Connection, str, Mapping[str, Any], datetime], None]

RESTORE: dict[str, Restore] = {
    Kind.PATIENT: restore_patient,
    Kind.ORDER: restore_order,
    Kind.PERFORMED: restore_performed,
    Kind.STUDY: restore_study,
    Kind.VISIT: restore_visit,
    Kind.LINK: restore_link,
    Kind.HOLD: restore_hold,
    Kind.HELD: restore_held,
    Kind.CONFLICT: restore_conflict,
    Kind.DERIVED: restore_derived,
    Kind.REPLACED: restore_replaced,
    Kind.PURGE: restore_purge,
    Kind.COMMITMENT: restore_commitment,
    Kind.REJECTION: restore_rejection,
    Kind.PROBE: restore_probe,
    Kind.RESTORED: restore_restored,
    Kind.MANIFEST: restore_manifest,
}
# Files are filed by these; the rest tells of them.
BEFORE_FILES = (
    *(Kind.PATIENT, Kind.VISIT, Kind.LINK, Kind.ORDER, Kind.PERFORMED),
    *(Kind.CONFLICT, Kind.PURGE, Kind.RESTORED),
)

_WAITING = fact.c.journaled > 1  # see archive.schema.operations
_FAILED = update(fact).where(fact.c.journaled == 3).values(journaled=2)
_SUBJECTS = select(fact.c.pk, fact.c.kind, fact.c.subject).where(fact.c.pk.in_(bindparam("numbers", expanding=True)))
_NEXT = (
    select(fact.c.pk, fact.c.at, fact.c.kind, fact.c.subject, fact.c.body)
    .where(fact.c.journaled == 2, fact.c.pk > bindparam("after"))  # in the order of the index, too
    .order_by(fact.c.pk)
    .limit(CHUNK)
)
_APPLIED = update(fact).where(fact.c.pk.in_(bindparam("pks", expanding=True)))
_OF_PURGED = (
    select(instance.c.pk)
    .join(tombstone, tombstone.c.sop_instance_uid == instance.c.sop_instance_uid)
    .where(tombstone.c.purge_id == bindparam("purge_id"), tombstone.c.digest == instance.c.digest)
)


def waiting(conn: Connection) -> int:
    """How many facts are not applied, those that could not be among them."""
    return int(conn.execute(select(func.count()).select_from(fact).where(_WAITING)).scalar_one())


def read_journal(archive: Archive, rebuilt: Rebuilt) -> None:
    """Every fact that the database does not know becomes a row that waits to be applied, under its own number; those
    that could not be applied wait again."""
    archive.commit.run(lambda conn: conn.execute(_FAILED))
    for lines in chunks(archive.journal.lines()):
        facts = {}
        for line in lines:
            if isinstance(line, BadLine):
                rebuilt.not_taken.append(NotTaken(f"facts/{line.file}", f"line {line.line} cannot be read"))
            else:
                facts[line.n] = line
        with archive.reading() as conn:
            missing = unknown(conn, list(facts))
            for row in conn.execute(_SUBJECTS, {"numbers": list(facts)}):
                if (row.kind, row.subject) != (facts[row.pk].kind, facts[row.pk].subject):
                    rebuilt.not_taken.append(NotTaken(f"facts: {row.pk}", "another fact has this number"))
        if missing:
            archive.commit.run(partial(_add_rows, facts=[facts[n] for n in sorted(missing)]))


def _add_rows(conn: Connection, *, facts: list[Fact]) -> None:
    rows = [
        {
            "pk": one.n,
            "at": one.at,
            "kind": one.kind,
            "subject": one.subject,
            "body": orjson.dumps(one.body).decode(),
            "journaled": 2,
        }
        for one in facts
    ]
    conn.execute(insert(conn, fact).on_conflict_do_nothing(index_elements=["pk"]), rows)


def apply(archive: Archive, rebuilt: Rebuilt, steps: Steps, kinds: tuple[Kind, ...] | None) -> None:
    """Apply facts of these kinds that wait, in their order; None: those of kinds that this version does not know."""
    wanted = fact.c.kind.in_(kinds) if kinds is not None else fact.c.kind.not_in(list(Kind))
    after = 0
    while True:
        with archive.reading() as conn:
            rows = conn.execute(_NEXT.where(wanted), {"after": after}).all()
        if not rows:
            return
        after = rows[-1].pk
        facts = [Fact(row.pk, row.at, row.kind, row.subject, orjson.loads(row.body)) for row in rows]
        try:
            archive.commit.run(partial(_restore, facts=facts))
            rebuilt.facts += len(facts)
        except Unavailable:
            raise
        except Exception:  # one of them: which, and why?
            for one in facts:
                _apply_alone(archive, rebuilt, one)
        steps.add(len(facts))


def _apply_alone(archive: Archive, rebuilt: Rebuilt, one: Fact) -> None:
    try:
        archive.commit.run(partial(_restore, facts=[one]))
        rebuilt.facts += 1
    except Unavailable:
        raise
    except Exception as error:
        log.exception("a fact cannot be applied", fact=one.n, kind=one.kind)
        rebuilt.not_taken.append(NotTaken(f"facts: {one.n}", f"{one.kind}: {type(error).__name__}"))
        archive.commit.run(lambda conn: conn.execute(_APPLIED.values(journaled=3), {"pks": [one.n]}))


def _restore(conn: Connection, *, facts: list[Fact]) -> None:
    for one in facts:
        RESTORE[one.kind](conn, one.subject, one.body, one.at)
        if one.kind == Kind.PURGE:
            _purge_again(conn, one.subject)
    conn.execute(_APPLIED.values(journaled=1), {"pks": [one.n for one in facts]})


def _purge_again(conn: Connection, purge_id: str) -> None:
    """A database that is older than a purge still has its instances: the next tick finishes it once more."""
    left = list(conn.execute(_OF_PURGED, {"purge_id": purge_id}).scalars())
    if left:
        mark_instances(conn, left)
        conn.execute(update(purge).where(purge.c.id == purge_id).values(state="purging", done_at=None))


def count_on(conn: Connection) -> None:
    """New facts get numbers beyond those that were read (SQLite goes on from the highest by itself)."""
    if conn.dialect.name == "postgresql":
        conn.execute(
            text("SELECT setval(pg_get_serial_sequence('fact', 'pk'), max(pk)) FROM fact HAVING max(pk) IS NOT NULL")
        )
