"""Finding patients by what is known of them: one for HL7 (ITI-21) and FHIR (ITI-78), so that both find the same.

Names and identifiers lead by their indexes; what has no column is compared in the rows. Whoever was merged away is
never found, and an identifier of theirs finds the survivor. The INS is found, and told, only while it may be used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Connection, bindparam, func, select
from sqlalchemy.exc import SQLAlchemyError

from archive.authorities import Authorities
from archive.dicom.keys import MAX_CHARACTERS
from archive.dicom.person_name import fold, pattern
from archive.errors import IndexUnavailable, InvalidQuery
from archive.identity import patients
from archive.identity.acts import PatientKey
from archive.identity.ins import NAMESPACES
from archive.identity.record import BIRTH_PLACE, Identifier, Record, of_json
from archive.identity.searchable import shareable
from archive.index.conditions import Parameters, Shape, build, off_index, text_condition
from archive.index.functions import unindexed
from archive.index.match import Between, Exact, Wild
from archive.schema import patient, patient_identifier, visit
from archive.schema.types import AnyRow

PAGE = 200  # rows fetched at a time
SEXES = {"M": "M", "F": "F", "O": "O", "A": "O", "N": "O", "U": ""}  # HL7 table 0001 as the index has it
ADDRESS_PARTS = ("street", "city", "state", "postal_code", "country")
INS = "INS"  # the type of such an identifier; its issuer is the OID
_STRUCTURE = str.maketrans(dict.fromkeys("^=\\", " "))
_FIRST_DAY, _LAST_DAY = "0101", "1231"

_HELD = select(func.coalesce(patient.c.merged_into_pk, patient.c.pk))
_BY_ID = _HELD.where(patient.c.patient_id == bindparam("value"))
_BY_OTHER = _HELD.join(patient_identifier, patient_identifier.c.patient_pk == patient.c.pk).where(
    patient_identifier.c.value == bindparam("value")
)
_BY_ACCOUNT = select(visit.c.patient_pk).where(visit.c.account_number == bindparam("account"))
_BY_INS = select(patient.c.pk).where(patient.c.ins.in_(bindparam("wanted", expanding=True)))
_USED = (
    select(patient.c.pk).where(patient.c.issuer == bindparam("issuer")).limit(1),
    select(patient_identifier.c.pk).where(patient_identifier.c.issuer == bindparam("issuer")).limit(1),
)


@dataclass(frozen=True, slots=True)
class Domain:
    """Who assigns identifiers: an issuer in the one spelling of `archive.authorities`, or the INS of some OIDs."""

    issuer: str = ""
    ins: tuple[str, ...] = ()

    def holds(self, one: Identifier) -> bool:
        """Whether an identifier is one of this domain."""
        return one.issuer in self.ins if one.type == INS else not self.ins and one.issuer == self.issuer


@dataclass(frozen=True, slots=True)
class Wanted:
    """An identifier that is looked for; without `domain` whoever assigned it."""

    value: str
    domain: Domain | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What has to be true of a patient, all of it. In names and addresses `*` is any text and `?` one character; case
    and accents do not count (REQ-DCM-33)."""

    identifiers: tuple[tuple[Wanted, ...], ...] = ()  # of each of these choices one
    family: str = ""
    given: tuple[str, ...] = ()
    born: tuple[str, str] | None = None  # YYYYMMDD, the first and the last day
    sexes: frozenset[str] = frozenset()  # M, F, O, and "" for one that is not known
    address: tuple[tuple[str, str], ...] = ()  # one of ADDRESS_PARTS, or "" for any of them
    phone: str = ""
    account: str = ""  # of one of their visits, whoever assigned it
    pks: tuple[int, ...] | None = None  # only these
    domains: tuple[Domain, ...] = ()  # only those with an identifier of these, and no other is told

    def __bool__(self) -> bool:
        traits = (self.identifiers, self.family, self.given, self.born, self.sexes, self.address, self.phone)
        return any(traits) or bool(self.account) or self.pks is not None or bool(self.domains)


@dataclass(frozen=True, slots=True)
class Found:
    """A patient, and what may be told of them: the identifiers are the only ones that may."""

    pk: int
    record: Record
    identifiers: tuple[Identifier, ...]  # the archive's own first; the INS last
    merged_into: int | None = None
    version: int = 0


