"""Immediate access, measured by the archive itself as for a C-MOVE (REQ-CDC-09)."""

from __future__ import annotations

import threading
import time

import pytest

from archive import probing
from archive.audit.read import list_rows
from archive.core import Archive
from archive.errors import StorageFailed
from dicom_scp import opening
from tests.builders import ct_slice, new_uid
from tests.dicom_scp.conftest import Running
from tests.dicom_scp.retrieving import keep


@pytest.mark.req("REQ-CDC-09")
def test_a_series_is_sent_as_for_a_c_move_and_audited_as_nobodys_look(archive: Archive) -> None:
    keep(archive, *(ct_slice(number=number) for number in range(1, 5)))
    prober = opening.prober(archive)
    done = prober.look()
    prober.close()
    assert done is not None
    assert (done.error, done.images) == (None, 4)
    assert done.first_seconds is not None
    assert done.all_seconds is not None
    assert 0 < done.first_seconds <= done.all_seconds
    assert done.sent_bytes > 4 * 16 * 16 * 2
    archive.accesses.close()
    with archive.reading() as conn:
        rows = list_rows(conn, study=new_uid("study"), event="110104", action="R").items
    assert {(row["user"], row["door"]) for row in rows} == {("minipacs", "probe")}
    assert len(rows) == 2, "an opening and a closing row"


def test_what_fails_early_leaves_no_thread_and_no_port(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(archive, ct_slice())
    subject = probing.choose(archive)
    assert subject is not None
    monkeypatch.setattr(opening, "_ARRIVE_SECONDS", 0.05)

    def fails(*_: object, **__: object) -> None:
        raise StorageFailed("away")

    for step in ("open_access", "propose"):  # before and after a port is listened at
        with monkeypatch.context() as patched, pytest.raises(StorageFailed):
            patched.setattr(opening, step, fails)
            opening.open_series(archive, subject, lambda: True)
    sinks = [one for one in threading.enumerate() if one.name == "probe sink"]
    for one in sinks:
        one.join(10)
    assert [one for one in sinks if one.is_alive()] == []
    assert opening.open_series(archive, subject, lambda: True).images == 1


def test_a_server_measures_without_being_asked(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(probing, "LOOK_SECONDS", 0.05)
    server: Running = request.getfixturevalue("server")
    keep(server.archive, ct_slice())
    for _ in range(1200):
        with server.archive.reading() as conn:
            found = probing.list_probes(conn, limit=10)
        if found:
            break
        time.sleep(0.05)
    assert [(one.door, one.error) for one in found] == [("dicom", None)]
