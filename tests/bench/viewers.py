"""Twenty people open different studies at once while a modality stores; then large objects, and downloads given up.

    python -m tests.bench.viewers            # 20 viewers, studies of 300 slices, a series of 3000, an object of 1 GiB
    python -m tests.bench.viewers --viewers 4 --slices 10 --series 60 --object-mib 20

A real `minipacs serve`. A viewer asks for its study, the list of its series, the metadata of the first, then its middle
frame, on one connection: the time until then is its first image. Ends with 1 when a request failed, something came back
otherwise than it was stored, a process held 150 MiB or more, or a download that was given up went on for a second;
times of first images are told, and judged with `--p95`.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from archive.dicom.file_meta import FileMeta, file_head
from tests.bench.__main__ import DCMTK, tree
from tests.builders import ct_slice, new_uid, part10
from tests.server import Server
from tests.soak.load import large

JSON = "application/dicom+json"
FRAME = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
FILES = 'multipart/related; type="application/dicom"; transfer-syntax=*'
FILE = "application/dicom; transfer-syntax=*"
CT, EXPLICIT_LE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
MOST_MIB = 150
PIECE = 1 << 20


@dataclass
class Bench:
    """A server, and what was found out about it."""

    server: Server
    token: str
    rows: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def note(self, row: str, value: str, *, good: bool = True) -> None:
        self.rows.append((row, value))
        if not good:
            self.wrong.append(f"{row}: {value}")

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.api_port, timeout=300)) as found:
            found.connect()
            found.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield found

    def ask(self, connection: http.client.HTTPConnection, path: str, accept: str) -> http.client.HTTPResponse:
        headers = {"Authorization": f"Bearer {self.token}", "Accept": accept}
        connection.request("GET", f"/dicom-web/{path}", headers=headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} for {path}: {answer.read(200)!r}")
        return answer

    def send(self, content_type: str, body: Iterator[bytes]) -> None:
        """STOW-RS, in chunks."""
        headers = {"Authorization": f"Bearer {self.token}", "Accept": JSON, "Content-Type": content_type}
        with self.connection() as connection:
            connection.request("POST", "/dicom-web/studies", body, headers, encode_chunked=True)
            answer = connection.getresponse()
            said = answer.read(500)
        if answer.status != 200:
            raise RuntimeError(f"STOW-RS answered {answer.status}: {said!r}")

    def processes(self) -> list[int]:
        assert self.server.process is not None
        return tree(self.server.process.pid)


def new_study() -> tuple[str, str]:
    """UIDs of a study and of its series, short enough for those of instances."""
    study = new_uid(str(time.monotonic_ns()))[:50].rstrip(".")
    return study, f"{study}.1"


def files(study: str, series: str, slices: int, size: int) -> Iterator[bytes]:
    for number in range(1, slices + 1):
        ids = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "PatientID": f"V{study[-9:]}"}
        yield part10(ct_slice(rows=size, columns=size, number=number, SOPInstanceUID=f"{series}.{number}", **ids))


def multipart(contents: Iterator[bytes]) -> Iterator[bytes]:
    for content in contents:
        yield b"--viewers\r\nContent-Type: application/dicom\r\n\r\n"
        yield content
        yield b"\r\n"
    yield b"--viewers--\r\n"


def store(bench: Bench, study: str, series: str, slices: int, size: int) -> None:
    content_type = 'multipart/related; type="application/dicom"; boundary=viewers'
    bench.send(content_type, multipart(files(study, series, slices, size)))


def first_image(bench: Bench, study: str, series: str, slices: int) -> float:
    """Seconds."""
    start = time.monotonic()
    with bench.connection() as connection:
        bench.ask(connection, f"studies?StudyInstanceUID={study}", JSON).read()
        bench.ask(connection, f"studies/{study}/series", JSON).read()
        told = json.loads(bench.ask(connection, f"studies/{study}/series/{series}/metadata", JSON).read())
        middle = told[slices // 2]["00080018"]["Value"][0]
        bench.ask(connection, f"studies/{study}/series/{series}/instances/{middle}/frames/1", FRAME).read()
    if len(told) != slices:
        raise RuntimeError(f"metadata of {len(told)} instead of {slices} instances")
    return time.monotonic() - start


@contextmanager
def modality(bench: Bench, folder: Path, size: int) -> Iterator[list[int]]:
    """C-STORE, again and again, on one association; how many images came, at the end."""
    sent, stopping = [0], threading.Event()

    def work() -> None:
        while not stopping.is_set():
            new = Path(tempfile.mkdtemp(dir=folder))
            for number, content in enumerate(files(*new_study(), 50, size)):
                (new / f"{number}.dcm").write_bytes(content)
            to = ("127.0.0.1", str(bench.server.dicom_port), "+sd", str(new))
            words = ("storescu", "-aec", "MINIPACS", "-aet", "MODALITY", *to)
            done = subprocess.run(words, env=DCMTK, capture_output=True, text=True, check=False)
            if done.returncode:
                bench.wrong.append(f"the modality was refused: {done.stderr[-300:]}")
            sent[0] += 50

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield sent
    finally:
        stopping.set()
        thread.join()


def look(bench: Bench, viewers: int, rounds: int, studies: list[tuple[str, str]], slices: int) -> list[float]:
    """Every viewer opens a study, all at the same moment; and again another one."""
    seconds: list[float] = []
    together = threading.Barrier(viewers)

    def work(viewer: int) -> None:
        for round_ in range(rounds):
            study, series = studies[(viewer + round_ * 7) % len(studies)]
            together.wait(60)
            try:
                seconds.append(first_image(bench, study, series, slices))
            except Exception as error:
                bench.wrong.append(f"viewer {viewer}: {error!r}")

    threads = [threading.Thread(target=work, args=(viewer,)) for viewer in range(viewers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(seconds)


def drain(answer: http.client.HTTPResponse, take: Callable[[bytes], object]) -> int:
    total = 0
    while piece := answer.read(PIECE):
        take(piece)
        total += len(piece)
    return total


def large_object(bench: Bench, mebibytes: int) -> None:
    uid, study, head, frame = large(mebibytes)
    sent, came = hashlib.sha256(), hashlib.sha256()

    def body() -> Iterator[bytes]:
        for piece in (file_head(FileMeta(CT, uid, EXPLICIT_LE)) + head, *(frame for _ in range(mebibytes))):
            sent.update(piece)
            yield piece

    start = time.monotonic()
    bench.send("application/dicom", body())
    up = time.monotonic() - start
    with bench.connection() as connection:
        found = json.loads(bench.ask(connection, f"studies/{study}/instances", JSON).read())[0]
        path = f"studies/{study}/series/{found['0020000E']['Value'][0]}/instances/{uid}"
        start = time.monotonic()
        drain(bench.ask(connection, path, FILE), came.update)
        down = time.monotonic() - start
        every = ",".join(str(number) for number in range(1, mebibytes + 1))
        framed = drain(bench.ask(connection, f"{path}/frames/{every}", FRAME), lambda piece: None)
    same = came.digest() == sent.digest() and framed > mebibytes << 20
    bench.note(f"object of {mebibytes} MiB, up and down, s", f"{up:.1f} · {down:.1f}", good=same)


def long_series(bench: Bench, slices: int, size: int) -> tuple[str, str]:
    study, series = new_study()
    start = time.monotonic()
    store(bench, study, series, slices, size)
    up = time.monotonic() - start
    with bench.connection() as connection:
        start = time.monotonic()
        told = json.loads(bench.ask(connection, f"studies/{study}/series/{series}/metadata", JSON).read())
        between = time.monotonic()
        total = drain(bench.ask(connection, f"studies/{study}/series/{series}", FILES), lambda piece: None)
        down = time.monotonic() - between
    whole = len(told) == slices and total > slices * size * size * 2
    bench.note(
        f"series of {slices}, up · metadata · down, s", f"{up:.1f} · {between - start:.2f} · {down:.1f}", good=whole
    )
    return study, series


def given_up(bench: Bench, study: str, series: str) -> None:
    """Seconds until no process reads images any more."""

    def reading() -> bool:
        for pid in bench.processes():
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    if os.readlink(fd).endswith(".dcm"):
                        return True
                except OSError:
                    continue
        return False

    with bench.connection() as connection:
        bench.ask(connection, f"studies/{study}/series/{series}", FILES).read(PIECE)
    start, quiet = time.monotonic(), 0
    last = start
    while quiet < 20 and time.monotonic() - start < 30:
        if reading():
            quiet, last = 0, time.monotonic()
        else:
            quiet += 1
        time.sleep(0.01)
    bench.note("a download that is given up ends within, s", f"{last - start:.2f}", good=last - start < 1)


def peaks(bench: Bench, most_mib: int) -> None:
    found = []
    for pid in bench.processes():
        edge = (
            Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").partition("minipacs.edge ")[2].partition(" ")[0]
        )
        peak = int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
        found.append((peak, edge or "supervisor"))
    told = " · ".join(f"{edge} {peak:.0f}" for peak, edge in sorted(found, reverse=True))
    bench.note("peak memory of each process, MiB", told, good=max(found)[0] < most_mib)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--series", type=int, default=3000, help="slices of the long series")
    parser.add_argument("--object-mib", type=int, default=1024)
    parser.add_argument("--ready", type=float, default=60, help="seconds for metadata to be made ready meanwhile")
    parser.add_argument("--p95", type=float, default=0, help="the most that a first image may take, s")
    parser.add_argument("--most-mib", type=int, default=MOST_MIB, help="memory that a process may need")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "server")
        server.start()
        try:
            bench = Bench(server, server.token("service"))
            studies = [new_study() for _ in range(options.viewers)]
            for study, series in studies:
                store(bench, study, series, options.slices, options.size)
            time.sleep(options.ready)
            with modality(bench, Path(folder), options.size) as sent:
                seconds = look(bench, options.viewers, options.rounds, studies, options.slices)
            bench.note("viewers · first images · stored meanwhile", f"{options.viewers} · {len(seconds)} · {sent[0]}")
            if seconds:
                p95 = seconds[min(len(seconds) - 1, int(len(seconds) * 0.95))]
                good = not options.p95 or p95 <= options.p95
                bench.note("first image, median · p95, s", f"{seconds[len(seconds) // 2]:.2f} · {p95:.2f}", good=good)
            study, series = long_series(bench, options.series, options.size)
            given_up(bench, study, series)
            large_object(bench, options.object_mib)
            peaks(bench, options.most_mib)
        finally:
            server.stop()
    print("| row | minipacs |\n|---|---|")
    for row, value in bench.rows:
        print(f"| {row} | {value} |")
    for line in bench.wrong:
        print(f"wrong: {line}", file=sys.stderr)
    return 1 if bench.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