def domain_of(
    conn: Connection, authorities: Authorities, accepted: Collection[str], namespace: str, oid: str
) -> Domain | None:
    """The domain of a namespace, an OID, or both; None when nobody here has an identifier of it. `accepted` are the
    OIDs of INS of this site."""
    numbers = tuple(one for one in sorted(accepted) if one == oid or (not oid and NAMESPACES[one] == namespace))
    if numbers:
        return Domain(ins=numbers)
    if oid in NAMESPACES or not (namespace or oid):
        return None
    issuer = authorities.issuer(namespace, oid)
    if authorities.find(namespace, oid) is not None:
        return Domain(issuer)
    used = any(conn.execute(one, {"issuer": issuer}).first() is not None for one in _USED)
    return Domain(issuer) if used else None


def find(conn: Connection, asked: Asked, *, after: int = 0) -> Iterator[Found]:
    """The patients that are meant, in the order of their numbers, those above `after`.

    Raises:
        InvalidQuery: a value is too long.
        IndexUnavailable: the database failed.
    """
    for row in _matching(conn, asked, after):
        yield _found(row, asked.domains)


def count(conn: Connection, asked: Asked) -> int:
    """How many patients are meant, from the first on."""
    return sum(1 for _ in _matching(conn, asked, 0))


def found_of(conn: Connection, pk: int) -> Found | None:
    """One patient, also one who was merged away (then `merged_into` says into whom); None when there is none."""
    row = conn.execute(select(patient).where(patient.c.pk == pk)).first()
    return None if row is None else _found(row, ())


def _matching(conn: Connection, asked: Asked, after: int) -> Iterator[AnyRow]:
    parameters = Parameters()
    try:
        shapes, meets = _shapes(asked, parameters)
        pks = _named(conn, asked)
        if pks is not None and not pks:
            return
        statement = select(patient).where(patient.c.merged_into_pk.is_(None))
        if pks is not None:
            statement = statement.where(patient.c.pk.in_(pks))
        else:  # without an identifier nobody could be told apart
            statement = statement.where(patient.c.patient_id != "")
        leading = next((shape for shape in shapes if _is_range(shape)), None) if pks is None else None
        number: ColumnElement[int] = patient.c.pk
        if pks is not None or leading is not None:  # nothing else may lead, neither a condition nor the order
            number = unindexed(patient.c.pk)
            shapes = [shape if shape is leading else off_index(shape) for shape in shapes]
        statement = statement.where(number > after, *(build(shape) for shape in shapes)).order_by(number)
        options = {"stream_results": True, "max_row_buffer": PAGE}
        result = conn.execute(statement, parameters.values, execution_options=options)
        try:
            for row in result:
                if all(one(row) for one in meets) and (not asked.domains or _identifiers(row, asked.domains)):
                    yield row
        finally:
            result.close()
    except SQLAlchemyError as error:
        raise IndexUnavailable("the index cannot be read") from error


def _named(conn: Connection, asked: Asked) -> list[int] | None:
    """The numbers of those who have the wanted identifiers and account; None: none is wanted."""
    wanted = [{pk for one in choices for pk in _holders(conn, one)} for choices in asked.identifiers]
    if asked.pks is not None:
        wanted.append(set(asked.pks))
    if asked.account:
        _demand_short(asked.account)
        wanted.append(set(conn.execute(_BY_ACCOUNT, {"account": asked.account}).scalars()))
    return sorted(set.intersection(*wanted)) if wanted else None


def _holders(conn: Connection, wanted: Wanted) -> Iterator[int]:
    """Who has an identifier, or survived whoever had it."""
    domain = wanted.domain
    _demand_short(wanted.value)
    if domain is None or not domain.ins:
        for statement, column in ((_BY_ID, patient.c.issuer), (_BY_OTHER, patient_identifier.c.issuer)):
            limited = statement if domain is None else statement.where(column == domain.issuer)
            yield from conn.execute(limited, {"value": wanted.value}).scalars()
    numbers = NAMESPACES if domain is None else domain.ins
    if numbers:
        yield from conn.execute(_BY_INS, {"wanted": [f"{wanted.value}^{oid}" for oid in numbers]}).scalars()


