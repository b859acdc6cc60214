"""Files that no row names, filed in the order in which they were received."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from sqlalchemy import Connection

from archive.access import SYSTEM
from archive.core import Archive
from archive.errors import ArchiveError, Gone, Unavailable
from archive.index.arrival import Arrival
from archive.index.copies import add_cold_copy
from archive.index.write import add_instance
from archive.ingest import adopt, adopt_cold, arrival_of
from archive.instance import Outcome
from archive.rebuild.tally import NotTaken, Rebuilt, Steps, chunks
from archive.recovery import unfiled
from archive.storage.filesystem import Tier

READERS = 8  # files that are read at a time
_AHEAD = 8 * READERS  # and that wait, read, for those before them


def take_in(archive: Archive, tier: Tier, rebuilt: Rebuilt, steps: Steps) -> None:
    """File every file of a tier that no row names: read by several threads, filed in their order."""
    for some in chunks(_read_ahead(archive, tier, unfiled(archive, tier))):
        arrivals: list[Arrival] = []
        for path, future in some:
            try:
                arrivals.append(future.result())
            except FileNotFoundError:
                continue
            except Unavailable:
                raise
            except (ArchiveError, OSError) as error:
                rebuilt.not_taken.append(NotTaken(f"{tier.name}/{path}", str(error)))
        try:
            outcomes = archive.commit.run(partial(_file, arrivals=arrivals))
        except Unavailable:
            raise
        except Exception:  # one of them: which, and why?
            outcomes = [None] * len(arrivals)
        for arrival, outcome in zip(arrivals, outcomes, strict=True):
            if outcome is None or outcome in (Outcome.ALREADY_STORED, Outcome.SAME_UID):
                _take_in_alone(archive, tier, arrival, rebuilt)
            else:
                _tally(tier, outcome, rebuilt)
        steps.add(len(some))


def _read_ahead(archive: Archive, tier: Tier, paths: Iterable[str]) -> Iterator[tuple[str, Future[Arrival]]]:
    ahead: deque[tuple[str, Future[Arrival]]] = deque()
    with ThreadPoolExecutor(READERS, thread_name_prefix="read") as pool:
        for path in paths:
            ahead.append((path, pool.submit(arrival_of, archive, path, tier=tier.name)))
            if len(ahead) >= _AHEAD:
                yield ahead.popleft()
        yield from ahead


def _file(conn: Connection, *, arrivals: list[Arrival]) -> list[Outcome | None]:
    """What became of each; None: it was purged, or is being removed."""
    outcomes: list[Outcome | None] = []
    for arrival in arrivals:
        add = add_cold_copy if arrival.tier == "cold" else add_instance
        try:
            outcomes.append(add(conn, arrival))
        except Gone:
            outcomes.append(None)
    return outcomes


def _take_in_alone(archive: Archive, tier: Tier, arrival: Arrival, rebuilt: Rebuilt) -> None:
    """One that is not simply filed: as recovery does it, which looks at other copies, and removes what was purged."""
    take = partial(adopt_cold, archive, arrival.path)
    if tier is archive.hot:
        take = partial(adopt, archive, arrival.path, actor=SYSTEM)
    try:
        _tally(tier, take(), rebuilt)
    except Gone:
        rebuilt.removed += 1
    except Unavailable:
        raise
    except (ArchiveError, OSError) as error:
        rebuilt.not_taken.append(NotTaken(f"{tier.name}/{arrival.path}", str(error)))


def _tally(tier: Tier, outcome: Outcome, rebuilt: Rebuilt) -> None:
    if outcome is Outcome.STORED_HELD:
        rebuilt.held += 1
    elif outcome is Outcome.QUARANTINED:
        rebuilt.quarantined += 1
    elif outcome is Outcome.ALREADY_STORED:
        rebuilt.already_stored += 1
    elif tier.name == "cold":
        rebuilt.cold_copies += 1
    else:
        rebuilt.stored += 1
