"""What only one process may do at a time."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from archive.clock import monotonic
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import Busy
from archive.leases import Lease, leased


def test_a_lease_is_held_by_one(archive: Archive, settings: Settings) -> None:
    with leased(archive, "tick") as held, open_archive(settings, process="other") as other:
        assert held.held
        with pytest.raises(Busy, match="tick"), leased(other, "tick"):
            pass
        with leased(other, "another"):
            pass
    with leased(archive, "tick") as again:
        assert again.held
    assert not again.held


def test_whoever_waits_gets_it_when_it_is_let_go(archive: Archive) -> None:
    taken, go = threading.Event(), threading.Event()

    def hold() -> None:
        with leased(archive, "tick"):
            taken.set()
            go.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait(10)
    threading.Timer(0.3, go.set).start()
    with leased(archive, "tick", patience_seconds=10) as held:
        assert held.held
    holder.join(10)


def test_a_stop_ends_the_waiting(archive: Archive) -> None:
    stopping = threading.Event()
    stopping.set()
    started = monotonic()
    with leased(archive, "tick"), pytest.raises(Busy), leased(archive, "tick", patience_seconds=30, stopping=stopping):
        pass
    assert monotonic() - started < 10


def test_a_holder_that_died_is_succeeded(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = Lease(archive, "tick", 60)
    assert dead.take()
    heir = Lease(archive, "tick", 60)
    assert not heir.take()
    real = archive.time.real
    monkeypatch.setattr(archive.time, "real", lambda: real() + timedelta(seconds=61))
    assert heir.take()
    assert not dead.take()
    assert not dead.held
    dead.let_go()
    assert heir.take()  # what is another's is not let go


def test_a_lease_is_renewed_while_its_holder_lives(archive: Archive) -> None:
    with leased(archive, "tick", seconds=0.6) as held:
        until = monotonic() + 2.0
        while monotonic() < until:
            assert not Lease(archive, "tick", 0.6).take()
        assert held.held
