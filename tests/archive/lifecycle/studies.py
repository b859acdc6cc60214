"""An archive with studies whose receptions happened on days that a test chooses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import select

from archive.access import Actor, Door
from archive.clock import Simulation
from archive.core import Archive
from archive.dicom.file_meta import FileMeta
from archive.ingest import Outcome, ingest
from archive.schema import study
from archive.schema.types import AnyRow
from tests.builders import ct_slice, data_set, new_uid


def at(archive: Archive, instant: str) -> None:
    """Make the archive's clock show a day (noon, UTC) or an instant; the system's stays."""
    shown = datetime.fromisoformat(instant if "T" in instant else f"{instant}T12:00:00+00:00")
    archive.time.simulate(Simulation(archive.time.generation + 1, archive.real_clock(), shown))


def uid_of(name: str) -> str:
    return new_uid("study", name)


def send(archive: Archive, name: str, day: str, *, aet: str = "CT1", **changes: Any) -> Outcome:
    """Receive one image of the study `name`, made on `day` (YYYYMMDD), when the archive's clock says."""
    series = changes.pop("series", "1")
    values = {
        "StudyInstanceUID": uid_of(name),
        "SeriesInstanceUID": new_uid("series", name, series),
        "StudyDate": day or None,
        "PatientID": f"P-{name}",
        **changes,
    }
    ds = ct_slice(**values)
    meta = FileMeta(ds.SOPClassUID, ds.SOPInstanceUID, str(ds.file_meta.TransferSyntaxUID), aet)
    incoming = archive.hot.receive(meta, at=archive.clock())
    incoming.write(data_set(ds))
    actor = Actor(aet, "127.0.0.1", Door.DICOM, frozenset())
    return ingest(archive, incoming, actor=actor)


def row_of(archive: Archive, name: str) -> AnyRow:
    """The row of a study."""
    with archive.reading() as conn:
        return conn.execute(select(study).where(study.c.study_instance_uid == uid_of(name))).one()


@contextmanager
def statements(archive: Archive) -> Iterator[list[str]]:
    """The SQL that the archive executes meanwhile."""
    from sqlalchemy import event

    said: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if not statement.startswith("BEGIN"):
            said.append(statement)

    event.listen(archive.engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        event.remove(archive.engine, "before_cursor_execute", note)
