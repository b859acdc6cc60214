"""How soon images are there, measured by the archive itself (REQ-CDC-09, REQ-CDC-30): now and then it opens a series as
a viewer does, and as a C-MOVE does, and keeps how long that took.

The law gives, on site, five seconds for the first image of a CT and a minute for 600 (annexe 5, 3.2). Each edge that
hands out images measures its own door, of all processes one at a time, when `probe.every_seconds` are over. What is
opened is audited like any access, as the archive's own, under the door `probe`: it is nobody's look at a patient.
"""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from math import ceil
from typing import Any

import structlog
from sqlalchemy import Connection, delete, func, select

from archive.access import Action, Actor, Door
from archive.core import Archive
from archive.errors import ArchiveError, Busy
from archive.index.conditions import constant
from archive.instance import CURRENT, CopyState
from archive.journal import Kind, note
from archive.leases import leased
from archive.schema import instance, location, probe, series, study
from archive.schema.types import AnyRow
from archive.schema.upsert import insert

log = structlog.get_logger(__name__)

PROBE = Actor(user="minipacs", source="local", door=Door.PROBE, may=frozenset({Action.FIND, Action.SEE}))
FIRST_SECONDS, SERIES_SECONDS, SERIES_IMAGES = 5.0, 60.0, 600  # what the law gives
WINDOW = timedelta(days=30)  # of a summary
KEPT = timedelta(days=400)
LOOK_SECONDS = 60.0  # between two looks whether it is time
_REST_SECONDS = 900.0  # after what could not be kept: opening again and again would cost
_FINISH_SECONDS = 5.0
_RECENT = 200  # series, the last that came, among which one is chosen
_LIKED = ("CT", "MR")  # what the law speaks of, in its order; else anything with pixels
_JUDGED_IMAGES = 50  # fewer say nothing of 600
_RANDOM = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Subject:
    """The series that is opened, and those of its instances that have pixels."""

    study_instance_uid: str
    series_instance_uid: str
    instances: frozenset[str]


@dataclass(frozen=True, slots=True)
class Measured:
    """From the beginning to the first image, and to the last, as whoever asked has them."""

    images: int
    sent_bytes: int
    first_seconds: float
    all_seconds: float


@dataclass(frozen=True, slots=True)
class Probe:
    """One measurement, as `/api/v1` gives it. `error`: it failed, and there are no figures."""

    id: str
    at: datetime  # real time
    door: str  # dicomweb, dicom
    study_instance_uid: str
    series_instance_uid: str
    images: int
    sent_bytes: int
    first_seconds: float | None
    all_seconds: float | None
    error: str | None

    @property
    def for_600_seconds(self) -> float | None:
        """The time of 600 images at the pace of these; None: there were too few to say."""
        if self.all_seconds is None or self.images < _JUDGED_IMAGES:
            return None
        return self.all_seconds * max(1.0, SERIES_IMAGES / self.images)

    @property
    def within(self) -> bool:
        """Whether it went as the law wants it."""
        first, series = self.first_seconds, self.for_600_seconds
        return first is not None and first < FIRST_SECONDS and (series is None or series < SERIES_SECONDS)


Measure = Callable[[Archive, Subject, Callable[[], bool]], Measured]  # the last: whether to go on


