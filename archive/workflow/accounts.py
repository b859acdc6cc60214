"""An account that becomes another patient's (A44; sheet 20 §4.1): its visits, and the orders that were placed in them.

Images stay where they are: the Patient ID in their headers says that they are of the other one. A person looks at them.
"""

from __future__ import annotations

import orjson
from sqlalchemy import Connection, select, update

from archive.identity import patients, visits
from archive.identity.acts import Act
from archive.identity.visits import Numbered
from archive.schema import imaging_order
from archive.work_items import Kind, open_item
from archive.workflow import images
from archive.workflow.steps import tell


def move(conn: Connection, account: Numbered, *, from_pk: int, to_pk: int, act: Act) -> bool:
    """Give the visits and orders of an account to another patient; False when the one who had it has none of it."""
    found = visits.move_account(conn, account, from_pk=from_pk, to_pk=to_pk, act=act)
    named = {one.cx for one in found}
    mine = imaging_order.c.patient_pk == from_pk
    orders = []
    for row in conn.execute(select(imaging_order).where(mine).order_by(imaging_order.c.pk)).all():
        kept = orjson.loads(row.record)
        if kept.get("account") == account.cx or kept.get("visit") in named:
            orders.append(row)
    if not found and not orders:
        return False
    studies = list(dict.fromkeys(uid for row in orders for uid in images.stored(conn, row)))
    for row in orders:
        values = {"patient_pk": to_pk, "updated_at": act.at}
        conn.execute(update(imaging_order).where(imaging_order.c.pk == row.pk).values(values))
        tell(conn, row.pk, "U", act)
    former, owner = (patients.key_of(patients.row_of(conn, pk)) for pk in (from_pk, to_pk))
    for key, detail in ((former, {"account_moved_to": owner.cx}), (owner, {"account_moved_from": former.cx})):
        patients.tell(conn, key, "U", act=act, detail=detail)
    open_item(
        *(conn, Kind.ACCOUNT_MOVED, f"{account.cx} {owner.identity_key}"),
        at=act.at,
        patient_pk=to_pk,
        study_instance_uid=studies[0] if studies else None,
        evidence={
            **act.evidence,
            "from": former.cx,
            "visits": sorted(named),
            "accessions": sorted({row.accession_number for row in orders}),
            "studies": studies,
        },
    )
    return True
