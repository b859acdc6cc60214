"""A process that commits facts, one after the other, and names the number of each that it was told is durable."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import count as numbers
from pathlib import Path

from sqlalchemy import Connection, func, select

from archive.config import Settings
from archive.core import Archive, open_archive
from archive.journal import Kind, note
from archive.schema import fact


def commit_facts(archive: Archive, name: str, count: int) -> Iterator[int]:
    """The numbers of `count` facts about `name`, each after it was committed; below zero: without end."""
    for number in range(count) if count >= 0 else numbers():

        def write(conn: Connection, number: int = number) -> int:
            note(conn, Kind.HOLD, name, {"number": number, "text": "é" * (number % 50)}, at=archive.clock())
            return int(conn.execute(select(func.max(fact.c.pk)).where(fact.c.subject == name)).scalar_one())

        yield archive.commit.run(write)


def main() -> None:
    folder, url, name, count = sys.argv[1:]
    settings = Settings.model_validate(
        {"data_dir": Path(folder), "database": {"url": url}, "storage": {"reserve_bytes": 0}}
    )
    with open_archive(settings, process="facts") as archive:
        for n in commit_facts(archive, name, int(count)):
            sys.stdout.write(f"{n}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
