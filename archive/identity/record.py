"""What is said of a patient: the record, and how a message changes it (sheet 20 §4.2, REQ-HL7-P3 to P10). Pure.

A value is None when it was never said, "" when it was said and deleted, or unknown to who said it. A `Statement` is
what one message says: None leaves what is known, "" deletes it, anything else replaces it (REQ-HL7-13).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

from pydantic import TypeAdapter

NAME_TYPES = ("L", "D", "S", "U")  # XPN-7: legal, used, pseudonym, unspecified; others are not kept (P3)
STATUSES = frozenset(  # table 0445 of France
    {
        *("VIDE", "PROV", "VALI", "DOUB", "DESA", "DPOT", "DOUA", "COLP", "COLV", "FILI", "CACH", "ANOM"),
        *("IDVER", "RECD", "IDRA", "USUR", "HOMD", "INVA"),
    }
)
ATTRIBUTES = frozenset({"HOMA", "FICT", "DOUT"})  # of an identity, beside its status
KNOWN_CODES = STATUSES | ATTRIBUTES
NEW = ("PROV",)  # the status of somebody whose status nobody has said (P9)


@dataclass(frozen=True, slots=True)
class Name:
    """One name, of the type that the record keeps it under (XPN, HL7 2.5 2.A.88)."""

    family: str | None = None
    given: str | None = None  # the first given name
    given_list: str | None = None  # all of them, the first too, when the identity comes from INSi
    prefix: str | None = None
    suffix: str | None = None

    def __bool__(self) -> bool:
        return bool(self.family or self.given)


@dataclass(frozen=True, slots=True)
class Address:
    """One address, or with type BDL the place of birth (XAD, HL7 2.5 2.A.83)."""

    type: str = ""  # XAD-7: H, O, BDL…
    street: str = ""
    other: str = ""
    city: str = ""
    state: str = ""
    postal_code: str = ""
    country: str = ""
    code: str = ""  # XAD-9; of BDL the INSEE code of the commune or country (P7)


BIRTH_PLACE = "BDL"


@dataclass(frozen=True, slots=True)
class Phone:
    """One way to reach somebody (XTN)."""

    number: str = ""
    use: str = ""  # XTN-2
    equipment: str = ""  # XTN-3
    email: str = ""


@dataclass(frozen=True, slots=True)
class Identifier:
    """An identifier of somebody (CX)."""

    value: str
    issuer: str  # the one spelling of `archive.authorities`
    type: str = ""  # CX-5


@dataclass(frozen=True, slots=True)
class Ins:
    """A national identifier: 13 characters and their key, and the OID that says which number it is."""

    value: str
    oid: str


@dataclass(frozen=True, slots=True)
class InsEvent:
    """What became of an INS; read by the audit alone, never given out (REQ-HL7-64)."""

    at: str  # ISO 8601
    value: str
    oid: str
    event: str  # accepted, withdrawn, replaced, beside
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Proof:
    """How the identity was established (ZFD, PAM-FR)."""

    lunar_date: str | None = None  # ZFD-1
    corrected: str | None = None  # ZFD-4: Y, the birth date was corrected, and no INS may be used
    means: str | None = None  # ZFD-5: SM CV INSI CB RFID
    asked_on: str | None = None  # ZFD-6: call of INSi
    document: str | None = None  # ZFD-7: AN CC CE CM CN CS LE PA PC TC
    ends_on: str | None = None  # ZFD-8


@dataclass(frozen=True, slots=True)
class Dmp:
    """Whether documents may be shared (ZFA, PAM-FR)."""

    status: str | None = None  # ZFA-1: ACTIF, FERME, INEXISTANT
    alimentation: str | None = None  # ZFA-9: NA, IO, INO
    consultation: str | None = None  # ZFA-11: NA, INC, IC


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that is said of one patient. Dates are digits, as precise as they are known: YYYY[MM[DD]]."""

    names: Mapping[str, Name] = field(default_factory=dict)  # by `NAME_TYPES`
    birth_date: str | None = None
    sex: str | None = None
    addresses: tuple[Address, ...] = ()
    birth_place: str | None = None  # PID-23
    phones: tuple[Phone, ...] = ()
    codes: tuple[str, ...] = NEW  # PID-32 as it came
    identifiers: tuple[Identifier, ...] = ()  # of all authorities; they only become more (P6)
    ins: Ins | None = None  # the one that may be used; None: none may
    ins_history: tuple[InsEvent, ...] = ()
    proof: Proof = Proof()
    dmp: Dmp = Dmp()
    deceased: str | None = None  # PID-30
    death_day: str | None = None  # PID-29
    mother: tuple[Identifier, ...] = ()  # PID-21
    multiple_birth: str | None = None  # PID-24
    birth_order: str | None = None  # PID-25
    updated_at: str | None = None  # PID-33

    @property
    def birth_name(self) -> Name:
        """The legal name; without one, a pseudonym or an unspecified name stands in for it (P3)."""
        return next((name for kind in ("L", "S", "U") if (name := self.names.get(kind))), Name())

    @property
    def used_name(self) -> Name:
        """The name that somebody uses (type D)."""
        return self.names.get("D", Name())

    @property
    def birth_place_code(self) -> str:
        """INSEE code of the commune or country of birth."""
        return next((one.code for one in self.addresses if one.type == BIRTH_PLACE), "")

    @property
    def home(self) -> Address:
        """Where somebody lives, as far as it is said."""
        elsewhere = [one for one in self.addresses if one.type != BIRTH_PLACE]
        return next((one for one in elsewhere if one.type == "H"), elsewhere[0] if elsewhere else Address())

    @property
    def status(self) -> str:
        """The status of the identity: the first code of PID-32 that is one."""
        return next((code for code in self.codes if code not in ATTRIBUTES), NEW[0])

    @property
    def attributes(self) -> tuple[str, ...]:
        """HOMA, FICT, DOUT, where they are said."""
        return tuple(code for code in self.codes if code in ATTRIBUTES)

    @property
    def death_date(self) -> str:
        """The day of death; "" for somebody who lives, or when it is not said."""
        return "" if self.deceased == "N" else self.death_day or ""

    @property
    def level(self) -> str:
        """The four levels of trust of the RNIV (REQ-HL7-68); HL7 says `VALI` for the two highest."""
        if "VALI" in self.codes:
            return "qualifiée" if self.ins is not None else "validée"
        return "récupérée" if self.proof.means == "INSI" else "provisoire"


