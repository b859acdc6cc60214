"""What key objects select, both ways: the key images of a study, and the notes that name an instance (IHE KIN).

References stay as they were received. Where an original was replaced, what stands for it now is named beside it
(REQ-DCM-84); where an image was rejected, or its note was, the reference is not told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from sqlalchemy import BindParameter, Connection, Select, bindparam, select

from archive.dicom.document import NO_SELECTION, Reference, code_of, text_of
from archive.index.conditions import constant
from archive.instance import CURRENT, KNOWN, State
from archive.schema import instance, reference, series, study
from archive.schema.types import AnyRow

_BATCH = 500
_PRESENTATION_STATES: Final = "1.2.840.10008.5.1.4.1.1.11."
_UIDS: BindParameter[Sequence[str]] = bindparam("uids", expanding=True)
_PKS: BindParameter[Sequence[int]] = bindparam("pks", expanding=True)
_NOTES: Select[Any] = (
    select(
        reference,
        instance.c.sop_instance_uid.label("note_uid"),
        instance.c.attributes,
        series.c.series_instance_uid.label("note_series"),
        series.c.attributes.label("series_attributes"),
        study.c.study_instance_uid.label("note_study"),
    )
    .select_from(
        reference.join(instance, instance.c.pk == reference.c.instance_pk)
        .join(series, series.c.pk == instance.c.series_pk)
        .join(study, study.c.pk == series.c.study_pk)
    )
    # a companion repeats what its key object says, of the same images
    .where(instance.c.state.in_(sorted(CURRENT)), instance.c.derived_from_pk.is_(None))
    .order_by(instance.c.pk, reference.c.pk)
)
_HERE = (
    select(
        instance.c.pk,
        instance.c.sop_instance_uid,
        instance.c.state,
        series.c.series_instance_uid,
        study.c.study_instance_uid,
    )
    .select_from(instance.join(series).join(study))
    .where(instance.c.sop_instance_uid.in_(_UIDS), instance.c.state != State.PURGING)
)
_COPIES = (
    select(instance.c.derived_from_pk, instance.c.sop_instance_uid, series.c.series_instance_uid)
    .join_from(instance, series)
    .where(instance.c.derived_from_pk.in_(_PKS), instance.c.state == constant(str(State.STORED)))
)
_original = instance.alias("original")
_FORMS = (  # of an image: the UID of what came, beside that of its lossy copy
    select(_original.c.sop_instance_uid)
    .join_from(instance, _original, instance.c.derived_from_pk == _original.c.pk)
    .where(instance.c.sop_instance_uid == bindparam("uid"))
)


@dataclass(frozen=True, slots=True)
class Note:
    """A key object: who says it, and what."""

    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    title: tuple[str, str, str]  # code, scheme, meaning (CID 7010)
    content_date: str
    content_time: str
    description: str  # of its series

    def shape(self) -> dict[str, Any]:
        """As `/api/v1` gives it."""
        code, scheme, meaning = self.title
        return {
            "sop_instance_uid": self.sop_instance_uid,
            "series_instance_uid": self.series_instance_uid,
            "study_instance_uid": self.study_instance_uid,
            "title": {"code": code, "scheme": scheme, "meaning": meaning},
            "content_date": self.content_date,
            "content_time": self.content_time,
            "series_description": self.description,
        }


@dataclass(slots=True)
class KeyImage:
    """One image that notes select. `current`: what stands for it now, SOP Instance and Series Instance UID; None: it is
    not here (it has not come, or was purged)."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    current: tuple[str, str] | None
    notes: list[tuple[Note, str, str]] = field(default_factory=list)  # with its frames, and its presentation state

    def shape(self) -> dict[str, Any]:
        """As `/api/v1` gives it."""
        return {
            "study_instance_uid": self.study_instance_uid,
            "series_instance_uid": self.series_instance_uid,
            "sop_class_uid": self.sop_class_uid,
            "sop_instance_uid": self.sop_instance_uid,
            "current": None
            if self.current is None
            else {"sop_instance_uid": self.current[0], "series_instance_uid": self.current[1]},
            "notes": [
                {
                    **note.shape(),
                    "frames": [int(number) for number in frames.split(",") if number],
                    "presentation_state": view or None,
                }
                for note, frames, view in self.notes
            ],
        }


def add_references(conn: Connection, instance_pk: int, selected: Iterable[Reference]) -> None:
    """File what the content of the document `instance_pk` selects, in its order. Inside a write of `archive.commit`."""
    rows = [
        {
            "instance_pk": instance_pk,
            "study_instance_uid": one.study_instance_uid,
            "series_instance_uid": one.series_instance_uid,
            "sop_class_uid": one.sop_class_uid,
            "sop_instance_uid": one.sop_instance_uid,
            "frames": one.frames or None,
            "with_uid": one.shows or None,
        }
        for one in selected
    ]
    if rows:
        conn.execute(reference.insert(), rows)


