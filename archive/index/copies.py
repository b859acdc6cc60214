"""Files that were found beside the index: copies on cold storage, and what stands of an instance already."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, select

from archive.errors import Gone
from archive.index.arrival import Arrival
from archive.index.conditions import constant
from archive.index.write import add_copy, add_instance
from archive.instance import CopyState, Outcome, State
from archive.schema import instance, location
from archive.schema.types import AnyRow

_INSTANCE = (  # locked: a purge may be about to take it
    select(instance.c.pk, instance.c.digest, instance.c.state)
    .where(instance.c.sop_instance_uid == bindparam("uid"))
    .with_for_update()
)
_FILED = select(location.c.pk).where(location.c.tier == bindparam("tier"), location.c.path == bindparam("path"))
_GOOD = (
    select(
        location.c.tier,
        location.c.path,
        location.c.transfer_syntax_uid,
        location.c.digest,
        location.c.file_bytes,
        location.c.data_set_offset,
        instance.c.digest.label("received_digest"),
    )
    .join_from(location, instance)
    .where(
        instance.c.sop_instance_uid == bindparam("uid"),
        instance.c.state.not_in([State.REPLACED, State.PURGING]),
        location.c.state == constant(str(CopyState.OK)),
    )
    .order_by(location.c.tier.desc(), location.c.pk)  # hot before cold
)


def add_cold_copy(conn: Connection, arrival: Arrival, *, recoded: bool = False) -> Outcome:
    """File a file of the cold tier: as one more copy of an instance that is known, or as the copy of a new one.

    STORED, STORED_HELD, or SAME_UID: the instance was received as other bytes, and nothing was written; `recoded` says
    that they mean the same.

    Raises:
        Gone: it was purged, or is being removed.
    """
    known = conn.execute(_INSTANCE, {"uid": arrival.header.sop_instance_uid}).first()
    if known is None:
        return add_instance(conn, arrival)
    if known.state == State.PURGING:
        raise Gone("it is being removed: nothing of it is taken now")
    if conn.execute(_FILED, {"tier": arrival.tier, "path": arrival.path}).first() is not None:
        return Outcome.STORED
    if known.digest != arrival.digest and not recoded:
        return Outcome.SAME_UID
    add_copy(conn, arrival, known.pk)
    return Outcome.STORED


def good_copies(conn: Connection, sop_instance_uid: str) -> Sequence[AnyRow]:
    """The copies of an instance that nothing bad is known of, hot before cold; their bytes are not looked at."""
    return conn.execute(_GOOD, {"uid": sop_instance_uid}).all()
