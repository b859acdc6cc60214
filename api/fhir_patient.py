"""`Patient` (FHIR R4), and the search of PDQm (ITI-78, REQ-IHE-05): the same patients that PDQ finds over HL7."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from typing import Any

from api.fhir_search import Page, Search, Token
from archive.access import Actor
from archive.audit.record import Outcome
from archive.authorities import Authorities
from archive.core import Archive
from archive.dicom.patient_id import cx
from archive.errors import InvalidRequest, NotFound, Rejected
from archive.identity import demographics
from archive.identity.acts import Connection
from archive.identity.demographics import INS, Asked, Domain, Found, Wanted
from archive.identity.ins import NIA
from archive.identity.record import BIRTH_PLACE, Address, Identifier, Name, Phone, Record
from archive.index.asked import audit_query

V2_0203 = "http://terminology.hl7.org/CodeSystem/v2-0203"
FR_0203 = "https://hl7.fr/ig/fhir/core/CodeSystem/fr-core-cs-v2-0203"  # of FR Core: INS-NIR, INS-NIA
BIRTH_PLACE_URL = "http://hl7.org/fhir/StructureDefinition/patient-birthPlace"
OID = "urn:oid:"
_GENDERS = {"M": "male", "F": "female", "O": "other", "A": "other", "N": "other", "U": "unknown"}
_SEXES = {"male": "M", "female": "F", "other": "O", "unknown": ""}
_ADDRESS = {
    "address": "",
    "address-city": "city",
    "address-state": "state",
    "address-postalcode": "postal_code",
    "address-country": "country",
}
_EQUIPMENT = {"FX": "fax", "BP": "pager"}
_FIRST, _LAST = "00010101", "99991231"


def search(archive: Archive, asked: Search, *, actor: Actor) -> Page:
    """One page of the patients that a search finds, in the order of their ids. It is audited (110112, ITI-78).

    Raises:
        InvalidRequest, InvalidQuery: a value is wrong, or nothing is asked for.
        NotFound: a system of identifiers that nobody here has one of.
    """
    detail = {"type": "ITI-78", "query": b64encode(asked.asked.encode()).decode("ascii")}
    try:
        with archive.reading() as conn:
            wanted = _wanted(conn, archive, asked)
            audit_query(archive.commit, actor, parameters=detail)
            total = demographics.count(conn, wanted)
            if asked.counts_only:
                return Page([], total, None)
            found = list(islice(demographics.find(conn, wanted, after=asked.cursor), asked.count + 1))
    except Rejected:
        audit_query(archive.commit, actor, parameters=detail, outcome=Outcome.MINOR_FAILURE)
        raise
    page = found[: asked.count]
    following = page[-1].pk if len(found) > asked.count else None
    return Page([resource(one, archive.authorities) for one in page], total, following)


def read(archive: Archive, id: str, *, actor: Actor) -> dict[str, Any]:
    """One patient. Whoever was merged away has nothing left but who they are now. Raises NotFound."""
    with archive.reading() as conn:
        found = demographics.found_of(conn, number_of(id)) if number_of(id) else None
    name = None
    if found is not None and found.identifiers:
        name = cx(found.identifiers[0].value, found.identifiers[0].issuer)
    audit_query(archive.commit, actor, parameters={"type": "ITI-78", "query": {"patient": id}}, patient=name)
    if found is None:
        raise NotFound("no such patient")
    if found.merged_into is not None:
        link = {"other": {"reference": f"Patient/{found.merged_into}"}, "type": "replaced-by"}
        return {"resourceType": "Patient", "id": str(found.pk), "active": False, "link": [link]}
    return resource(found, archive.authorities)


def number_of(id: str) -> int:
    """The patient's number that a logical id is; 0 for what is none."""
    return int(id) if id.isascii() and id.isdigit() and len(id) <= 18 else 0


