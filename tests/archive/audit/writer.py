"""A process that records queries for ever and prints the number of each once it is durable: for tests that kill it."""

from __future__ import annotations

import sys
from itertools import count

from archive.access import EVERYTHING, Actor, Door
from archive.audit.record import Event, record
from archive.config import Settings
from archive.core import open_archive


def main(settings: str, name: str) -> None:
    actor = Actor(user=name, source="127.0.0.1", door=Door.SYSTEM, may=EVERYTHING)
    with open_archive(Settings.model_validate_json(settings), process=name) as archive:
        for number in count():
            archive.commit.run(
                lambda conn, number=number: record(conn, actor, Event.QUERY, "E", detail={"number": number})
            )
            print(number, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