def _shapes(asked: Asked, parameters: Parameters) -> tuple[list[Shape], list[Callable[[AnyRow], bool]]]:
    """What SQL selects, and what its rows are still to be compared with."""
    shapes: list[Shape] = []
    meets: list[Callable[[AnyRow], bool]] = []
    # what is nothing but any text asks for nothing
    family, *given = (text if text.strip("*") else "" for text in map(_folded, (asked.family, *asked.given)))
    given = [text for text in given if text]
    if family or given:
        wild = f"{'' if family.isascii() else '*'}{family}*" if family else f"*^{max(given, key=len)}*"
        columns = ("patient.patient_name", "patient.other_names")
        shapes.append(("or", *(text_condition(column, Wild(wild), parameters) for column in columns)))
        meets.append(lambda row: _name_meets(row, family, given))
    if asked.born is not None:
        first, last = asked.born
        born = text_condition("patient.birth_date", Between("DA", first, last), parameters)
        shapes.append(("or", born, ("null", "patient.birth_date")))
        meets.append(lambda row: _born(row, first, last))
    if asked.sexes:
        known = text_condition("patient.sex", Exact(tuple(sorted(asked.sexes))), parameters)
        shapes.append(("or", known, ("null", "patient.sex")) if "" in asked.sexes else known)
    for part, text in asked.address:
        wanted = pattern(_folded(text))
        names = (part,) if part else ADDRESS_PARTS
        meets.append(lambda row, wanted=wanted, names=names: _lives(row, wanted.fullmatch, names))  # type: ignore[misc]
    if asked.phone:
        digits = _digits(asked.phone)
        meets.append(lambda row: any(_digits(one) == digits for one in _numbers(row)))
    return shapes, meets


def _is_range(shape: Shape) -> bool:
    """Whether each of its alternatives is found by an index: a name whose beginning is asked for."""
    return shape[0] == "or" and all(one[0] == "and" and one[1][0] == "ge" for one in shape[1:])


def _demand_short(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise InvalidQuery("a value is too long")


def _folded(text: str) -> str:
    _demand_short(text)
    return fold(text.translate(_STRUCTURE))


def _name_meets(row: AnyRow, family: str, given: Collection[str]) -> bool:
    """One of the family names, and each given name one of the given names."""
    names = [name for text in (row.patient_name, row.other_names or "") for name in text.replace("=", "\\").split("\\")]
    parts = [(*name.split("^"), "")[:2] for name in names]
    if family and not any(pattern(family).fullmatch(one) for one, _ in parts):
        return False
    return all(any(pattern(wanted).fullmatch(one) for _, one in parts) for wanted in given)


def _born(row: AnyRow, first: str, last: str) -> bool:
    """Whether somebody was surely born on one of these days; a year alone stands for all of its days."""
    known = row.birth_date or (_raw(row).get("birth_date") or "")
    if not known:
        return False
    return first <= known + _FIRST_DAY[len(known) - 4 :] and known + _LAST_DAY[len(known) - 4 :] <= last


def _lives(row: AnyRow, meets: Callable[[str], object], names: Collection[str]) -> bool:
    homes = [one for one in _raw(row).get("addresses", ()) if one.get("type") != BIRTH_PLACE]
    return any(meets(_folded(text)) for one in homes for name in names if (text := one.get(name)))


def _numbers(row: AnyRow) -> list[str]:
    found = [one.get(key, "") for one in _raw(row).get("phones", ()) for key in ("number", "email")]
    return [one for one in found if one]


def _digits(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum() or letter == "@")


def _raw(row: AnyRow) -> dict[str, Any]:
    known: dict[str, Any] = orjson.loads(row.record) if row.record else {}
    return known


def _found(row: AnyRow, domains: Collection[Domain]) -> Found:
    record = patients.record_of(row) or patients.seen_of(row)  # what images say of somebody the RIS has not sent
    return Found(row.pk, record, tuple(_identifiers(row, domains)), row.merged_into_pk, row.version)


def _identifiers(row: AnyRow, domains: Collection[Domain]) -> list[Identifier]:
    """The identifiers that may be told, of these domains, or of all when there are none."""
    key = patients.key_of(row)
    found = [Identifier(key.patient_id, key.issuer, "PI")] if key.patient_id else []
    known = of_json(row.record) if row.record else Record()
    found += [one for one in shareable(known) if PatientKey(one.value, one.issuer) != key]
    if known.ins is not None:
        found.append(Identifier(known.ins.value, known.ins.oid, INS))
    return [one for one in found if not domains or any(domain.holds(one) for domain in domains)]