def key_images(conn: Connection, study_instance_uid: str) -> list[KeyImage]:
    """The images of a study that key objects select, wherever these are filed, in the order of the notes.

    Presentation states that a note names are views of images, and no images themselves.
    """
    of_study = reference.c.study_instance_uid == study_instance_uid
    return _images(conn, conn.execute(_NOTES.where(of_study)).all())


def notes_of(conn: Connection, sop_instance_uid: str) -> list[KeyImage]:
    """The same of one image, asked by any UID that it has or had; [] when no note selects it."""
    uids = [sop_instance_uid, *conn.execute(_FORMS, {"uid": sop_instance_uid}).scalars()]
    here = {row.pk for row in conn.execute(_HERE, {"uids": [sop_instance_uid]})}
    if here:
        uids += [row.sop_instance_uid for row in conn.execute(_COPIES, {"pks": sorted(here)})]
    naming = select(reference.c.instance_pk).where(reference.c.sop_instance_uid.in_(_UIDS))
    rows = conn.execute(_NOTES.where(reference.c.instance_pk.in_(naming)), {"uids": uids}).all()
    return [
        one
        for one in _images(conn, rows)
        if one.sop_instance_uid in uids or (one.current is not None and one.current[0] in uids)
    ]


def _images(conn: Connection, rows: Sequence[AnyRow]) -> list[KeyImage]:
    said = [row for row in rows if not row.sop_class_uid.startswith(_PRESENTATION_STATES) or row.with_uid]
    here = _here(conn, [row.sop_instance_uid for row in said])
    copies = _standing(conn, [row.pk for row in here.values() if row.state == State.REPLACED])
    views = {(row.instance_pk, row.with_uid): row.sop_instance_uid for row in said if row.with_uid}
    notes: dict[int, Note] = {}
    found: dict[str, KeyImage] = {}
    for row in said:
        if row.with_uid:
            continue
        note = notes.setdefault(row.instance_pk, _note(row))
        known = here.get(row.sop_instance_uid)
        if note.title[0] in NO_SELECTION or not _is_told(row, known):
            continue
        current = _current(known, copies)
        image = found.setdefault(  # an original and its lossy copy are one image
            current[0] if current else row.sop_instance_uid,
            KeyImage(
                row.study_instance_uid,
                known.series_instance_uid if known is not None else row.series_instance_uid,
                row.sop_class_uid,
                row.sop_instance_uid,
                current,
            ),
        )
        view = views.get((row.instance_pk, row.sop_instance_uid), "")
        image.notes.append((note, row.frames or "", view))
    return list(found.values())


def _is_told(row: AnyRow, known: AnyRow | None) -> bool:
    """Neither of an image that was rejected, or is held back or in grace, nor of one that is of another study."""
    if known is None:
        return True
    return known.state in KNOWN and known.study_instance_uid == row.study_instance_uid


def _current(known: AnyRow | None, copies: Mapping[int, tuple[str, str]]) -> tuple[str, str] | None:
    if known is None:
        return None
    if known.state == State.REPLACED:
        return copies.get(known.pk)
    return known.sop_instance_uid, known.series_instance_uid


def _here(conn: Connection, uids: Iterable[str]) -> dict[str, AnyRow]:
    listed = sorted(set(uids))
    found: dict[str, AnyRow] = {}
    for start in range(0, len(listed), _BATCH):
        rows = conn.execute(_HERE, {"uids": listed[start : start + _BATCH]})
        found |= {row.sop_instance_uid: row for row in rows}
    return found


def _standing(conn: Connection, pks: Sequence[int]) -> dict[int, tuple[str, str]]:
    """The lossy copies that stand for these originals."""
    found: dict[int, tuple[str, str]] = {}
    for start in range(0, len(pks), _BATCH):
        for row in conn.execute(_COPIES, {"pks": list(pks[start : start + _BATCH])}):
            found[row.derived_from_pk] = (row.sop_instance_uid, row.series_instance_uid)
    return found


def _note(row: AnyRow) -> Note:
    said = orjson.loads(row.attributes)
    return Note(
        row.note_uid,
        row.note_series,
        row.note_study,
        code_of(said, "0040A043"),
        text_of(said, "00080023"),
        text_of(said, "00080033"),
        text_of(orjson.loads(row.series_attributes), "0008103E"),
    )
