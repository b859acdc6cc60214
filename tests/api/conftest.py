"""A real server on a free port, and people and machines who may or may not."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from api.serve import serve
from archive import accounts
from archive.access import Actor
from archive.core import Archive
from archive.ingest import ingest
from archive.storage.part10 import Part10
from tests.builders import ct_slice, new_uid, part10

PASSWORD = "correct horse battery"


@contextlib.contextmanager
def serving(archive: Archive) -> Iterator[str]:
    """Serve the archive's API; the address, without the last slash."""
    sock = socket.create_server(("127.0.0.1", 0))
    stopping = threading.Event()
    port = sock.getsockname()[1]
    thread = threading.Thread(target=serve, args=(archive, sock, stopping), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stopping.set()
        thread.join(30)
        assert not thread.is_alive()


def on_both_databases(test: Callable[..., None]) -> Callable[..., None]:
    """Have a test of this folder run on PostgreSQL too."""
    test.on_both_databases = True  # type: ignore[attr-defined]
    return test


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """SQLite alone, but where a test says otherwise: what is SQL is tested on both under tests/archive."""
    folder = Path(__file__).parent
    superfluous = [
        item
        for item in items
        if item.path.parent == folder
        and not item.path.name.startswith("test_qido")
        and isinstance(item, pytest.Function)
        and not hasattr(item.function, "on_both_databases")
        and getattr(item, "callspec", None) is not None
        and "postgresql" in (item.callspec.params.get("settings"), item.callspec.params.get("database_url"))
    ]
    if superfluous:
        items[:] = [item for item in items if item not in superfluous]
        config.hook.pytest_deselected(items=superfluous)


@pytest.fixture
def url(archive: Archive) -> Iterator[str]:
    with serving(archive) as address:
        yield address


@pytest.fixture
def token(archive: Archive, actor: Actor) -> Callable[..., str]:
    """Makes a token with roles; its secret."""

    def make(*roles: str, name: str = "robot") -> str:
        return accounts.create_token(archive, name, roles or ("service",), actor=actor).secret

    return make


@pytest.fixture
def client(url: str, token: Callable[..., str]) -> Iterator[httpx.Client]:
    """An HTTP client with a token of role service."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token()}"}, timeout=30) as made:
        yield made


@pytest.fixture
def stranger(url: str) -> Iterator[httpx.Client]:
    """A client without credentials."""
    with httpx.Client(base_url=url, timeout=30) as made:
        yield made


def fill(archive: Archive, actor: Actor) -> None:
    """Three studies; the first has a series of twelve images."""
    names = ["DUPONT^Anne", "LEFÈVRE^Anaïs", "<b>MARTIN</b>^Jean"]
    for number, name in enumerate(names):
        for at in range(12 if number == 0 else 1):
            ds = ct_slice(
                rows=48, columns=64, number=at + 1, PatientName=name, PatientID=f"IPP{number}",
                StudyDate=f"2026010{number + 5}", Modality=("CT", "MR", "US")[number],
                StudyInstanceUID=new_uid(f"st{number}"), SeriesInstanceUID=new_uid(f"se{number}"),
                SOPInstanceUID=new_uid(f"i{number}.{at}"),
            )  # fmt: skip
            file = Part10(archive.hot, at=archive.real_clock())
            file.feed(part10(ds))
            ingest(archive, file.finish(), actor=actor)


ROLES = {"anne": "radiologist", "igor": "it_admin", "sophie": "secretary", "luc": "am_delegue"}


def add(archive: Archive, actor: Actor, name: str) -> None:
    accounts.add_account(archive, name, [ROLES[name]], PASSWORD, actor=actor)


@pytest.fixture
def anne(archive: Archive, actor: Actor) -> None:
    add(archive, actor, "anne")


@pytest.fixture
def studies(archive: Archive, actor: Actor) -> None:
    fill(archive, actor)


@pytest.fixture
def log_in(archive: Archive, actor: Actor, stranger: httpx.Client) -> Callable[[str], httpx.Client]:
    """Logs somebody in through the form; the client with the session."""

    def enter(name: str) -> httpx.Client:
        add(archive, actor, name)
        answer = stranger.post("/connexion", data={"name": name, "password": PASSWORD, "suite": "/"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        return stranger

    return enter
