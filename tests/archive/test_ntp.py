"""The time client beside a real chronyd, and beside servers that are wrong (IHE CT, ITI-1; RFC 5905 §14)."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from archive import ntp, timekeeping
from archive.clock import Clock
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.schema import audit
from tests.conftest import need
from tests.server import free_port


@pytest.fixture(scope="module")
def chronyd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server, that leaves the clock of this machine alone."""
    need("chronyd")
    folder, port = tmp_path_factory.mktemp("chrony"), free_port()
    (folder / "conf").write_text(
        f"local stratum 8\nport {port}\ncmdport 0\nallow 127.0.0.1\nbindaddress 127.0.0.1\npidfile {folder}/pid\n"
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["chronyd", "-x", "-d", "-u", "root", "-f", folder / "conf"], stdout=log, stderr=log)
    server = f"127.0.0.1:{port}"
    deadline = time.monotonic() + 20
    while True:
        try:
            ntp.measure(server, Clock(), seconds=0.5)
            break
        except ntp.NoTime:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
    yield server
    process.terminate()
    process.wait(20)


def stamp(at: datetime) -> int:
    return int((at - datetime(1900, 1, 1, tzinfo=UTC)).total_seconds() * (1 << 32)) % (1 << 64)


def reply(
    request: bytes, *, ahead: float = 0.0, first: int = 4 << 3 | 4, stratum: int = 2, code: bytes = b"GPS\0"
) -> bytes:
    """A server's answer, its clock so many seconds ahead."""
    now = stamp(datetime.now(UTC) + timedelta(seconds=ahead))
    return struct.pack("!BBbb8x4s8x8sQQ", first, stratum, 0, 0, code, request[40:48], now, now)


