"""Studies that a step of their life failed for: tried again later and later, the others go on (STYLE §3, FIELD pain 3).

Kept in real time: what is broken does not heal faster because the clock of a test bed moved.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial

import structlog
from sqlalchemy import Connection, delete, insert, select, update

from archive.core import Archive
from archive.errors import ArchiveError
from archive.schema import life_failure, study

log = structlog.get_logger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = timedelta(minutes=1), timedelta(days=1)  # doubling
_ERROR_CHARACTERS = 300


def failed(archive: Archive, study_pk: int, step: str, error: Exception) -> None:
    """Remember that `step` (12 characters at most) failed for a study; it rests for a while, longer each
    time (`archive.lifecycle.compute` leaves it out).

    Raises Unavailable when that cannot be written.
    """
    words = f": {error}" if isinstance(error, ArchiveError) else ""  # those of others may quote what they met
    said = f"{type(error).__name__}{words}"[:_ERROR_CHARACTERS]
    uid = archive.commit.run(partial(_failed, pk=study_pk, step=step, error=said, now=archive.real_clock()))
    log.error(
        "a step failed for a study, the others go on",
        study=uid,
        step=step,
        error=type(error).__name__,
        exc_info=None if isinstance(error, ArchiveError) else error,  # a bug
    )


def _failed(conn: Connection, *, pk: int, step: str, error: str, now: datetime) -> str:
    uid = conn.execute(select(study.c.study_instance_uid).where(study.c.pk == pk)).scalar()
    if uid is None:
        return ""
    mine = (life_failure.c.study_pk == pk, life_failure.c.step == step)
    before = int(conn.execute(select(life_failure.c.attempts).where(*mine)).scalar() or 0)
    pause = min(FIRST_PAUSE * 2 ** min(before, 20), LONGEST_PAUSE)
    values = {"attempts": before + 1, "retry_at": now + pause, "error": error}
    if before:
        conn.execute(update(life_failure).where(*mine).values(values))
    else:
        conn.execute(insert(life_failure).values(study_pk=pk, step=step, **values))
    return str(uid)


def worked(archive: Archive, study_pk: int, step: str) -> None:
    """Forget what failed before."""
    mine = (life_failure.c.study_pk == study_pk, life_failure.c.step == step)
    archive.commit.run(lambda conn: conn.execute(delete(life_failure).where(*mine)))


def limping(conn: Connection, step: str, *, now: datetime) -> dict[int, bool]:
    """The keys of studies that `step` failed for the last time, and whether they rest at `now` (real time)."""
    rows = conn.execute(select(life_failure.c.study_pk, life_failure.c.retry_at).where(life_failure.c.step == step))
    return {row.study_pk: row.retry_at > now for row in rows}
