"""Attributes that no instance carries and a query may ask for: counts, modalities, availability (PS3.4 C.3.4).

Each is a scalar subquery from the primary key of its level, so that one statement gives a page of rows with all that
was asked. Only current instances count (`archive.instance.CURRENT`, REQ-DCM-42): an original that was replaced and
is asked by its UID is UNAVAILABLE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from sqlalchemy import ColumnElement, FromClause, ScalarSelect, case, func, select

from archive.dicom.attributes import LEVELS, Level
from archive.index import alternates
from archive.index.conditions import PARENT_KEYS, TABLES, constant, current
from archive.index.functions import joined, listed
from archive.instance import CopyState, availability
from archive.schema import instance, location, series, study

MODALITIES_IN_STUDY = 0x00080061
SOP_CLASSES_IN_STUDY = 0x00080062
INSTANCE_AVAILABILITY = 0x00080056
ALTERNATES = alternates.ALTERNATE_REPRESENTATIONS
AVAILABLE_TRANSFER_SYNTAX = 0x00083002

_TIERS = ("hot", "cold")  # best first
_OF_RANK = tuple(str(availability(tier)) for tier in (*_TIERS, None))


@dataclass(frozen=True, slots=True)
class Computed:
    """How one attribute is found from the key of a row of `level`; None: of whatever level is asked."""

    keyword: str
    tag: int
    vr: str
    level: Level | None
    select: Callable[[Level, ColumnElement[Any]], ColumnElement[Any]]
    value: Callable[[Any], list[Any]]
    key: str = field(init=False)  # the name in DICOM JSON

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", f"{self.tag:08X}")


def _below(level: Level, pk: ColumnElement[Any], down_to: Level) -> tuple[FromClause, ColumnElement[bool]]:
    """The tables from under `level` down to `down_to`, joined, and what ties them to `pk`."""
    chain = LEVELS[LEVELS.index(level) + 1 : LEVELS.index(down_to) + 1]
    if not chain:
        return TABLES[level], TABLES[level].c.pk == pk
    joined: FromClause = TABLES[chain[0]]
    for upper, lower in pairwise(chain):
        joined = joined.join(TABLES[lower], PARENT_KEYS[upper] == TABLES[upper].c.pk)
    return joined, PARENT_KEYS[level] == pk


def _instances(level: Level, pk: ColumnElement[Any], what: ColumnElement[Any]) -> ScalarSelect[Any]:
    tables, tie = _below(level, pk, Level.IMAGE)
    return select(what).select_from(tables).where(tie, current()).scalar_subquery()


def _instance_count(level: Level, pk: ColumnElement[Any]) -> ScalarSelect[Any]:
    return _instances(level, pk, func.count())


def _series_count(level: Level, pk: ColumnElement[Any]) -> ScalarSelect[Any]:
    tables, tie = _below(level, pk, Level.SERIES)
    visible = select(instance.c.pk).where(instance.c.series_pk == series.c.pk, current()).correlate(series).exists()
    return select(func.count()).select_from(tables).where(tie, visible).scalar_subquery()


def _study_count(level: Level, pk: ColumnElement[Any]) -> ScalarSelect[Any]:
    inner = series.join(instance, instance.c.series_pk == series.c.pk)
    visible = select(instance.c.pk).select_from(inner).where(series.c.study_pk == study.c.pk, current())
    return select(func.count()).where(study.c.patient_pk == pk, visible.correlate(study).exists()).scalar_subquery()


def _modalities(_level: Level, pk: ColumnElement[Any]) -> ScalarSelect[Any]:
    visible = select(instance.c.pk).where(instance.c.series_pk == series.c.pk, current()).correlate(series).exists()
    return select(joined(series.c.modality)).where(series.c.study_pk == pk, visible).scalar_subquery()


def _sop_classes(level: Level, pk: ColumnElement[Any]) -> ScalarSelect[Any]:
    return _instances(level, pk, listed(instance.c.sop_class_uid))


def _availability(level: Level, pk: ColumnElement[Any]) -> ScalarSelect[Any]:
    """The worst instance's rank, an instance's being that of its best good copy: 0 hot, 1 cold, 2 none."""
    ranks = case(*((location.c.tier == constant(tier), constant(rank)) for rank, tier in enumerate(_TIERS)))
    best = (
        select(func.min(ranks))
        .where(location.c.instance_pk == instance.c.pk, location.c.state == constant(str(CopyState.OK)))
        .correlate(instance)
        .scalar_subquery()
    )
    worst = func.max(func.coalesce(best, constant(len(_TIERS))))
    tables, tie = _below(level, pk, Level.IMAGE)
    seen = current(quality=level is Level.IMAGE)  # one that was rejected is only ever asked by who may see it
    return select(worst).select_from(tables).where(tie, seen).scalar_subquery()


def _transfer_syntaxes(_level: Level, pk: ColumnElement[Any]) -> ScalarSelect[Any]:
    return (
        select(listed(location.c.transfer_syntax_uid))
        .where(location.c.instance_pk == pk, location.c.state == constant(str(CopyState.OK)))
        .scalar_subquery()
    )


def _alternates(_level: Level, pk: ColumnElement[Any]) -> ColumnElement[Any]:
    return alternates.of_instance(pk)


def _count(raw: Any) -> list[Any]:
    return [int(raw or 0)]


def _list(raw: Any) -> list[Any]:
    return sorted(set(str(raw).split(","))) if raw else []


def _available(raw: Any) -> list[Any]:
    return [_OF_RANK[len(_TIERS) if raw is None else int(raw)]]


P, ST, SE, IM = Level.PATIENT, Level.STUDY, Level.SERIES, Level.IMAGE
COMPUTED: tuple[Computed, ...] = (
    Computed("NumberOfPatientRelatedStudies", 0x00201200, "IS", P, _study_count, _count),
    Computed("NumberOfPatientRelatedSeries", 0x00201202, "IS", P, _series_count, _count),
    Computed("NumberOfPatientRelatedInstances", 0x00201204, "IS", P, _instance_count, _count),
    Computed("ModalitiesInStudy", MODALITIES_IN_STUDY, "CS", ST, _modalities, _list),
    Computed("SOPClassesInStudy", SOP_CLASSES_IN_STUDY, "UI", ST, _sop_classes, _list),
    Computed("NumberOfStudyRelatedSeries", 0x00201206, "IS", ST, _series_count, _count),
    Computed("NumberOfStudyRelatedInstances", 0x00201208, "IS", ST, _instance_count, _count),
    Computed("NumberOfSeriesRelatedInstances", 0x00201209, "IS", SE, _instance_count, _count),
    Computed("AvailableTransferSyntaxUID", AVAILABLE_TRANSFER_SYNTAX, "UI", IM, _transfer_syntaxes, _list),
    Computed("AlternateRepresentationSequence", ALTERNATES, "SQ", IM, _alternates, alternates.items),
    Computed("InstanceAvailability", INSTANCE_AVAILABILITY, "CS", None, _availability, _available),
)
COMPUTED_BY_TAG: dict[int, Computed] = {computed.tag: computed for computed in COMPUTED}