@contextmanager
def server(answer: Callable[[bytes], bytes | None]) -> Iterator[str]:
    """One that answers as it is told; None: not at all."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(0.1)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                try:
                    request, where = sock.recvfrom(1024)
                except TimeoutError:
                    continue
                said = answer(request)
                if said is not None:
                    sock.sendto(said, where)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{sock.getsockname()[1]}"
        finally:
            over.set()
            thread.join()


@pytest.mark.req("REQ-IHE-08")
def test_a_real_server_is_asked_and_agrees(chronyd: str) -> None:
    found = ntp.measure(chronyd, Clock())
    assert abs(found.offset_seconds) < 0.5
    assert 0 <= found.delay_seconds < 2


@pytest.mark.parametrize("ahead", [-7.25, 0.0, 3600.0])
def test_an_offset_is_measured(ahead: float) -> None:
    with server(lambda request: reply(request, ahead=ahead)) as there:
        assert ntp.measure(there, Clock()).offset_seconds == pytest.approx(ahead, abs=0.5)


def test_the_era_of_the_timestamp_is_the_nearest() -> None:
    """32 bits of seconds begin anew on 7 February 2036 (RFC 5905 §6)."""
    for at in (datetime(2036, 2, 7, 6, 28, 17, tzinfo=UTC), datetime(2026, 1, 5, tzinfo=UTC)):
        assert abs(ntp._instant(stamp(at), at + timedelta(hours=5)) - at) < timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"first": 4 << 3 | 3}, "not one to this question"),
        ({"stratum": 0, "code": b"RATE"}, "refuses: RATE"),
        ({"first": 3 << 6 | 4 << 3 | 4}, "does not know the time"),
        ({"stratum": 16}, "does not know the time"),
    ],
)
def test_an_answer_that_no_client_may_use_is_none(change: dict[str, Any], why: str) -> None:
    with server(lambda request: reply(request, **change)) as there, pytest.raises(ntp.NoTime, match=why):
        ntp.measure(there, Clock(), seconds=0.5)


def test_an_answer_to_another_question_or_cut_short_is_none() -> None:
    with (
        server(lambda request: reply(request[:40] + bytes(8))) as there,
        pytest.raises(ntp.NoTime, match="this question"),
    ):
        ntp.measure(there, Clock(), seconds=0.5)
    with server(lambda request: reply(request)[:47]) as there, pytest.raises(ntp.NoTime, match="too short"):
        ntp.measure(there, Clock(), seconds=0.5)


def test_silence_has_an_end() -> None:
    began = time.monotonic()
    with server(lambda _request: None) as there, pytest.raises(ntp.NoTime, match=r"no answer within 0\.3 s"):
        ntp.measure(there, Clock(), seconds=0.3)
    assert time.monotonic() - began < 5


def test_of_several_servers_the_median_counts_and_silent_ones_are_named() -> None:
    with (
        server(lambda request: reply(request, ahead=0.0)) as right,
        server(lambda request: reply(request, ahead=0.1)) as nearly,
        server(lambda request: reply(request, ahead=500.0)) as mad,
    ):
        found = ntp.compare([right, mad, nearly, "nosuch.invalid"], Clock())
    assert found.answered == 3
    assert found.offset_seconds == pytest.approx(0.1, abs=0.4)
    assert len(found.silent) == 1 and found.silent[0].startswith("nosuch.invalid: ")


def test_addresses_are_read() -> None:
    assert ntp.address_of("ntp.example") == ("ntp.example", 123)
    assert ntp.address_of("ntp.example:1123") == ("ntp.example", 1123)
    assert ntp.address_of("[::1]:1123") == ("::1", 1123)
    assert ntp.address_of("2001:db8::1") == ("2001:db8::1", 123)
    for wrong in ("", ":123", "host:x", "host:99999"):
        with pytest.raises(ntp.NoTime):
            ntp.address_of(wrong)


def compared(settings: Settings, *servers: str) -> Settings:
    return Settings.model_validate({**settings.model_dump(), "time": {"servers": servers}})


def rows(archive: Archive) -> list[tuple[str, int, dict[str, Any]]]:
    with archive.reading() as conn:
        return [
            (row.event, row.outcome, json.loads(row.detail)) for row in conn.execute(select(audit).order_by(audit.c.pk))
        ]


@pytest.mark.req("REQ-IHE-08")
def test_each_comparison_is_in_the_audit_and_a_wrong_clock_is_an_alert(settings: Settings, chronyd: str) -> None:
    with open_archive(compared(settings, chronyd), process="test") as archive:
        good = timekeeping.check(archive)
        assert good.why is None and timekeeping.warnings(archive) == []
        ((event, outcome, said),) = rows(archive)
        assert (event, outcome, said["clock"], said["servers"]) == ("110100", 0, "compared", 1)
        assert abs(said["offset_seconds"]) < 0.5
    with (
        server(lambda request: reply(request, ahead=90)) as wrong,
        open_archive(compared(settings, wrong), process="test") as archive,
    ):
        assert timekeeping.check(archive).why is not None
        event, outcome, said = rows(archive)[-1]
        assert (event, outcome, said["type"]) == ("110113", 4, "110131")
        (warning,) = timekeeping.warnings(archive)
        assert "s behind the time servers" in warning
        with archive.reading() as conn:
            assert timekeeping.last(conn).offset_seconds == pytest.approx(90, abs=1)  # type: ignore[union-attr]


def test_when_no_server_answers_nothing_is_known_and_it_is_said(settings: Settings) -> None:
    with open_archive(compared(settings, "nosuch.invalid"), process="test") as archive:
        found = timekeeping.check(archive)
        assert found.offset_seconds is None and "no time server answers" in (found.why or "")
        assert rows(archive)[-1][1] == 4


def test_a_small_offset_is_no_fault() -> None:
    assert timekeeping.fault(ntp.Comparison(-0.9, 1, ()), Settings()) is None
    assert "1.100 s ahead of" in (timekeeping.fault(ntp.Comparison(-1.1, 1, ()), Settings()) or "")