@dataclass(frozen=True, slots=True)
class Statement:
    """What one message says of a patient."""

    names: Mapping[str, Name] = field(default_factory=dict)
    birth_date: str | None = None
    sex: str | None = None
    addresses: tuple[Address, ...] | None = None
    birth_place: str | None = None
    phones: tuple[Phone, ...] | None = None
    codes: tuple[str, ...] | None = None
    identifiers: tuple[Identifier, ...] = ()
    ins: tuple[Ins, ...] = ()  # each that is claimed
    proof: Proof = Proof()
    dmp: Dmp = Dmp()
    deceased: str | None = None
    death_day: str | None = None
    mother: tuple[Identifier, ...] | None = None
    multiple_birth: str | None = None
    birth_order: str | None = None
    updated_at: str | None = None
    dropped: tuple[Identifier, ...] = ()  # that the patient has no more (A47)
    drops_ins: bool = False  # no INS of theirs is to be used any more (A47)


_PLAIN = (
    *("birth_date", "sex", "birth_place", "deceased", "death_day", "multiple_birth", "birth_order", "updated_at"),
    *("phones", "mother"),
)
_Parts = TypeVar("_Parts", Name, Proof, Dmp)


def apply(record: Record, said: Statement) -> Record:
    """The record after a message. The INS is not touched: see `archive.identity.ins`."""
    changed = {name: value for name in _PLAIN if (value := getattr(said, name)) is not None}
    names = dict(record.names)
    for kind, name in said.names.items():
        names[kind] = over(names.get(kind, Name()), name)
    known = set(record.identifiers)
    gone = {(one.value, one.issuer) for one in said.dropped}
    identifiers = record.identifiers + tuple(dict.fromkeys(one for one in said.identifiers if one not in known))
    return replace(
        record,
        **changed,
        names=names,
        addresses=_addresses(record.addresses, said.addresses),
        codes=record.codes if said.codes is None else said.codes or NEW,
        identifiers=tuple(one for one in identifiers if (one.value, one.issuer) not in gone),
        proof=over(record.proof, said.proof),
        dmp=over(record.dmp, said.dmp),
    )


def over(known: _Parts, said: _Parts) -> _Parts:
    """The parts that are said, over those that are known."""
    parts = {part.name: value for part in fields(said) if (value := getattr(said, part.name)) is not None}
    return replace(known, **parts)


def _addresses(known: tuple[Address, ...], said: tuple[Address, ...] | None) -> tuple[Address, ...]:
    """Addresses by their type (P7): one that is said replaces all of its type."""
    if said is None:
        return known
    if not said:
        return ()
    types = {one.type for one in said}
    stay = [one for one in known if one.type not in types]
    place = next((one for one in known if one.type == BIRTH_PLACE), Address(BIRTH_PLACE))
    return (*stay, *(_birth_place(place, one) if one.type == BIRTH_PLACE else one for one in said))


def _birth_place(known: Address, said: Address) -> Address:
    """The code of a place stays when the same place is said without it."""
    same = said.city in ("", known.city) and said.country in ("", known.country)
    return replace(said, code=known.code) if same and not said.code and said.city else said


def is_older(said: str, known: str) -> bool:
    """Whether one time of HL7 (TS) is before another one, as far as both are precise (REQ-HL7-25). Their offsets from
    UTC are not compared: one sender writes one local time."""
    digits = [text.partition("+")[0].partition("-")[0].partition(".")[0] for text in (said, known)]
    length = min(map(len, digits))
    return digits[0][:length] < digits[1][:length]


def unknown_codes(codes: Iterable[str]) -> list[str]:
    """Codes of PID-32 that no table has."""
    return [code for code in codes if code not in KNOWN_CODES]


_ADAPTER = TypeAdapter(Record)


def to_json(record: Record) -> str:
    """The record as `patient.record` and the journal keep it."""
    return _ADAPTER.dump_json(record, exclude_defaults=True).decode()


def of_json(text: str) -> Record:
    """The record that `to_json` wrote."""
    return _ADAPTER.validate_json(text)
