"""The certificate of destruction: what a purge destroyed, on which legal basis, when, how, and who knew (sheet 00 §8).

`certificate` draws it up inside the transaction that decides; `body` is its form, plain JSON that is kept with the
purge; `pdf` prints it in French, for a file in an office. It names the patient by identifier alone: whoever may look at
it can find out the name where the name is still known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final, Protocol

from sqlalchemy import Connection, bindparam, func, select

from archive.config import Settings
from archive.dicom.equipment import Equipment, equipment_of
from archive.lifecycle.approvals import approvals
from archive.lifecycle.certificate_pdf import pdf
from archive.lifecycle.evidence import OtherNote
from archive.lifecycle.facts import gather
from archive.lifecycle.guard import Terms
from archive.schema import hold, instance, location, series, study
from archive.sections import OneSite

__all__ = ["Destroyed", "StudyFacts", "body", "certificate", "pdf"]

FORM: Final = 1  # of the body
METHOD: Final = "unlink"
_METHOD_TEXT: Final = (
    "Suppression des fichiers de tous les niveaux de stockage de l’archive, puis de leurs entrées dans l’index. "
    "Les supports ne sont pas réécrits. Les sauvegardes s’effacent selon leur propre rotation."
)
_BY: Final = "minipacs, sans intervention d’une personne"

_STUDY = select(
    study.c.study_date, study.c.accession_number, study.c.study_id, study.c.study_description
).where(study.c.pk == bindparam("study_pk"))  # fmt: skip
_MODALITIES = (
    select(series.c.modality)
    .where(series.c.study_pk == bindparam("study_pk"), series.c.modality.is_not(None))
    .distinct()
    .order_by(series.c.modality)
)
_BYTES = (
    select(location.c.instance_pk, func.sum(location.c.file_bytes))
    .join_from(location, instance)
    .join(series)
    .where(series.c.study_pk == bindparam("study_pk"))
    .group_by(location.c.instance_pk)
)
_HOLDS = (
    select(
        hold.c.reason, hold.c.until, hold.c.placed_by, hold.c.placed_at, hold.c.removed_by, hold.c.removed_at
    )
    .where(hold.c.study_instance_uid == bindparam("uid"))
    .order_by(hold.c.pk)
)  # fmt: skip


class Going(Protocol):
    """An instance that goes. The digest is that of its data set as it was received (law 3), or as it was derived."""

    @property
    def pk(self) -> int: ...
    @property
    def sop_instance_uid(self) -> str: ...
    @property
    def series_instance_uid(self) -> str: ...
    @property
    def sop_class_uid(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def derived_from_pk(self) -> int | None: ...


class Aside(Protocol):
    """Other content under the UID of an instance that goes, kept in quarantine until now."""

    @property
    def sop_instance_uid(self) -> str: ...
    @property
    def digest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Destroyed:
    """One instance, as the certificate names it."""

    sop_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    digest: str
    file_bytes: int | None = None  # of all its copies
    derived_from: str | None = None  # SOP Instance UID of the original of a lossy copy


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """The study as the archive showed it. Dates are YYYYMMDD."""

    study_instance_uid: str
    patient: str  # identifier^^^issuer, as the audit names it
    study_date: str | None = None
    accession_number: str | None = None
    study_id: str | None = None
    description: str | None = None
    modalities: tuple[str, ...] = ()


def certificate(
    conn: Connection,
    settings: Settings,
    *,
    purge_id: str,
    known: Terms,
    instances: Sequence[Going],
    aside: Sequence[Aside],
    note_uid: str,
    note_digest: str,
    others: Sequence[OtherNote] = (),
    dose_reports: Sequence[str] = (),
    at: datetime,
) -> dict[str, Any]:
    """The certificate of a purge that is being decided, inside its transaction, while its rows are still there.

    `others`: notes of (113039, DCM) that came and are kept as evidence too; `dose_reports`: what stays in the archive.
    `known`: the study's dates before they are taken back. `at`: now. What is returned is JSON alone, so that what is
    read back is what was written; the purge adds `finished_at` when the last file is gone.
    """
    where = {"study_pk": known.pk}
    row = conn.execute(_STUDY, where).one()
    sizes = {pk: int(count) for pk, count in conn.execute(_BYTES, where)}
    uids = {one.pk: one.sop_instance_uid for one in instances}
    (facts,) = gather(conn, settings, [known.pk])
    holds = [one._asdict() for one in conn.execute(_HOLDS, {"uid": known.study_instance_uid})]
    approved = approvals(conn, known.study_instance_uid, since=known.announced_at) if known.announced_at else []
    return body(
        StudyFacts(
            study_instance_uid=known.study_instance_uid,
            patient=known.patient,
            study_date=row.study_date,
            accession_number=row.accession_number,
            study_id=row.study_id,
            description=row.study_description,
            modalities=tuple(conn.execute(_MODALITIES, where).scalars()),
        ),
        [
            Destroyed(
                one.sop_instance_uid,
                one.series_instance_uid,
                one.sop_class_uid,
                one.digest,
                sizes.get(one.pk),
                uids.get(one.derived_from_pk) if one.derived_from_pk else None,
            )
            for one in instances
        ],
        id=purge_id,
        equipment=equipment_of(settings),
        site=next(site for site in settings.all_sites if site.id == facts.facts.site),
        keep_until=known.keep_until,
        keep_reasons=known.keep_reasons,
        policy_version=known.policy_version,
        announced_at=known.announced_at,
        purge_on=known.purge_on,
        holds=holds,
        approvals=approved,
        note_uid=note_uid,
        note_digest=note_digest,
        at=at,
        quarantined=[{"sop_instance_uid": one.sop_instance_uid, "digest": one.digest} for one in aside],
        others=[asdict(one) for one in others],
        dose_reports=dose_reports,
    )


def body(
    of: StudyFacts,
    destroyed: Sequence[Destroyed],
    *,
    id: str,
    equipment: Equipment,
    site: OneSite,
    keep_until: str | None,
    keep_reasons: Sequence[object],
    policy_version: str | None,
    announced_at: datetime | None,
    purge_on: str | None,
    holds: Sequence[Mapping[str, Any]],
    approvals: Sequence[Mapping[str, Any]],
    note_uid: str,
    note_digest: str,
    at: datetime,
    by: str = _BY,
    quarantined: Sequence[Mapping[str, str]] = (),
    others: Sequence[Mapping[str, str]] = (),
    dose_reports: Sequence[str] = (),
) -> dict[str, Any]:
    """The certificate of these facts. Pure: the same facts give the same body.

    `keep_reasons` are `archive.policy.Reason.shape()`; `holds` all that ever were on the study (`reason`, `until`,
    `placed_by`, `placed_at`, `removed_by`, `removed_at`); `approvals` of this announcement (`user`, `at`, `reason`).
    """
    instances = sorted(destroyed, key=lambda one: (one.series_instance_uid, one.sop_instance_uid))
    return {
        "form": FORM,
        "id": id,
        "archive": {
            "manufacturer": equipment.manufacturer,
            "software_version": equipment.software_version,
            "ae_title": equipment.station_name,
        },
        "site": {"id": site.id, "name": site.name, "finess": site.finess, "profile": site.profile},
        "study": {**asdict(of), "modalities": list(of.modalities)},
        "counts": {
            "instances": len(instances),
            "series": len({one.series_instance_uid for one in instances}),
            "file_bytes": sum(one.file_bytes or 0 for one in instances),
            "by_sop_class": dict(sorted(Counter(one.sop_class_uid for one in instances).items())),
        },
        "legal_basis": {
            "keep_until": keep_until,
            "reasons": [dict(one) for one in keep_reasons if isinstance(one, Mapping)],
            "policy_version": policy_version,
        },
        "notice": {
            "announced_at": _written(announced_at),
            "purge_on": purge_on,
            "holds": [_written_all(one) for one in holds],
            "approvals": [_written_all(one) for one in approvals],
        },
        "destruction": {"decided_at": at.isoformat(), "by": by, "method": METHOD, "method_text": _METHOD_TEXT},
        "rejection_note": {"sop_instance_uid": note_uid, "digest": note_digest, "title": "113039^DCM"},
        "instances": [asdict(one) for one in instances],
        "quarantined": [dict(one) for one in quarantined],
        **({"other_notes": [dict(one) for one in others]} if others else {}),
        **({"kept_dose_reports": list(dose_reports)} if dose_reports else {}),
    }


def _written_all(fact: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): _written(value) for key, value in fact.items()}  # names of columns are not always plain str


def _written(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else value
