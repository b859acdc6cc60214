"""Manifests of studies for a sharing network (sheet 50 §3, REQ-DRIM-20 to 23, 30): made when they are asked for, and
remembered. One whose study has not changed is the same one, byte by byte; else it has a new UID and the next number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

import orjson
from sqlalchemy import Connection, bindparam, select

from archive import retrieve
from archive.access import Actor
from archive.audit.record import Event, Outcome, record, refused
from archive.core import Archive
from archive.dicom.equipment import equipment_of
from archive.dicom.manifest import Listed, Series, Subject
from archive.dicom.manifest import manifest as made_of
from archive.dicom.uids import new_uid
from archive.errors import Conflict, Gone, InsNotQualified, NotAllowed, NotFound
from archive.identity.dicom import attributes_of
from archive.identity.ins import NAMESPACES
from archive.identity.patients import record_of
from archive.identity.record import Record
from archive.index.rejections import notes_among
from archive.journal import Kind, note
from archive.schema import imaging_order, instance, manifest, patient, series, study
from archive.schema.types import AnyRow
from archive.schema.upsert import insert
from archive.sites import is_imported, site_of
from archive.studies import Study, describe

_OPPOSED = "IO"  # ZFA-9: the patient does not want documents to be shared
_copy = instance.alias("copy")
_COPIES = (  # of a study: lossy copies, and whose they are
    select(instance.c.sop_instance_uid, _copy.c.sop_instance_uid.label("copy_uid"))
    .select_from(_copy.join(instance, instance.c.pk == _copy.c.derived_from_pk))
    .join(series, series.c.pk == _copy.c.series_pk)
    .join(study, study.c.pk == series.c.study_pk)
    .where(study.c.study_instance_uid == bindparam("uid"))
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest, whole: a PS3.10 file."""

    sop_instance_uid: str
    number: int
    content: bytes


def make(archive: Archive, study_uid: str, *, base_url: str, actor: Actor) -> Manifest:
    """The manifest of a study as it stands, whose series are retrieved at `base_url` (DICOMweb, without the last
    slash). Handing it over is audited (110106), in the transaction that remembers it; so is a refusal, before.

    Raises:
        NotFound, Gone: nothing of this study is there to be shared.
        InsNotQualified: the patient has no INS that may be used (REQ-DRIM-21).
        Conflict: the patient opposes sharing (REQ-DRIM-10).
        Unavailable: nothing was done.
    """
    try:
        found, subject = _subject(archive, study_uid, base_url)
    except (Conflict, Gone, NotFound) as error:
        failed = Outcome.MINOR_FAILURE
        refused(archive.commit, actor, Event.EXPORT, "R", reason=str(error), outcome=failed, study=study_uid)
        raise
    kept = archive.commit.run(
        partial(_keep, study_uid=study_uid, subject=subject, patient_cx=found.patient, actor=actor, at=archive.clock())
    )
    content = made_of(
        subject, uid=kept.sop_instance_uid, series_uid=kept.series_instance_uid, number=kept.number, at=kept.made_at
    )
    return Manifest(kept.sop_instance_uid, kept.number, content)


def _subject(archive: Archive, study_uid: str, base_url: str) -> tuple[Study, Subject]:
    """The study, and what its manifest says. Raises as `make`."""
    with archive.reading() as conn:
        found = describe(conn, study_uid)
        owner = _owner(conn, study_uid)
        if found is None or owner is None:
            raise _nothing(archive, study_uid)
        subject = Subject(
            **_patient(owner),
            study=found.attributes,
            request=_request(conn, found, owner),
            series=_series(archive, conn, found, f"{base_url}/studies/{study_uid}"),
            institution=_institution(archive, found),
            equipment=replace(equipment_of(archive.settings), software_version="", institution_name=""),
        )
    if not subject.listed:
        raise NotFound("nothing of this study is there to be shared")
    return found, subject


def _nothing(archive: Archive, study_uid: str) -> Gone | NotFound:
    why = retrieve.why_gone(archive, study_uid=study_uid)
    return Gone(f"this study {why}") if why else NotFound("no such study")


def demand_listed(archive: Archive, manifest_uid: str, instance_uids: Collection[str]) -> None:
    """Nothing, when a manifest of ours lists all of these, or the originals of those that are lossy copies
    (REQ-DRIM-30).

    Raises:
        NotFound: there is no such manifest, or it does not list them.
        NotAllowed: the patient has come to oppose sharing (REQ-DRIM-10).
    """
    with archive.reading() as conn:
        row = conn.execute(select(manifest).where(manifest.c.sop_instance_uid == manifest_uid)).first()
        if row is None:
            raise NotFound("no such manifest (KOS-SOPInstanceUID)")
        owner = _owner(conn, row.study_instance_uid)
        if owner is not None and _opposes(record_of(owner)):
            raise NotAllowed("the patient opposes sharing (ZFA-9 = IO)")
        listed = set(orjson.loads(row.listed))
        missing = set(instance_uids) - listed
        if missing:
            copies = conn.execute(_COPIES, {"uid": row.study_instance_uid})
            missing -= {one.copy_uid for one in copies if one.sop_instance_uid in listed}
    if missing:
        raise NotFound(f"{len(missing)} of {len(instance_uids)} instances are not listed by this manifest")