def wanted_of(conn: Connection, archive: Archive, token: Token) -> Wanted:
    """An identifier that is asked for. Raises NotFound for a system that nobody here has one of."""
    if token.system is None:
        return Wanted(token.value)
    return Wanted(token.value, domain_of(conn, archive, token.system) if token.system else Domain())


def domain_of(conn: Connection, archive: Archive, system: str) -> Domain:
    """Who assigns the identifiers of a system. Raises NotFound as ITI-78 3.78.4.1.3, case 3, has it."""
    accepted = archive.settings.identity.ins_oids
    oid = system.removeprefix(OID) if system.startswith(OID) else ""
    found = demographics.domain_of(conn, archive.authorities, accepted, "", oid) if oid else None
    if found is None:
        raise NotFound("targetSystem not found")
    return found


def _wanted(conn: Connection, archive: Archive, asked: Search) -> Asked:
    identifiers: list[tuple[Wanted, ...]] = []
    domains: list[Domain] = []
    for tokens in asked.tokens("identifier"):
        domains += [domain_of(conn, archive, one.system) for one in tokens if one.system and not one.value]
        if choices := tuple(wanted_of(conn, archive, one) for one in tokens if one.value):
            identifiers.append(choices)
    families = asked.strings("family")
    if len(families) > 1:
        raise InvalidRequest("family is given once")
    wanted = Asked(
        identifiers=tuple(identifiers),
        family=families[0] if families else "",
        given=tuple(asked.strings("given")),
        born=_born(asked),
        sexes=_sexes(asked),
        address=tuple((part, text) for name, part in _ADDRESS.items() for text in asked.strings(name)),
        phone=_phone(asked),
        pks=_ids(asked),
        domains=tuple(domains),
    )
    asked.finish()
    if not wanted:
        raise InvalidRequest("say whom to look for: identifier, family, given, birthdate, gender, address, _id")
    return wanted


def _born(asked: Search) -> tuple[str, str] | None:
    span = asked.span("birthdate", days=True)
    if span is None:
        return None
    first = _FIRST if span.low is None else f"{span.low:%Y%m%d}"
    # a month is said to have 31 days, as one that is known without its day is
    last = _LAST if span.high is None else f"{span.high - timedelta(days=1):%Y%m%d}"
    if span.high is not None and span.high.day == 1:
        last = f"{last[:6]}31"
    return first, last


def _sexes(asked: Search) -> frozenset[str]:
    genders = asked.codes("gender") or []
    if unknown := [one for one in genders if one not in _SEXES]:
        raise InvalidRequest(f"gender is male, female, other or unknown, not {unknown[0][:16]!r}")
    return frozenset(_SEXES[one] for one in genders)


def _phone(asked: Search) -> str:
    found = asked.tokens("telecom")
    if len(found) > 1 or (found and len(found[0]) > 1):
        raise InvalidRequest("telecom takes one value")
    return found[0][0].value if found else ""


def _ids(asked: Search) -> tuple[int, ...] | None:
    """The numbers of `_id`; `active=false` finds nobody, for those who were merged away are never found."""
    choices = asked.codes("_id")
    active = asked.codes("active")
    if active is not None and "true" not in active:
        return ()
    return None if choices is None else tuple(number_of(one) for one in choices)


# -- the resource -------------------------------------------------------------------------------------------------


def resource(found: Found, authorities: Authorities) -> dict[str, Any]:
    """A patient as FHIR has it; only what is known is there."""
    record = found.record
    said: dict[str, Any] = {
        "resourceType": "Patient",
        "id": str(found.pk),
        "meta": {"versionId": str(found.version)},
        "extension": list(_birth_place(record)),
        "identifier": [_identifier(one, authorities) for one in found.identifiers],
        "active": True,
        "name": [_name(kind, name) for kind, name in record.names.items() if name],
        "telecom": [one for phone in record.phones for one in _telecom(phone)],
        "gender": _GENDERS.get(record.sex or ""),
        "birthDate": partial_date(record.birth_date or ""),
        **_death(record),
        "address": [_address(one) for one in record.addresses if one.type != BIRTH_PLACE],
        **_birth_order(record),
    }
    return {name: value for name, value in said.items() if value not in (None, "", [])}


