"""What a rebuild has done so far, for its summary and for whoever waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
Progress = Callable[[int, int], None]  # files and facts done, of how many

CHUNK = 200  # files, or facts, in one transaction


@dataclass(frozen=True, slots=True)
class NotTaken:
    """A file, a line or a fact that could not be taken in, and why."""

    path: str
    reason: str


@dataclass(slots=True)
class Rebuilt:
    """What became of the files and the facts."""

    stored: int = 0  # on the hot tier; those held back and set aside are counted apart
    held: int = 0
    quarantined: int = 0
    already_stored: int = 0  # a second file of the same instance
    cold_copies: int = 0
    removed: int = 0  # files of purged instances that a power cut had left
    facts: int = 0
    not_taken: list[NotTaken] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """The figures, by name."""
        names = ("stored", "held", "quarantined", "already_stored", "cold_copies", "removed", "facts")
        return {name: getattr(self, name) for name in names} | {"not_taken": len(self.not_taken)}


class Steps:
    """How far it is."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._done, self._total = 0, total

    def add(self, done: int) -> None:
        self._done += done
        if self._progress is not None:
            self._progress(self._done, max(self._done, self._total))


def chunks(all_of_them: Iterable[T]) -> Iterator[list[T]]:
    """Lists of CHUNK, the last one shorter."""
    iterator = iter(all_of_them)
    while some := list(islice(iterator, CHUNK)):
        yield some
