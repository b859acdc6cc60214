"""An archive whose time can be moved: exams come in, ticks run, and one looks at what is left."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from sqlalchemy import Table, func, select

from archive.access import EVERYTHING, Actor, Door
from archive.clock import Simulation
from archive.core import Archive
from archive.ingest import Outcome, ingest
from archive.schema import audit, study
from archive.storage.part10 import Part10
from tests.builders import ct_slice, new_uid, part10

CT1 = Actor(user="CT1", source="127.0.0.1", door=Door.DICOM, may=EVERYTHING)


def put_clock(archive: Archive, at: datetime | str) -> None:
    """Make the archive's clock show `at`; the system's stays where it is."""
    shown = datetime.fromisoformat(at).replace(tzinfo=UTC) if isinstance(at, str) else at
    archive.time.simulate(Simulation(archive.time.generation + 1, archive.real_clock(), shown))


def move_clock(archive: Archive, days: float) -> None:
    put_clock(archive, archive.clock() + timedelta(days=days))


def receive(archive: Archive, ds: Dataset, *, actor: Actor = CT1) -> Outcome:
    file = Part10(archive.hot, at=archive.real_clock())
    file.feed(part10(ds))
    return ingest(archive, file.finish(), actor=actor)


def exam(*, study: str = "study", images: int = 2, **changes: Any) -> list[Dataset]:
    """A CT of 2026-01-05, as `tests.builders.ct_slice` makes its slices."""
    uids = {"StudyInstanceUID": new_uid(study), "SeriesInstanceUID": new_uid(study, "series")}
    return [
        ct_slice(number=number, **{**uids, "SOPInstanceUID": new_uid(study, str(number)), **changes})
        for number in range(1, images + 1)
    ]


def receive_exam(archive: Archive, **changes: Any) -> list[Dataset]:
    slices = exam(**changes)
    for ds in slices:
        assert receive(archive, ds) is Outcome.STORED
    return slices


def rows(archive: Archive, table: Table) -> int:
    with archive.reading() as conn:
        return conn.execute(select(func.count()).select_from(table)).scalar_one()


def study_row(archive: Archive, uid: str) -> Any:
    with archive.reading() as conn:
        return conn.execute(select(study).where(study.c.study_instance_uid == uid)).one_or_none()


def image_files(archive: Archive) -> list[Path]:
    """Files of images on both tiers, without evidence and without what is being received."""
    roots = (archive.hot.root, archive.cold.root)
    found = (path for root in roots for path in root.rglob("*.dcm") if path.relative_to(root).parts[0].isdigit())
    return sorted(found)


def hot_files(archive: Archive) -> list[Path]:
    return [path for path in image_files(archive) if path.is_relative_to(archive.hot.root)]


def audited(archive: Archive, event: str, **conditions: Any) -> Sequence[Any]:
    statement = select(audit).where(audit.c.event == event).order_by(audit.c.pk)
    for name, value in conditions.items():
        statement = statement.where(audit.c[name] == value)
    with archive.reading() as conn:
        return conn.execute(statement).all()
