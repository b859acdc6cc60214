"""Studies of which peers are to be told what is available (Instance Availability Notification, PS3.4 Annex R)."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, bindparam, or_, update

from archive.schema import study

_ANNOUNCE = (
    update(study)
    .where(
        study.c.study_instance_uid == bindparam("uid"),
        or_(study.c.notify_at.is_(None), study.c.notify_at > bindparam("at")),
    )
    .values(notify_at=bindparam("at"))
)


def announce(conn: Connection, study_instance_uid: str, *, at: datetime) -> None:
    """Have the peers that want to know told of a study, from `at` on (real time; now: at once), in the transaction
    that changes what is available: a performed procedure step is complete, images were rejected or come back.

    They are told of each of its instances, as it is when they are told: those that are current with their
    availability, those that were and are no more (rejected, replaced, purged) as UNAVAILABLE. While images arrive, they
    are told when no more come. Without such peers, or such a study, nothing happens.
    """
    conn.execute(_ANNOUNCE, {"uid": study_instance_uid, "at": at})