def restore_manifest(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """A manifest from its fact (`minipacs rebuild-index`); `subject` is its SOP Instance UID. Safe to repeat."""
    values = {**body, "listed": orjson.dumps(body["listed"]).decode(), "sop_instance_uid": subject, "made_at": at}
    conn.execute(insert(conn, manifest).values(**values).on_conflict_do_nothing())


def _keep(conn: Connection, *, study_uid: str, subject: Subject, patient_cx: str, actor: Actor, at: datetime) -> AnyRow:
    """The row of the manifest that says this: the last one, or a new one."""
    conn.execute(select(study.c.pk).where(study.c.study_instance_uid == study_uid).with_for_update())
    mine = select(manifest).where(manifest.c.study_instance_uid == study_uid).order_by(manifest.c.number.desc())
    last = conn.execute(mine.limit(1)).first()
    fingerprint = subject.fingerprint()
    if last is None or last.fingerprint != fingerprint:
        uid = new_uid()
        body = {
            "study_instance_uid": study_uid,
            "series_instance_uid": new_uid() if last is None else last.series_instance_uid,
            "number": 1 if last is None else last.number + 1,
            "fingerprint": fingerprint,
            "listed": subject.listed,
            "made_by": actor.user,
        }
        restore_manifest(conn, uid, body, at)
        note(conn, Kind.MANIFEST, uid, body, at=at)
        last = conn.execute(mine.limit(1)).one()
    said = {"manifest": last.sop_instance_uid, "number": last.number, "instances": len(subject.listed)}
    record(conn, actor, Event.EXPORT, "R", patient=patient_cx, study=study_uid, detail=said)
    return last


def _owner(conn: Connection, study_uid: str) -> AnyRow | None:
    whose = select(patient).join_from(study, patient)
    return conn.execute(whose.where(study.c.study_instance_uid == study_uid)).first()


def _opposes(known: Record | None) -> bool:
    return known is not None and known.dmp.alimentation == _OPPOSED


def _patient(owner: AnyRow) -> dict[str, Any]:
    """Who it is, by the INS; what the archive calls the patient is not told."""
    known: Record | None = record_of(owner)
    if known is None or known.ins is None:
        raise InsNotQualified("ins_not_qualified: the patient has no national identity (INS) that may be used")
    if _opposes(known):
        raise Conflict("the patient opposes sharing (ZFA-9 = IO)")
    ins = known.ins
    said = attributes_of(known, patient_id=ins.value, issuer=NAMESPACES[ins.oid], oid=ins.oid)
    return {"patient": said, "birth_place_code": known.birth_place_code}


def _request(conn: Connection, found: Study, owner: AnyRow) -> dict[str, Any]:
    """The order of the study as a worklist item has it; without one, what the images say."""
    from archive.workflow.item import OF_REQUEST, item_of  # loads pydicom's dictionary (archive.dicom.dictionary)

    accession = found.attributes.get("00080050", {}).get("Value") or [""]
    mine = (imaging_order.c.study_instance_uid == found.study_instance_uid) | (
        (imaging_order.c.accession_number == str(accession[0])) & (imaging_order.c.accession_number != "")
    )
    ordered = select(imaging_order, patient.c.attributes).join_from(imaging_order, patient)
    row = conn.execute(
        ordered.where(mine, imaging_order.c.patient_pk == owner.pk).order_by(imaging_order.c.pk).limit(1)
    ).first()
    said = {} if row is None else {key: value for key, value in item_of(row, {}).items() if int(key, 16) in OF_REQUEST}
    own = {key: value for key, value in found.attributes.items() if key in ("00080050", "00080051")}
    return {**said, **own, "0020000D": found.attributes["0020000D"]}


def _series(archive: Archive, conn: Connection, found: Study, address: str) -> list[Series]:
    """What has a good copy, is no rejection note, and did not come from the network itself (REQ-DRIM-08): everything
    else could not be given, says nothing to others, or is shared by whoever made it."""
    sharing = archive.settings.sharing
    notes = notes_among(conn, {one.sop_instance_uid for one in found.instances})
    parts = []
    for part in found.series:
        members = [
            Listed(
                one.sop_instance_uid,
                one.sop_class_uid,
                _text(one.attributes, "00200013"),
                _text(one.attributes, "00280008"),
            )
            for one in part.instances
            if one.tier is not None and one.sop_instance_uid not in notes and not is_imported(sharing, one.source)
        ]
        if members:
            parts.append(
                Series(
                    part.series_instance_uid,
                    f"{address}/series/{part.series_instance_uid}",
                    _text(part.attributes, "00200011"),
                    _text(part.attributes, "00080060"),
                    _text(part.attributes, "0008103E"),
                    members,
                )
            )
    return parts


def _institution(archive: Archive, found: Study) -> str:
    """Name and FINESS of the site, as XON has them (HL7 2.5 2.A.87), in the 64 characters of LO."""
    site = site_of(
        archive.settings.all_sites,
        source=min(found.instances, key=lambda one: one.received_at).source,
        stations=[_text(part.attributes, "00081010") for part in found.series],
        institutions=[_text(part.attributes, "00080080") for part in found.series],
    )
    if not site.finess:
        return site.name[:64]
    tail = f"{'^' * 9}{site.finess}"
    return f"{site.name[: 64 - len(tail)]}{tail}"


def _text(attributes: Mapping[str, Any], key: str) -> str:
    value = (attributes.get(key, {}).get("Value") or [""])[0]
    return "" if value is None else str(value)
