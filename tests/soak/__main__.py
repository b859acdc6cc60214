"""Ten minutes at full load, beside peers that are wrong, slow or hostile; then nothing may be lost, and nothing left.

    make soak                                       # ten minutes, 10 000 associations, an object of 1 GiB
    python -m tests.soak --seconds 60 --associations 500 --object-mib 100

A real `minipacs serve` with two DICOM processes. It ends well when every promise was kept, memory, threads and
descriptors of each process are what they were after the first minute, no process needed more than 150 MiB on the way,
and `minipacs fsck` and `minipacs verify --all` find nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.acceptance.clients import find
from tests.bench.__main__ import tree
from tests.server import Server
from tests.soak.load import (
    Ledger,
    Port,
    endless,
    finder,
    getter,
    hostile,
    large_object,
    modality,
    mover,
    slow,
)
from tests.soak.sink import Sink

MOST_MIB = 150  # resident, of each process, whatever the size of an object
GROWTH_MIB = 25  # from one rest to the next: allocators keep some
_STUDY_ROOT = "1.2.840.10008.5.1.4.1.2.2.1"
_ROLES: list[tuple[Callable[[Ledger, Random], None], int]] = [
    (modality, 4), (finder, 2), (getter, 2), (mover, 1), (hostile, 3), (slow, 2),
]  # fmt: skip


@dataclass(frozen=True)
class Process:
    """What one process of the server holds."""

    name: str
    resident_mib: float
    peak_mib: float
    threads: int
    descriptors: int


def processes(server: Server) -> dict[int, Process]:
    assert server.process is not None
    found = {}
    for pid in tree(server.process.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        found[pid] = Process(
            name=" ".join(words[-4:]).strip()[-40:],
            resident_mib=int(status["VmRSS"].split()[0]) / 1024,
            peak_mib=int(status["VmHWM"].split()[0]) / 1024,
            threads=int(status["Threads"]),
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        )
    return found


@contextmanager
def load(ledger: Ledger, seed: int) -> Iterator[None]:
    """All roles at once; at the end every thread has stopped."""
    ledger.stopping.clear()
    threads = [
        threading.Thread(target=endless, args=(ledger, seed + number, act), daemon=True)
        for number, act in enumerate(act for act, count in _ROLES for _ in range(count))
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ledger.stopping.set()
        for thread in threads:
            thread.join(120)
        if any(thread.is_alive() for thread in threads):
            ledger.wrong.append("a caller still waits for the archive")


def rest(server: Server, seconds: float = 4) -> dict[int, Process]:
    """Every process at rest, once the associations that were left behind have ended."""
    time.sleep(seconds)
    return processes(server)


def soak(server: Server, sink: Sink, *, seconds: float, associations: int, object_mib: int, seed: int) -> list[str]:
    """Run it; what was wrong."""
    ledger = Ledger(Port(server.dicom_port))
    began = time.monotonic()
    with load(ledger, seed):
        time.sleep(max(5.0, seconds / 10))
    before = rest(server)
    with load(ledger, seed + 100):
        large_thread = threading.Thread(target=_large, args=(ledger, object_mib), daemon=True)
        large_thread.start()
        deadline = time.monotonic() + 3 * seconds + 600
        while time.monotonic() < deadline and not ledger.wrong:
            if time.monotonic() - began > seconds and ledger.counts.get("associations", 0) >= associations:
                break
            time.sleep(0.5)
        large_thread.join(600)
    after = rest(server)
    print(
        f"{time.monotonic() - began:.0f} s, seed {seed}: {dict(sorted(ledger.counts.items()))}; sunk: {sink.received}"
    )
    wrong = list(ledger.wrong)
    if ledger.counts.get("associations", 0) < associations:
        wrong.append(f"{ledger.counts.get('associations', 0)} associations of {associations}")
    wrong += _compared(before, after)
    wrong += _missing(server, ledger)
    wrong += _checked(server)
    return wrong


def _large(ledger: Ledger, mebibytes: int) -> None:
    if mebibytes:
        try:
            large_object(ledger, mebibytes)
        except Exception as error:
            ledger.wrong.append(f"large object: {type(error).__name__}: {error}")


def _compared(before: dict[int, Process], after: dict[int, Process]) -> Iterator[str]:
    if before.keys() != after.keys():
        yield f"processes came or went: {sorted(before)} {sorted(after)}"
    for pid in sorted(before.keys() & after.keys()):
        old, new = before[pid], after[pid]
        print(
            f"{new.name}: {old.resident_mib:.0f} -> {new.resident_mib:.0f} MiB (peak {new.peak_mib:.0f}), "
            f"{old.threads} -> {new.threads} threads, {old.descriptors} -> {new.descriptors} descriptors"
        )
        if new.resident_mib - old.resident_mib > GROWTH_MIB:
            yield f"memory of {new.name} grew from {old.resident_mib:.0f} to {new.resident_mib:.0f} MiB"
        if new.peak_mib > MOST_MIB:
            yield f"{new.name} needed {new.peak_mib:.0f} MiB"
        if new.threads > old.threads + 2 or new.descriptors > old.descriptors + 5:
            yield f"threads or descriptors of {new.name} stay behind: {old} {new}"


def _missing(server: Server, ledger: Ledger) -> Iterator[str]:
    """Acknowledged, and not there."""
    wanted = ledger.per_study()
    found = {
        str(one.StudyInstanceUID): int(one.NumberOfStudyRelatedInstances)
        for one in find(
            server, _STUDY_ROOT, QueryRetrieveLevel="STUDY", StudyInstanceUID="", NumberOfStudyRelatedInstances=""
        )
    }
    for study, count in wanted.items():
        if found.get(study, 0) < count:
            yield f"{count} images of a study were acknowledged, {found.get(study, 0)} are found"


def _checked(server: Server) -> Iterator[str]:
    for arguments in (("fsck",), ("verify", "--all")):
        done = server.command(*arguments, timeout=1800)
        if done.returncode:
            yield f"minipacs {' '.join(arguments)}: exit {done.returncode}: {(done.stdout + done.stderr)[-500:]}"
    if left := list((server.data_dir / "hot" / "incoming").iterdir()):
        yield f"{len(left)} files are left in incoming/"
    log = server.log.read_text(errors="replace")
    for word in ("Traceback", "a bug", "database is locked", "deadlock"):
        if word in log:
            yield f"the log says: {log[max(0, log.index(word) - 300) : log.index(word) + 700]}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="full load for a while")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--associations", type=int, default=10_000, help="at least this many")
    parser.add_argument("--object-mib", type=int, default=1024, help="size of the large object")
    parser.add_argument("--database", default="", help="URL; default: SQLite")
    parser.add_argument("--seed", type=int, default=int(time.monotonic()))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="minipacs-soak-") as folder:
        sink = Sink()
        peer = f'{{"host": "127.0.0.1", "port": {sink.port}}}'
        server = Server(
            Path(folder),
            options.database,
            {
                "MINIPACS_DICOM__WORKERS": "2",
                "MINIPACS_DICOM__ARTIM_SECONDS": "2",
                "MINIPACS_DICOM__DIMSE_SECONDS": "30",
                "MINIPACS_DICOM__PEERS": f'{{"DEST": {peer}, "SINK": {peer}}}',
                "MINIPACS_DICOM__ACCEPT_UNKNOWN_CALLERS": "true",
            },
        )
        server.start()
        try:
            wrong = soak(
                server, sink,
                seconds=options.seconds, associations=options.associations, object_mib=options.object_mib,
                seed=options.seed,
            )  # fmt: skip
            if code := server.stop():
                wrong.append(f"the server stopped with {code}")
        finally:
            server.kill()
            sink.close()
    for one in wrong:
        print(f"WRONG: {one}")
    print("not good" if wrong else "good: every promise kept, nothing left behind")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
