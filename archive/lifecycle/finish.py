"""What follows the COMMIT of a purge (law 2): unlink, drop the rows, say that it is done; its fact in the journal.

Power that fails on the way leaves a purge that is begun: the next tick finishes it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import orjson
import structlog
from sqlalchemy import Connection, bindparam, delete, exists, insert, or_, select, update

from archive.access import SYSTEM
from archive.core import Archive
from archive.errors import Busy, IndexUnavailable, StorageFailed
from archive.index.conditions import constant
from archive.instance import State
from archive.journal import Kind, note
from archive.lifecycle.remove import finish_removals
from archive.lifecycle.tombstones import Remains, add_tombstones
from archive.schema import (
    instance,
    life_failure,
    purge,
    purge_approval,
    quarantined,
    series,
    study,
    tombstone,
    work_item,
)

log = structlog.get_logger(__name__)

_OF_PURGE = select(tombstone.c.sop_instance_uid).where(tombstone.c.purge_id == bindparam("purge_id"))
_ASIDE = select(quarantined.c.pk, quarantined.c.path).where(quarantined.c.sop_instance_uid.in_(_OF_PURGE))


def finish_purges(archive: Archive) -> int:
    """Finish the purges that are begun; how many are done by it. One that fails is logged, the others go on."""
    with archive.reading() as conn:
        ids = list(conn.execute(select(purge.c.id).where(purge.c.state == "purging").order_by(purge.c.pk)).scalars())
    done = 0
    for id in ids:
        try:
            done += finish_purge(archive, id)
        except (Busy, IndexUnavailable):
            raise
        except StorageFailed as error:
            log.error("a purge cannot be finished, its files stay for the next tick", purge=id, why=str(error))
        except Exception:  # a bug
            log.exception("a purge cannot be finished", purge=id)
    return done


def finish_purge(archive: Archive, id: str) -> bool:
    """Law 2, from the COMMIT on: unlink, drop the rows, say that it is done. Safe to repeat.

    Raises:
        StorageFailed: a file cannot be removed; it is tried again. Unavailable: the index did not answer.
    """
    begun = select(purge.c.study_instance_uid).where(purge.c.id == id, purge.c.state == "purging")
    with archive.reading() as conn:
        uid = conn.execute(begun).scalar()
        study_pk = conn.execute(select(study.c.pk).where(study.c.study_instance_uid == uid)).scalar()
        aside = conn.execute(_ASIDE, {"purge_id": id}).all()
    if uid is None:
        return False
    if study_pk is not None:
        finish_removals(archive, study_pk=study_pk)
    for row in aside:
        try:
            archive.hot.unlink(row.path)
        except OSError as error:
            raise StorageFailed(f"a quarantined file cannot be removed: {error.strerror}") from error
    folders = {os.path.dirname(archive.hot.path(row.path)) for row in aside}
    return archive.commit.run(
        partial(_finish, id=id, uid=uid, aside=[row.pk for row in aside], at=archive.clock()),
        directories=sorted(folder for folder in folders if os.path.isdir(folder)),
    )


def _finish(conn: Connection, *, id: str, uid: str, aside: Sequence[int], at: datetime) -> bool:
    row = conn.execute(select(purge.c.certificate, purge.c.state).where(purge.c.id == id).with_for_update()).one()
    study_pk = conn.execute(select(study.c.pk).where(study.c.study_instance_uid == uid).with_for_update()).scalar()
    if row.state != "purging":
        return False
    if aside:
        conn.execute(delete(quarantined).where(quarantined.c.pk.in_(list(aside))))
    if study_pk is not None and not _drop_study(conn, study_pk, uid):
        return False
    _close_work(conn, id, uid, whole=_is_gone(conn, uid), at=at)
    paper = orjson.loads(row.certificate)
    # what an older database still knew of is dropped once more: the certificate stays what it was (archive.rebuild)
    finished = paper.setdefault("finished_at", at.isoformat())
    said = {"state": "done", "done_at": datetime.fromisoformat(finished), "certificate": orjson.dumps(paper).decode()}
    conn.execute(update(purge).where(purge.c.id == id).values(said))
    note_purge(conn, id, at=at)
    return True


def _drop_study(conn: Connection, study_pk: int, uid: str) -> bool:
    """Drop the study if nothing came in or stays; False: some of what goes is still there."""
    in_study = instance.c.series_pk == series.c.pk
    going = select(instance.c.pk).join_from(instance, series).where(
        series.c.study_pk == study_pk, instance.c.state == constant(str(State.PURGING))
    )  # fmt: skip
    if conn.execute(going.limit(1)).first() is not None:
        return False
    conn.execute(delete(series).where(series.c.study_pk == study_pk, ~exists().where(in_study)))
    conn.execute(delete(life_failure).where(life_failure.c.study_pk == study_pk))
    conn.execute(delete(purge_approval).where(purge_approval.c.study_instance_uid == uid))
    conn.execute(delete(study).where(study.c.pk == study_pk, ~exists().where(series.c.study_pk == study.c.pk)))
    return True


def _is_gone(conn: Connection, uid: str) -> bool:
    return conn.execute(select(study.c.pk).where(study.c.study_instance_uid == uid)).first() is None


def _close_work(conn: Connection, id: str, uid: str, *, whole: bool, at: datetime) -> None:
    """What waits for a person about images that are gone waits no longer."""
    about = work_item.c.subject.in_(_OF_PURGE)
    mine = or_(about, work_item.c.study_instance_uid == uid) if whole else about
    conn.execute(
        update(work_item)
        .where(work_item.c.state == "open", mine)
        .values(state="closed", closed_at=at, closed_by=SYSTEM.user, resolution="purged"),
        {"purge_id": id},
    )


def note_purge(conn: Connection, id: str, *, at: datetime) -> None:
    """The fact: all that `restore_purge` needs. The certificate names every instance."""
    row = conn.execute(select(purge).where(purge.c.id == id)).one()
    body = {
        "study": row.study_instance_uid,
        "patient": row.patient,
        "state": row.state,
        "begun_at": row.begun_at.isoformat(),
        "done_at": row.done_at.isoformat() if row.done_at else None,
        "certificate": orjson.loads(row.certificate),
        "note": {"uid": row.note_uid, "path": row.note_path, "digest": row.note_digest},
    }
    note(conn, Kind.PURGE, id, body, at=at)


def restore_purge(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """Make the rows of a purge, and its tombstones, from the fact alone (`minipacs rebuild-index`). Safe to repeat."""
    done_at = body["done_at"]
    values = {
        "study_instance_uid": body["study"],
        "patient": body["patient"],
        "state": body["state"],
        "begun_at": datetime.fromisoformat(body["begun_at"]),
        "done_at": datetime.fromisoformat(done_at) if done_at else None,
        "certificate": orjson.dumps(body["certificate"]).decode(),
        "note_uid": body["note"]["uid"],
        "note_path": body["note"]["path"],
        "note_digest": body["note"]["digest"],
    }
    if conn.execute(update(purge).where(purge.c.id == subject).values(values)).rowcount == 0:
        conn.execute(insert(purge).values(id=subject, **values))
    keys = ("sop_instance_uid", "series_instance_uid", "sop_class_uid", "digest")
    left = [Remains(*(one[key] for key in keys)) for one in body["certificate"]["instances"]]
    add_tombstones(conn, subject, body["study"], left, at=values["begun_at"])
    if done_at:  # with what a fact before it told to be kept aside
        conn.execute(delete(quarantined).where(quarantined.c.sop_instance_uid.in_(_OF_PURGE)), {"purge_id": subject})
