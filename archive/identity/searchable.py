"""By what of a record a patient is found: names beside the first one, identifiers of other authorities.

Kept beside the record in the same transaction, and made from it alone, so that facts bring them back.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, update

from archive.dicom.keys import MAX_CHARACTERS
from archive.dicom.person_name import fold
from archive.identity.record import Identifier, Record
from archive.schema import patient, patient_identifier

INS_ROOT = "1.2.250.1.213.1.4."  # national numbers, those for bills among them
# CX-5 of what nobody outside is told: the numbers of the health insurance and what was made of them; and of visits
PRIVATE = frozenset({"INS", "INS-C", "INS-NIR", "INS-NIA", "NH", "SS", "NDP", "AN", "VN"})
_STRUCTURE = str.maketrans(dict.fromkeys("^=\\*?", " "))


def make_searchable(conn: Connection, pk: int, record: Record | None) -> None:
    """Have a patient found by what their record says now."""
    names = other_names(record) if record is not None else None
    conn.execute(update(patient).where(patient.c.pk == pk).values(other_names=names))
    conn.execute(delete(patient_identifier).where(patient_identifier.c.patient_pk == pk))
    rows = [
        {"patient_pk": pk, "value": one.value[:MAX_CHARACTERS], "issuer": one.issuer}
        for one in (shareable(record) if record is not None else ())
    ]
    if rows:
        conn.execute(insert(patient_identifier), rows)


def other_names(record: Record) -> str | None:
    """The folded names that `patient.patient_name` does not hold, joined by a backslash: the used name first, then the
    family name with each further given name. None: there are none."""
    birth, used = record.birth_name, record.used_name
    pairs = [(used.family, used.given)] if used else []
    pairs += [(birth.family, given) for given in (birth.given_list or "").split() if given != birth.given]
    folded = (fold("^".join((part or "").translate(_STRUCTURE) for part in pair)) for pair in pairs)
    return "\\".join(dict.fromkeys(name for name in folded if name))[:MAX_CHARACTERS] or None


def shareable(record: Record) -> tuple[Identifier, ...]:
    """The identifiers that may be told and looked for. The INS is none of them: it is told while it may be used."""
    return tuple(
        one
        for one in dict.fromkeys(record.identifiers)
        if one.type not in PRIVATE and not one.issuer.startswith((INS_ROOT, "ASIP-SANTE-INS"))
    )
