"""Messages of a RIS, applied as the listener does: one transaction each, a refusal's own write after its rollback."""

from __future__ import annotations

from typing import Any

import orjson
from sqlalchemy import select

from archive.access import HL7_MAY, Actor, Door
from archive.config import Settings
from archive.core import Archive
from archive.identity.acts import Connection, PatientKey
from archive.identity.patients import find, record_of
from archive.identity.record import Record
from archive.schema import imaging_order, work_item
from archive.schema.types import AnyRow
from archive.work_items import list_items
from hl7_listener.context import Context, Warning
from hl7_listener.dispatch import handler_of
from hl7_listener.message import HL7Error, parse

ISSUER = "CIM-RIVAGES"
AUTHORITY = {"namespace": ISSUER, "oid": "2.25.171717001", "trusted": True}
NIR_TEST = "1.2.250.1.213.1.4.10"
RIS = Actor(user="RIS|RIVAGES", source="127.0.0.1", door=Door.HL7, may=HL7_MAY)

MSH = "MSH|^~\\&|RIS|RIVAGES|PACS|RIVAGES|20260105083000||{}|C1|P|2.5|||||FRA|UNICODE UTF-8"
EVN = "EVN||20260105083000"


def with_ris(settings: Settings, **hl7: object) -> Settings:
    """These settings for an archive with a RIS, whose INS are for tests."""
    told = {
        **settings.model_dump(),
        "test_mode": True,
        "hl7": {"authorities": [AUTHORITY], **hl7},
        "identity": {"ins_oids": [NIR_TEST]},
    }
    return Settings.model_validate(told)


def cx(ipp: str) -> str:
    return f"{ipp}^^^{ISSUER}&2.25.171717001&ISO^PI"


def ins(value: str, oid: str = NIR_TEST) -> str:
    return f"{value}^^^ASIP-SANTE-INS-NIR&{oid}&ISO^INS"


def pid(ipp: str, name: str = "DUPONT^Anne^^^^^L", **fields: str) -> str:
    """A PID; `fields` are p7="19700101" and so on, p3 what stands beside the IPP."""
    values = [""] * 34
    values[1], values[3], values[5] = "1", cx(ipp), name
    for field, value in fields.items():
        number = int(field[1:])
        values[number] = f"{values[3]}~{value}" if number == 3 else value
    return "|".join(["PID", *values[1:]]).rstrip("|")


def bytes_of(event: str, *segments: str, kind: str = "ADT") -> bytes:
    lines = [MSH.format(f"{kind}^{event}"), *([EVN] if kind == "ADT" else []), *segments]
    return ("\r".join(lines) + "\r").encode()


def apply(archive: Archive, raw: bytes) -> list[Warning]:
    """Apply a message in one transaction. Raises HL7Error, and then only what the refusal itself writes stays."""
    message = parse(raw, default_charset="8859/15")
    context = Context(archive.settings, archive.authorities, archive.clock(), RIS, 1)

    def write(conn: Connection) -> list[Warning]:
        return handler_of(message)(conn, message, context)

    try:
        return archive.commit.run(write)
    except HL7Error as error:
        if error.after is not None:
            archive.commit.run(error.after)
        raise


def say(archive: Archive, event: str, *segments: str) -> list[Warning]:
    return apply(archive, bytes_of(event, *segments))


def order(archive: Archive, *segments: str) -> list[Warning]:
    return apply(archive, bytes_of("O01", *segments, kind="ORM"))


def row(archive: Archive, ipp: str, issuer: str = ISSUER) -> AnyRow:
    with archive.reading() as conn:
        found = find(conn, PatientKey(ipp, issuer))
    assert found is not None
    return found


def known(archive: Archive, ipp: str) -> bool:
    with archive.reading() as conn:
        return find(conn, PatientKey(ipp, ISSUER)) is not None


def record(archive: Archive, ipp: str) -> Record:
    found = record_of(row(archive, ipp))
    assert found is not None
    return found


def items(archive: Archive, state: str = "open") -> dict[str, dict[str, Any]]:
    """Work items by kind."""
    with archive.reading() as conn:
        return {one["kind"]: one for one in list_items(conn, state=state)}


def orders(archive: Archive) -> list[AnyRow]:
    with archive.reading() as conn:
        return list(conn.execute(select(imaging_order).order_by(imaging_order.c.pk)).all())


def dicom(found: AnyRow) -> dict[str, Any]:
    held: dict[str, Any] = orjson.loads(found.record)["dicom"]
    return held


def item_count(archive: Archive) -> int:
    with archive.reading() as conn:
        return len(conn.execute(select(work_item.c.pk)).all())
