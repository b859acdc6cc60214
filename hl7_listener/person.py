"""A patient as a PID segment: what a supplier of demographics tells (ITI TF-2 3.21, PAM-FR)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from archive.authorities import Authorities
from archive.identity.demographics import INS, Found
from archive.identity.ins import NAMESPACES
from archive.identity.record import Address, Identifier, Name, Phone
from hl7_listener.encoding import Delimiters, escape

_SIGNS = Delimiters()
_OID = re.compile(r"[0-9]+(\.[0-9]+)+")


def pid_of(found: Found, authorities: Authorities, *, seq: int) -> str:
    """The PID of a patient, with the usual delimiters. Race, religion and ethnic group are never said (REQ-HL7-P5)."""
    record = found.record
    fields = {
        1: str(seq),
        3: repeated(identifier(one, authorities) for one in found.identifiers),
        5: repeated(_name(kind, name) for kind, name in record.names.items() if name),
        7: _text(record.birth_date),
        8: _text(record.sex),
        11: repeated(_address(one) for one in record.addresses),
        13: repeated(_phone(one) for one in record.phones),
        23: _text(record.birth_place),
        24: _text(record.multiple_birth),
        25: _text(record.birth_order),
        29: _text(record.death_day),
        30: _text(record.deceased),
        32: repeated(_text(code) for code in record.codes),
        33: _text(record.updated_at),
    }
    return segment("PID", *(fields.get(n, "") for n in range(1, 34)))


def identifier(one: Identifier, authorities: Authorities) -> str:
    """An identifier as CX; its authority with namespace and OID, as far as they are known."""
    if one.type == INS:
        return _joined(one.value, "", "", domain(NAMESPACES[one.issuer], one.issuer), INS)
    named = authorities.find(one.issuer)
    if named is not None:
        authority = domain(named.namespace, named.oid)
    elif _OID.fullmatch(one.issuer):
        authority = domain("", one.issuer)
    else:
        authority = domain(one.issuer, "")
    return _joined(one.value, "", "", authority, one.type)


def domain(namespace: str, oid: str) -> tuple[str, ...]:
    """The subcomponents of CX-4 (HD)."""
    return (namespace, oid, "ISO") if oid else (namespace,)


def repeated(values: Iterable[str]) -> str:
    """A field of several repetitions."""
    return _SIGNS.repetition.join(value for value in values if value)


def segment(name: str, *fields: str) -> str:
    """A segment of fields that are written already; empty ones at its end are left out."""
    return _SIGNS.field.join((name, *fields)).rstrip(_SIGNS.field)


def _name(kind: str, name: Name) -> str:
    return _joined(name.family, name.given, name.given_list, name.suffix, name.prefix, "", kind)


def _address(one: Address) -> str:
    parts = (one.street, one.other, one.city, one.state, one.postal_code, one.country, one.type)
    return _joined(*parts, "", one.code)


def _phone(one: Phone) -> str:
    return _joined("", one.use, one.equipment, one.email, *[""] * 7, one.number)


def _joined(*components: str | tuple[str, ...] | None) -> str:
    """Components, each perhaps of several subcomponents."""
    written = [
        _SIGNS.sub.join(map(_text, one)).rstrip(_SIGNS.sub) if isinstance(one, tuple) else _text(one)
        for one in components
    ]
    return _SIGNS.component.join(written).rstrip(_SIGNS.component)


def _text(value: str | None) -> str:
    return escape(value or "", _SIGNS)
