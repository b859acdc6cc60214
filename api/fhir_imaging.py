"""`ImagingStudy` (FHIR R4): the studies that QIDO-RS finds too, corrected as it gives them, and where to retrieve
them.

The logical id is the Study Instance UID.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from itertools import accumulate
from typing import Any

from api import fhir_patient
from api.fhir_search import Page, Search, Token, reference
from api.studies import text, values
from archive.access import Actor
from archive.audit.record import Outcome
from archive.core import Archive
from archive.dicom import keys
from archive.dicom.attributes import Level
from archive.dicom.header import is_legal_uid
from archive.errors import InvalidRequest, NotFound, Rejected
from archive.identity import demographics
from archive.identity.acts import Connection
from archive.identity.demographics import Asked
from archive.index import zones
from archive.index.asked import audit_query
from archive.index.match import Key
from archive.index.patients import owner_of, patients_of_studies, studies_of_patients
from archive.index.query import Query, count, find
from archive.index.rows import Row
from archive.policy import PARIS

DCM = "http://dicom.nema.org/resources/ontology/DCM"
UID_SYSTEM, URI_SYSTEM = "urn:dicom:uid", "urn:ietf:rfc:3986"
_ACCESSION_TYPE = {"coding": [{"system": fhir_patient.V2_0203, "code": "ACSN"}]}
_STUDY, _SERIES, _INSTANCE = 0x0020000D, 0x0020000E, 0x00080018
_DATE, _TIME, _ACCESSION, _MODALITIES = 0x00080020, 0x00080030, 0x00080050, 0x00080061
_DESCRIPTION, _REFERRER, _SERIES_COUNT, _INSTANCE_COUNT = 0x00081030, 0x00080090, 0x00201206, 0x00201208
_MODALITY, _NUMBER, _SERIES_DESCRIPTION, _BODY_PART = 0x00080060, 0x00200011, 0x0008103E, 0x00180015
_SERIES_DATE, _SERIES_TIME, _OF_SERIES, _CLASS, _IN_SERIES = 0x00080021, 0x00080031, 0x00201209, 0x00080016, 0x00200013
_OF_STUDY = frozenset(
    {_STUDY, _DATE, _TIME, _ACCESSION, _MODALITIES, _DESCRIPTION, _REFERRER, _SERIES_COUNT, _INSTANCE_COUNT}
    | {zones.OFFSET}
)
_OF_A_SERIES = frozenset(
    {_STUDY, _SERIES, _MODALITY, _NUMBER, _SERIES_DESCRIPTION, _BODY_PART, _SERIES_DATE, _SERIES_TIME, _OF_SERIES}
    | {zones.OFFSET}
)
_OF_AN_INSTANCE = frozenset({_SERIES, _INSTANCE, _CLASS, _IN_SERIES})
_WILD = re.compile(r"[*?\\]")
MOST = 100  # studies in one answer
MOST_INSTANCES = 10_000  # in one answer of several studies: each has all of its own
COUNTED = 100_000


def search(archive: Archive, asked: Search, *, actor: Actor, dicomweb: str) -> Page:
    """One page of the studies that a search finds, the newest first. It is audited (110112).

    Raises:
        InvalidRequest, InvalidQuery: a value is wrong.
        NotFound: `patient.identifier` of a system that nobody here has one of.
    """
    detail = {"resource": "ImagingStudy", "query": b64encode(asked.asked.encode()).decode("ascii")}
    size = min(asked.count, MOST)
    try:
        with archive.reading() as conn:
            wanted = _keys(conn, archive, asked)
            audit_query(archive.commit, actor, parameters=detail)
            if wanted is None:
                return Page([], 0, None)
            query = Query(Level.STUDY, wanted, _OF_STUDY, limit=size + 1, offset=asked.cursor)
            total = count(conn, query, at_most=COUNTED)
            rows = [] if asked.counts_only else list(find(conn, query))
            whole = asked.summary != "true"
            page = _fitting(rows[:size]) if whole else rows[:size]
            found = _resources(conn, page, dicomweb=dicomweb, whole=whole)
    except Rejected:
        audit_query(archive.commit, actor, parameters=detail, outcome=Outcome.MINOR_FAILURE)
        raise
    return Page(found, total if total < COUNTED else None, asked.cursor + len(page) if len(rows) > len(page) else None)


def _fitting(rows: list[Row]) -> list[Row]:
    """The first of these studies, at least one, whose instances one answer may have."""
    sums = accumulate(int(text(row, _INSTANCE_COUNT) or 0) for row in rows)
    return rows[: max(1, sum(some <= MOST_INSTANCES for some in sums))]


def read(archive: Archive, study: str, *, actor: Actor, dicomweb: str) -> dict[str, Any]:
    """One study, with all its series and instances. Raises NotFound."""
    uid = study if is_legal_uid(study) else ""
    found: list[dict[str, Any]] = []
    with archive.reading() as conn:
        patient = owner_of(conn, uid) if uid else None
        audit_query(
            *(archive.commit, actor),
            parameters={"resource": "ImagingStudy", "query": {"study": study}},
            patient=patient,
            study=uid or None,
        )
        if uid:
            rows = list(find(conn, Query(Level.STUDY, (Key(_STUDY, "UI", uid),), _OF_STUDY)))
            found = _resources(conn, rows, dicomweb=dicomweb, whole=True)
    if not found:
        raise NotFound("no such study, or nothing of it that may be seen")
    return found[0]


def _keys(conn: Connection, archive: Archive, asked: Search) -> tuple[Key, ...] | None:
    """What a search asks as matching keys of PS3.4; None: nothing can match."""
    wanted: list[Key] = []
    uids: set[str] | None = None
    possible = True
    for tokens in asked.tokens("identifier"):
        named = [uid for one in tokens if (uid := _study_uid(one)) is not None]
        accessions = [one.value for one in tokens if _study_uid(one) is None]
        if named and accessions:
            raise InvalidRequest("identifier: studies and accession numbers are not asked at once")
        if named:
            uids = set(named) if uids is None else uids & set(named)
        elif any(key.tag == _ACCESSION for key in wanted):
            raise InvalidRequest("identifier: one accession number, or several with commas between")
        else:  # accession numbers have no system here
            known = [one.value for one in tokens if not one.system and not _WILD.search(one.value)]
            possible = possible and bool(known)
            wanted.append(Key(_ACCESSION, "SH", "\\".join(known), any_of=True))
    for ids in asked.values("_id"):
        uids = set(ids) if uids is None else uids & set(ids)
    patients = _patients(conn, archive, asked)
    if patients is not None:
        theirs = set(studies_of_patients(conn, sorted(patients)))
        uids = theirs if uids is None else uids & theirs
    if uids is not None:
        known = sorted(uid for uid in uids if is_legal_uid(uid))
        possible = possible and bool(known)
        wanted.append(Key(_STUDY, "UI", "\\".join(known)))
    modalities = asked.codes("modality")
    if modalities is not None:
        known = [one for one in modalities if not _WILD.search(one)]
        possible = possible and bool(known)
        wanted.append(Key(_MODALITIES, "CS", "\\".join(known)))
    if (status := asked.codes("status")) is not None:
        possible = possible and "available" in status
    wanted += _started(asked)
    asked.finish()
    return tuple(wanted) if possible else None


def _study_uid(token: Token) -> str | None:
    """The Study Instance UID that an identifier is: `urn:dicom:uid|urn:oid:UID`, or `urn:oid:UID`; None for another."""
    if token.system == UID_SYSTEM:
        return token.value.removeprefix(fhir_patient.OID)
    return token.value.removeprefix(fhir_patient.OID) if token.value.startswith(fhir_patient.OID) else None


def _patients(conn: Connection, archive: Archive, asked: Search) -> set[int] | None:
    """The numbers of the patients whose studies are asked for; None: of any."""
    found: set[int] | None = None
    for name in ("patient", "subject"):
        for choices in asked.values(name):
            ids = {fhir_patient.number_of(reference(one, "Patient")) for one in choices}
            found = ids if found is None else found & ids
    for name in ("patient.identifier", "subject.identifier"):
        for tokens in asked.tokens(name):
            wanted = tuple(fhir_patient.wanted_of(conn, archive, one) for one in tokens if one.value)
            holders = {one.pk for one in demographics.find(conn, Asked(identifiers=(wanted,)))}
            found = holders if found is None else found & holders
    return found


def _started(asked: Search) -> Iterator[Key]:
    span = asked.span("started", days=True)
    if span is None:
        return
    low = f"{span.low:%Y%m%d}" if span.low is not None else ""
    high = f"{span.high - timedelta(days=1):%Y%m%d}" if span.high is not None else ""
    yield Key(_DATE, "DA", f"{low}-{high}")


# -- the resource -------------------------------------------------------------------------------------------------


def _resources(conn: Connection, rows: Sequence[Row], *, dicomweb: str, whole: bool) -> list[dict[str, Any]]:
    """Rows of studies as resources: their series, and their instances unless a summary is asked for."""
    uids = [text(row, _STUDY) for row in rows]
    if not uids:
        return []
    of_studies = (Key(_STUDY, "UI", "\\".join(uids)),)
    series: dict[str, list[Row]] = {}
    for row in find(conn, Query(Level.SERIES, of_studies, _OF_A_SERIES)):
        series.setdefault(text(row, _STUDY), []).append(row)
    instances: dict[str, list[Row]] = {}
    for row in find(conn, Query(Level.IMAGE, of_studies, _OF_AN_INSTANCE)) if whole else ():
        instances.setdefault(text(row, _SERIES), []).append(row)
    owners = patients_of_studies(conn, uids)
    return [
        _resource(row, series.get(uid, []), instances, patient=owners[uid], dicomweb=dicomweb, whole=whole)
        for uid, row in zip(uids, rows, strict=True)
    ]


def _resource(
    row: Row,
    series: Sequence[Row],
    instances: Mapping[str, Sequence[Row]],
    *,
    patient: int,
    dicomweb: str,
    whole: bool,
) -> dict[str, Any]:
    uid, accession, referrer = text(row, _STUDY), text(row, _ACCESSION), text(row, _REFERRER)
    identifiers: list[dict[str, Any]] = [{"use": "official", "system": UID_SYSTEM, "value": f"urn:oid:{uid}"}]
    if accession:
        identifiers.append({"use": "usual", "type": _ACCESSION_TYPE, "value": accession})
    said: dict[str, Any] = {
        "resourceType": "ImagingStudy",
        "id": uid,
        "meta": None if whole else {"tag": [{"system": _TAG_SYSTEM, "code": "SUBSETTED"}]},
        "contained": [_endpoint(dicomweb)],
        "identifier": identifiers,
        "status": "available",
        "modality": [_coding(str(one)) for one in values(row, _MODALITIES)],
        "subject": {"reference": f"Patient/{patient}"},
        "started": _moment(row, _DATE, _TIME),
        "referrer": {"display": _person(referrer)} if referrer else None,
        "endpoint": [{"reference": "#dicomweb"}],
        "numberOfSeries": int(text(row, _SERIES_COUNT) or 0),
        "numberOfInstances": int(text(row, _INSTANCE_COUNT) or 0),
        "description": text(row, _DESCRIPTION),
        "series": [_series(one, instances.get(text(one, _SERIES), ())) for one in series],
    }
    return {name: value for name, value in said.items() if value not in (None, "", [])}


_TAG_SYSTEM = "http://terminology.hl7.org/CodeSystem/v3-ObservationValue"


def _endpoint(dicomweb: str) -> dict[str, Any]:
    """Where the study is retrieved: `address`/studies/UID (WADO-RS)."""
    return {
        "resourceType": "Endpoint",
        "id": "dicomweb",
        "status": "active",
        "connectionType": {
            "system": "http://terminology.hl7.org/CodeSystem/endpoint-connection-type",
            "code": "dicom-wado-rs",
        },
        "payloadType": [{"text": "DICOM"}],
        "payloadMimeType": ["application/dicom"],
        "address": dicomweb,
    }


def _series(row: Row, instances: Sequence[Row]) -> dict[str, Any]:
    body_part = text(row, _BODY_PART)
    said: dict[str, Any] = {
        "uid": text(row, _SERIES),
        "number": _unsigned(text(row, _NUMBER)),
        "modality": _coding(text(row, _MODALITY) or "OT"),
        "description": text(row, _SERIES_DESCRIPTION),
        "numberOfInstances": int(text(row, _OF_SERIES) or 0),
        "bodySite": {"display": body_part} if body_part else None,
        "started": _moment(row, _SERIES_DATE, _SERIES_TIME),
        "instance": [_instance(one) for one in instances],
    }
    return {name: value for name, value in said.items() if value not in (None, "", [])}


def _instance(row: Row) -> dict[str, Any]:
    said = {
        "uid": text(row, _INSTANCE),
        "sopClass": {"system": URI_SYSTEM, "code": f"urn:oid:{text(row, _CLASS)}"},
        "number": _unsigned(text(row, _IN_SERIES)),
    }
    return {name: value for name, value in said.items() if value is not None}


def _coding(modality: str) -> dict[str, str]:
    return {"system": DCM, "code": modality}


def _unsigned(number: str) -> int | None:
    """An IS as unsignedInt, which has no sign."""
    return int(number) if number.isascii() and number.isdigit() and int(number) < 1 << 31 else None


def _person(name: str) -> str:
    family, _, rest = name.partition("^")
    given, _, rest = rest.partition("^")
    return " ".join(part for part in (rest.replace("^", " ").strip(), given, family) if part)


def _moment(row: Row, date: int, time: int) -> str | None:
    """A date, with its time in the study's own zone where both are known (REQ-DCM-45)."""
    day, hour = keys.date(text(row, date)), keys.time(text(row, time))
    if day is None:
        return None
    if hour is None or hour[4:6] == "60":  # a leap second is no time of FHIR
        return f"{day[:4]}-{day[4:6]}-{day[6:]}"
    zone: tzinfo = zones.zone_of(text(row, zones.OFFSET)) or PARIS
    return datetime.strptime(day + hour, "%Y%m%d%H%M%S.%f").replace(tzinfo=zone, microsecond=0).isoformat()
