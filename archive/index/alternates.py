"""An original that was replaced and its lossy copy, each named from the other: Alternate Representation Sequence
(0008,3001), PS3.4 C.6.1.1.5.1, REQ-DCM-83. Before a study has switched neither knows of the other."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, case, exists, func, select

from archive.dicom.uids import WITH_COMPANIONS
from archive.index.conditions import constant
from archive.instance import CopyState, State
from archive.schema import instance, location, series

ALTERNATE_REPRESENTATIONS = 0x00083001
# Purpose of Reference Code Sequence (CID 7205), as DCM codes them
LOSSY_COPY = ("121325", "Lossy compressed image")
FULL_FIDELITY = ("121327", "Full fidelity image")  # an original of which a copy is held
SOURCE = ("121324", "Source Image")  # one of which none is left
_MEANINGS = dict((LOSSY_COPY, FULL_FIDELITY, SOURCE))

_copy, _copy_series = instance.alias("copy"), series.alias("copy_series")
_original, _original_series = instance.alias("original"), series.alias("original_series")
_self = instance.alias("self")
_NO_IMAGE = [constant(uid) for uid in sorted(WITH_COMPANIONS)]  # a companion is no other representation of anything


def of_instance(pk: ColumnElement[Any]) -> ColumnElement[Any]:
    """`code series class instance` of the other representation of the instance with this key; NULL: there is none."""
    of_original = (
        select(func.min(_text(constant(LOSSY_COPY[0]), _copy, _copy_series)))
        .select_from(_copy.join(_copy_series, _copy_series.c.pk == _copy.c.series_pk))
        .where(
            _copy.c.derived_from_pk == pk,
            _copy.c.state == constant(str(State.STORED)),
            _copy.c.sop_class_uid.not_in(_NO_IMAGE),
        )
        .scalar_subquery()
    )
    held = exists().where(location.c.instance_pk == _original.c.pk, location.c.state == constant(str(CopyState.OK)))
    purpose = case((held.correlate(_original), constant(FULL_FIDELITY[0])), else_=constant(SOURCE[0]))
    of_copy = (
        select(_text(purpose, _original, _original_series))
        .select_from(
            _self.join(_original, _original.c.pk == _self.c.derived_from_pk).join(
                _original_series, _original_series.c.pk == _original.c.series_pk
            )
        )
        .where(_self.c.pk == pk, _self.c.state == constant(str(State.STORED)), _self.c.sop_class_uid.not_in(_NO_IMAGE))
        .scalar_subquery()
    )
    return func.coalesce(of_original, of_copy)


def _text(code: ColumnElement[Any], of: Any, its_series: Any) -> ColumnElement[Any]:
    text = code
    for column in (its_series.c.series_instance_uid, of.c.sop_class_uid, of.c.sop_instance_uid):
        text = text.concat(constant(" ")).concat(column)
    return text


def items(raw: Any) -> list[Any]:
    """The sequence's items, as DICOM JSON. The other representation is always in another series."""
    if not raw:
        return []
    code, series_uid, class_uid, instance_uid = str(raw).split(" ")
    purpose = {
        "00080100": {"vr": "SH", "Value": [code]},
        "00080102": {"vr": "SH", "Value": ["DCM"]},
        "00080104": {"vr": "LO", "Value": [_MEANINGS[code]]},
    }
    return [
        {
            "00081150": {"vr": "UI", "Value": [class_uid]},
            "00081155": {"vr": "UI", "Value": [instance_uid]},
            "0020000E": {"vr": "UI", "Value": [series_uid]},
            "0040A170": {"vr": "SQ", "Value": [purpose]},
        }
    ]