class Prober:
    """The thread of a process that measures its own door, until it is closed."""

    def __init__(self, archive: Archive, door: Door, measure: Measure, *, look_seconds: float | None = None) -> None:
        self._archive = archive
        self._door = door
        self._measure = measure
        self._look_seconds = LOOK_SECONDS if look_seconds is None else look_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        if archive.settings.probe.every_seconds:
            self._thread.start()

    def close(self) -> None:
        """Begin nothing more; what is being opened is let go at its next image."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_FINISH_SECONDS)

    def _run(self) -> None:
        pause = self._look_seconds
        while not self._stopping.wait(pause):
            pause = self._look_seconds
            try:
                self.look()
            except Busy:
                log.debug("another process measures", door=self._door)
            except ArchiveError as error:
                log.error("nothing could be measured", door=self._door, error=type(error).__name__)
                pause = _REST_SECONDS
            except Exception:  # a bug: images are handed out all the same
                log.exception("nothing could be measured", door=self._door)
                pause = _REST_SECONDS

    def look(self) -> Probe | None:
        """Measure, if it is time and there is something to open. Raises Busy while another process does."""
        if not self._due():
            return None
        with leased(self._archive, f"probe {self._door}"):
            subject = choose(self._archive) if self._due() else None
            return None if subject is None else self._one(subject)

    def _due(self) -> bool:
        after = timedelta(seconds=self._archive.settings.probe.every_seconds)
        with self._archive.reading() as conn:
            last = conn.execute(select(func.max(probe.c.at)).where(probe.c.door == self._door)).scalar()
        return last is None or self._archive.real_clock() - last >= after

    def _one(self, subject: Subject) -> Probe | None:
        error: str | None = None
        measured = Measured(len(subject.instances), 0, 0, 0)
        try:
            measured = self._measure(self._archive, subject, lambda: not self._stopping.is_set())
        except Exception as failure:
            if self._stopping.is_set():
                return None
            log.warning("a study could not be opened", door=self._door, study=subject.study_instance_uid, exc_info=True)
            error = f"{type(failure).__name__}: {failure}"[:200]
        done = Probe(
            id=str(uuid.uuid4()),
            at=self._archive.real_clock(),
            door=str(self._door),
            study_instance_uid=subject.study_instance_uid,
            series_instance_uid=subject.series_instance_uid,
            images=measured.images,
            sent_bytes=measured.sent_bytes,
            first_seconds=None if error else measured.first_seconds,
            all_seconds=None if error else measured.all_seconds,
            error=error,
        )
        self._archive.commit.run(partial(_keep, done=done))
        tell = log.info if done.within else log.warning
        tell("access measured", door=done.door, within=done.within, first_s=done.first_seconds, all_s=done.all_seconds)
        return done


def choose(archive: Archive) -> Subject | None:
    """A series to open, of those that came last: one of the longest, a CT if there is one. None: there is nothing."""
    shown = (instance.c.state.in_(sorted(CURRENT)), location.c.state == constant(str(CopyState.OK)))
    hot = (location.c.tier == "hot", location.c.pixel_offset.is_not(None))
    with archive.reading() as conn:
        recent = conn.execute(
            select(series.c.pk, series.c.modality, series.c.series_instance_uid, study.c.study_instance_uid)
            .join_from(series, study)
            .order_by(series.c.pk.desc())
            .limit(_RECENT)
        ).all()
        counted = (
            select(instance.c.series_pk, func.count().label("images"))
            .join_from(instance, location)
            .where(instance.c.series_pk.in_([row.pk for row in recent]), *shown, *hot)
            .group_by(instance.c.series_pk)
        )
        counts = Counter({row.series_pk: int(row.images) for row in conn.execute(counted)})
    known = [row for row in recent if counts[row.pk]]
    if not known:
        return None
    liked = next((kind for kind in _LIKED if any(row.modality == kind for row in known)), None)
    candidates = sorted((row for row in known if liked in (None, row.modality)), key=lambda row: counts[row.pk])
    one = _RANDOM.choice(candidates[-ceil(len(candidates) / 4) :])
    images = (
        select(instance.c.sop_instance_uid)
        .join_from(instance, location)
        .where(instance.c.series_pk == one.pk, *shown, *hot)
        .order_by(instance.c.instance_number, instance.c.pk)
        .limit(archive.settings.probe.images)
    )
    with archive.reading() as conn:
        found = frozenset(conn.execute(images).scalars())
    return Subject(one.study_instance_uid, one.series_instance_uid, found) if found else None


def _keep(conn: Connection, *, done: Probe) -> None:
    body = {name: value for name, value in asdict(done).items() if name not in ("id", "at")}
    conn.execute(delete(probe).where(probe.c.at < done.at - KEPT))
    note(conn, Kind.PROBE, done.id, body, at=done.at)
    conn.execute(insert(conn, probe).values(**asdict(done)))


def restore_probe(conn: Connection, subject: str, body: Mapping[str, Any], at: datetime) -> None:
    """A measurement from the journal of facts (`archive.rebuild`)."""
    made = insert(conn, probe).values(id=subject, at=at, **body)
    conn.execute(made.on_conflict_do_nothing(index_elements=["id"]))


def list_probes(conn: Connection, *, since: datetime | None = None, offset: int = 0, limit: int) -> list[Probe]:
    """Measurements, the latest first."""
    wanted = [] if since is None else [probe.c.at >= since]
    rows = select(probe).where(*wanted).order_by(probe.c.at.desc(), probe.c.id).offset(offset).limit(limit)
    return [_probe(row) for row in conn.execute(rows)]


def summary(conn: Connection, *, now: datetime, window: timedelta = WINDOW) -> dict[str, Any]:
    """What was measured at each door in the `window` until `now` (real time): how often, how often it failed or took
    longer than the law gives, median, 95th percentile and worst, and the last one. For reports (REQ-CDC-30) too."""
    known = list_probes(conn, since=now - window, limit=100_000)
    doors = sorted({one.door for one in known})
    return {
        "limits": {"first_image_seconds": FIRST_SECONDS, "series_seconds": SERIES_SECONDS, "images": SERIES_IMAGES},
        "days": window.days,
        "within": all(one.within for one in known) if known else None,
        "doors": {door: _of_door([one for one in known if one.door == door]) for door in doors},
    }


def _of_door(probes: Sequence[Probe]) -> dict[str, Any]:
    return {
        "probes": len(probes),
        "failed": sum(one.error is not None for one in probes),
        "over_limit": sum(one.error is None and not one.within for one in probes),
        "first_image_seconds": _percentiles([one.first_seconds for one in probes]),
        "seconds_for_600": _percentiles([one.for_600_seconds for one in probes]),
        "last": {**asdict(probes[0]), "within": probes[0].within},
    }


def _percentiles(values: Sequence[float | None]) -> dict[str, float] | None:
    """By the nearest rank: each is a value that was measured."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return None
    return {
        name: round(known[ceil(share * len(known)) - 1], 4)
        for name, share in (("median", 0.5), ("p95", 0.95), ("worst", 1.0))
    }


def _probe(row: AnyRow) -> Probe:
    return Probe(**{name: getattr(row, name) for name in Probe.__slots__})