def partial_date(digits: str) -> str | None:
    """YYYY, YYYY-MM or YYYY-MM-DD; None when it is no date."""
    day = digits[:8]
    if len(day) not in (4, 6, 8) or not (day.isascii() and day.isdigit()):
        return None
    return "-".join(part for part in (day[:4], day[4:6], day[6:]) if part)


def _identifier(one: Identifier, authorities: Authorities) -> dict[str, Any]:
    if one.type == INS:
        code = "INS-NIA" if one.issuer == NIA else "INS-NIR"
        kind = {"coding": [{"system": FR_0203, "code": code}]}
        return {"use": "official", "type": kind, "system": f"{OID}{one.issuer}", "value": one.value}
    oid = authorities.oid_of(one.issuer) or (one.issuer if one.issuer[:1].isdigit() and "." in one.issuer else "")
    said: dict[str, Any] = {"use": "usual", "type": {"coding": [{"system": V2_0203, "code": one.type or "PI"}]}}
    if oid:
        said["system"] = f"{OID}{oid}"
    said["value"] = one.value
    if one.issuer and one.issuer != oid:
        said["assigner"] = {"display": one.issuer}
    return said


def _name(kind: str, name: Name) -> dict[str, Any]:
    """Legal names are official, used ones usual; `given` begins with the first one."""
    given = [name.given] if name.given else []
    given += [one for one in (name.given_list or "").split() if one not in given]
    said: dict[str, Any] = {
        "use": {"L": "official", "D": "usual"}.get(kind, "anonymous" if kind == "S" else "temp"),
        "family": name.family,
        "given": given,
        "prefix": [name.prefix] if name.prefix else [],
        "suffix": [name.suffix] if name.suffix else [],
    }
    return {key: value for key, value in said.items() if value}


def _telecom(phone: Phone) -> Iterator[dict[str, str]]:
    use = {"PRN": "home", "WPN": "work"}.get(phone.use, "mobile" if phone.equipment == "CP" else "")
    if phone.number:
        system = _EQUIPMENT.get(phone.equipment, "phone")
        yield {"system": system, "value": phone.number, **({"use": use} if use else {})}
    if phone.email:
        yield {"system": "email", "value": phone.email}


def _address(one: Address) -> dict[str, Any]:
    said = {
        "use": {"H": "home", "O": "work", "B": "work", "C": "temp"}.get(one.type),
        "line": [line for line in (one.street, one.other) if line],
        "city": one.city,
        "state": one.state,
        "postalCode": one.postal_code,
        "country": one.country,
    }
    return {key: value for key, value in said.items() if value}


def _birth_place(record: Record) -> Iterator[dict[str, Any]]:
    place = next((one for one in record.addresses if one.type == BIRTH_PLACE), None)
    said = {
        "text": record.birth_place,
        "city": place.city if place is not None else "",
        "country": place.country if place is not None else "",
    }
    said = {key: value for key, value in said.items() if value}
    if said:
        yield {"url": BIRTH_PLACE_URL, "valueAddress": said}


def _death(record: Record) -> dict[str, Any]:
    if record.deceased == "N":
        return {"deceasedBoolean": False}
    day = partial_date(record.death_date)
    if day is not None:
        return {"deceasedDateTime": day}
    return {"deceasedBoolean": True} if record.deceased == "Y" else {}


def _birth_order(record: Record) -> dict[str, Any]:
    order = record.birth_order or ""
    if order.isascii() and order.isdigit() and 0 < int(order) < 100:
        return {"multipleBirthInteger": int(order)}
    return {"multipleBirthBoolean": record.multiple_birth == "Y"} if record.multiple_birth in ("Y", "N") else {}
