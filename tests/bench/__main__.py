"""Store, find and retrieve a generated CT of 600 slices; print first image, whole series, images/s, memory and CPU.

    make bench                       # 600 slices of 512 x 512, three repetitions
    python -m tests.bench --slices 60 --repeat 1

With Chromium and the viewer (`make viewer`), the last of these series is then opened in the viewer, see `viewer.py`.

Orthanc and DCMTK's dcmqrscp are measured in the same rotation when they are installed: absolute times mean little on a
shared machine, ratios within a run do. The clients are DCMTK's; files lie in shared memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

import api.viewer
from archive.config import Settings
from tests.bench import viewer
from tests.bench.series import make_series
from tests.server import Server, free_port

DCMTK = {**os.environ, "TCP_NODELAY": "1"}


@dataclass
class Target:
    """One archive under measurement."""

    name: str
    aet: str
    port: int
    pid: int
    web: str = ""
    rest: str = ""  # of an Orthanc
    server: Server | None = None  # ours
    headers: dict[str, str] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)

    def note(self, row: str, value: float) -> None:
        self.figures.setdefault(row, []).append(value)


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += tree(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    total = 0.0
    for one in tree(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def peak_mib(pid: int) -> float:
    """Peak resident memory of all processes; shared pages count once per process."""
    total = 0
    for one in tree(pid):
        for line in Path(f"/proc/{one}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1])
    return total / 1024


def tool(*words: object) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=DCMTK, check=False)
    if done.returncode:
        raise RuntimeError(f"{words[0]} failed: {(done.stderr or done.stdout)[-500:]}")


def timed(act: Callable[[], None]) -> float:
    start = time.monotonic()
    act()
    return time.monotonic() - start


def store(target: Target, folder: Path, slices: int) -> None:
    cpu = cpu_seconds(target.pid)
    seconds = timed(
        lambda: tool("storescu", "-aec", target.aet, "-aet", "BENCH", "127.0.0.1", target.port, "+sd", folder)
    )
    target.note("C-STORE images/s", slices / seconds)
    target.note("CPU ms per stored image", (cpu_seconds(target.pid) - cpu) * 1000 / slices)


def find(target: Target, study: str) -> None:
    seconds = timed(
        lambda: tool(
            *("findscu", "-S", "-aec", target.aet, "-aet", "BENCH", "127.0.0.1", target.port),
            *("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}", "-k", "PatientName"),
        )
    )
    target.note("findscu ms", seconds * 1000)


def get(target: Target, study: str, slices: int, scratch: Path) -> None:
    folder = Path(tempfile.mkdtemp(dir=scratch))
    words = [
        "getscu",
        "+B",
        "-S",
        "-aec",
        target.aet,
        "-aet",
        "BENCH",
        "-od",
        str(folder),
        "127.0.0.1",
        str(target.port),
    ]
    words += ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}"]
    start = time.monotonic()
    process = subprocess.Popen(words, env=DCMTK, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = 0.0
    while process.poll() is None:
        if not first and any(folder.iterdir()):
            first = time.monotonic() - start
        time.sleep(0.002)
    seconds = time.monotonic() - start
    got = len(list(folder.iterdir()))
    shutil.rmtree(folder)
    if process.returncode or got != slices:
        raise RuntimeError(f"getscu brought {got} of {slices} images from {target.name}")
    target.note("C-GET first image ms", (first or seconds) * 1000)
    target.note("C-GET series s", seconds)
    target.note("C-GET images/s", slices / seconds)


def wado(target: Target, study: str, series: str, slices: int) -> None:
    if not target.web:
        return
    base = f"{target.web}/studies/{study}/series/{series}"
    with httpx.Client(headers=target.headers, timeout=300) as client:
        start = time.monotonic()
        answer = client.get(f"{base}/metadata", headers={"Accept": "application/dicom+json"})
        listed = answer.raise_for_status().json()
        target.note("WADO metadata s", time.monotonic() - start)
        instance = listed[0]["00080018"]["Value"][0]
        accept = {"Accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}
        start = time.monotonic()
        client.get(f"{base}/instances/{instance}/frames/1", headers=accept).raise_for_status()
        target.note("WADO one frame ms", (time.monotonic() - start) * 1000)
        accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
        start = time.monotonic()
        with client.stream("GET", base, headers=accept) as answer:
            total = sum(len(piece) for piece in answer.iter_raw(1 << 20))
        seconds = time.monotonic() - start
        if len(listed) != slices or not total:
            raise RuntimeError(f"{target.name} gave {len(listed)} of {slices} instances")
        target.note("WADO series s", seconds)


@contextmanager
def minipacs(scratch: Path) -> Iterator[Target]:
    server = Server(scratch / "minipacs")
    server.start()
    try:
        assert server.process is not None
        headers = {"Authorization": f"Bearer {server.token('service')}"}
        yield Target(
            "minipacs",
            "MINIPACS",
            server.dicom_port,
            server.process.pid,
            f"{server.web}/dicom-web",
            headers=headers,
            server=server,
        )
    finally:
        server.stop()


@contextmanager
def orthanc(scratch: Path, *, dicom: int = 0) -> Iterator[Target]:
    dicom, http, folder = dicom or free_port(), free_port(), scratch / "orthanc"
    folder.mkdir()
    plugins = [str(path) for path in Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb*")]
    configuration = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "DicomAet": "ORTHANC",
        "DicomPort": dicom,
        "HttpPort": http,
        "DicomAlwaysAllowGet": True,
        "DicomCheckCalledAet": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": plugins,
        "DicomWeb": {"Enable": True},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log, env=DCMTK)
    try:
        _wait(f"http://127.0.0.1:{http}/system")
        yield Target(
            "orthanc",
            "ORTHANC",
            dicom,
            process.pid,
            f"http://127.0.0.1:{http}/dicom-web" if plugins else "",
            rest=f"http://127.0.0.1:{http}",
        )
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def dcmqrscp(scratch: Path) -> Iterator[Target]:
    port, folder = free_port(), scratch / "dcmqrscp"
    (folder / "store").mkdir(parents=True)
    configuration = folder / "dcmqrscp.cfg"
    configuration.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 131072\nMaxAssociations = 16\n"
        "HostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nQRSCP {folder}/store RW (500, 1024mb) ANY\nAETable END\n"
    )
    process = subprocess.Popen(["dcmqrscp", "-c", str(configuration)], env=DCMTK, stderr=subprocess.DEVNULL)
    try:
        time.sleep(1)
        yield Target("dcmqrscp", "QRSCP", port, process.pid)
    finally:
        process.terminate()
        process.wait(30)


def _wait(url: str) -> None:
    for _ in range(300):
        try:
            httpx.get(url, timeout=5)
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise RuntimeError(f"nothing answers at {url}")


def table(targets: list[Target]) -> str:
    """Markdown: the medians."""
    rows = list(dict.fromkeys(row for target in targets for row in target.figures))
    lines = ["| row | " + " | ".join(target.name for target in targets) + " |", "|---|" + "---|" * len(targets)]
    for row in rows:
        cells = []
        for target in targets:
            values = target.figures.get(row)
            cells.append(f"{statistics.median(values):.4g}" if values else "–")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=600)
    parser.add_argument("--size", type=int, default=512, help="rows and columns")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--openings", type=int, default=20, help="in the viewer, with a browser that was there before")
    options = parser.parse_args()
    if shutil.which("storescu") is None:
        print("DCMTK is not installed: apt install dcmtk", file=sys.stderr)
        return 3
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with ExitStack() as stack:
        files = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        targets = [stack.enter_context(minipacs(scratch))]
        if shutil.which("Orthanc"):
            targets.append(stack.enter_context(orthanc(scratch)))
        if shutil.which("dcmqrscp"):
            targets.append(stack.enter_context(dcmqrscp(scratch)))
        for repetition in range(options.repeat):
            folder = files / "series"
            folder.mkdir()
            study, series = make_series(folder, options.slices, options.size)
            for target in targets[repetition % len(targets) :] + targets[: repetition % len(targets)]:
                print(f"repetition {repetition + 1}: {target.name}", file=sys.stderr)
                os.sync()
                store(target, folder, options.slices)
                find(target, study)
                get(target, study, options.slices, files)
                wado(target, study, series, options.slices)
            shutil.rmtree(folder)
        for target in targets:
            target.note("peak memory MiB", peak_mib(target.pid))
        print(table(targets))
        if shutil.which("chromium") and api.viewer.find(Settings().viewer_dir) and options.openings:
            assert targets[0].server is not None
            print(f"\n{viewer.table(viewer.openings(targets[0].server, study, options.openings))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
