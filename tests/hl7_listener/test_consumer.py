"""Patient Demographics Query, consumer (ITI-21): asked of our own supplier, and of a peer written byte by byte here."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic, sleep
from typing import Any

import pytest

from archive import jobs, lookup
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import Busy, InvalidRequest, NotFound
from archive.lookup import Traits
from archive.sections import Site
from hl7_listener import consumer
from hl7_listener.consumer import look_up
from tests.hl7_listener.saying import ISSUER, RIS, cx, pid, say, with_ris
from tests.hl7_listener.test_pdq import queries
from tests.hl7_listener.test_serve import listening, on_sqlite
from tests.server import free_port


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    with asking(settings, free_port()) as opened:
        yield opened


@contextmanager
def asking(settings: Settings, port: int, *, seconds: float = 5) -> Iterator[Archive]:
    """An archive that asks whoever listens there."""
    supplier = {"host": "127.0.0.1", "port": port, "application": "RIS", "facility": "CABINET", "seconds": seconds}
    told = with_ris(settings, supplier=supplier).model_copy(update={"site": Site(finess="350000001")})
    with open_archive(told, process="test") as opened:
        yield opened


@contextmanager
def at_its_port(archive: Archive) -> Iterator[None]:
    """Our own supplier, where this archive asks."""
    with listening(archive, port=archive.settings.hl7.supplier.port):
        yield


@pytest.mark.req("REQ-HL7-93", "REQ-IHE-04")
@on_sqlite
def test_our_own_supplier_is_asked_page_by_page(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "PAGE", 2)
    for number in range(1, 6):
        say(archive, "A28", pid(f"R{number}", "LEFÈVRE^Anaïs^^^^^L~MARTIN^^^^^^D", p7="19850712", p8="F", p32="VALI"))
    with at_its_port(archive):
        found = look_up(archive, Traits(family="lefevre", birth_date="1985", sex="F"))
    assert (len(found["items"]), found["complete"]) == (5, True)
    assert found["items"][0] == {
        "identifiers": [{"value": "R1", "issuer": ISSUER, "type": "PI"}],
        "family_birth": "LEFÈVRE",
        "given_first": "Anaïs",
        "family_used": "MARTIN",
        "given_used": "",
        "birth_date": "19850712",
        "sex": "F",
        "address_city": "",
        "identity_status": "VALI",
    }


@on_sqlite
def test_more_than_anybody_reads_is_cut_off_and_the_query_cancelled(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "PAGE", 2)
    monkeypatch.setattr(consumer, "MOST", 4)
    for number in range(1, 8):
        say(archive, "A28", pid(f"R{number}"))
    with at_its_port(archive):
        found = look_up(archive, Traits(family="DUPONT"))
    assert (len(found["items"]), found["complete"]) == (4, False)
    with archive.reading() as conn:
        assert conn.exec_driver_sql("SELECT count(*) FROM query_pointer").scalar() == 0


@pytest.mark.req("REQ-HL7-93", "REQ-HL7-91")
@on_sqlite
def test_an_identifier_of_an_authority_finds_one_and_an_unknown_domain_is_a_refusal(archive: Archive) -> None:
    say(archive, "A28", pid("R1"))
    say(archive, "A40", pid("R1"), f"MRG|{cx('OLD')}")
    with at_its_port(archive):
        for authority in (ISSUER, "2.25.171717001"):
            found = look_up(archive, Traits(identifier="OLD", authority=authority))
            assert [one["identifiers"][0]["value"] for one in found["items"]] == ["R1"]
        assert look_up(archive, Traits(identifier="R1", authority="NOBODY"))["items"] == []
    supplier = archive.settings.hl7.supplier.model_copy(update={"domains": ("NOBODY",)})
    hl7 = archive.settings.hl7.model_copy(update={"supplier": supplier})
    object.__setattr__(archive, "settings", archive.settings.model_copy(update={"hl7": hl7}))
    with at_its_port(archive), pytest.raises(InvalidRequest, match=r"refuses \(AE 204 QPD\^1\^8\^1\)"):
        look_up(archive, Traits(family="DUPONT"))


@pytest.mark.req("REQ-HL7-93")
@on_sqlite
def test_who_wants_to_know_owes_a_job_that_is_gone_with_its_answer(archive: Archive) -> None:
    say(archive, "A28", pid("R1"))
    say(archive, "A40", pid("R1"), f"MRG|{cx('OLD')}")
    with at_its_port(archive):
        found = lookup.look_up(archive, Traits(family="DUPONT"), actor=RIS)
    assert [one["here"] for one in found["items"]] == ["known"]
    with archive.reading() as conn:
        assert jobs.list_jobs(conn, limit=10) == []
    asked = [json.loads(row.detail) for row in queries(archive)]
    [ours] = [one for one in asked if one.get("asked") == "supplier"]
    assert (ours["type"], ours["query"]) == ("ITI-21", {"family": "DUPONT"})


@pytest.mark.req("REQ-HL7-93")
@on_sqlite
def test_nothing_stays_of_a_question_whose_asker_died(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def owe(ago: timedelta) -> int:
        asked_at = archive.real_clock() - ago
        return archive.commit.run(lambda conn: jobs.put(conn, lookup.KIND, {"family": "DUPONT"}, at=asked_at))

    def left() -> list[int]:
        with archive.reading() as conn:
            return [one.id for one in jobs.list_jobs(conn, limit=10)]

    def stopped(*_: object, **__: object) -> None:
        raise SystemExit

    young, old = owe(timedelta(seconds=10)), owe(timedelta(minutes=5))
    answered = jobs.claim(archive, [lookup.KIND], holder="a")
    assert answered is not None
    assert answered.id == old
    jobs.finish(archive, answered, {"items": [{"family": "DUPONT"}]})
    with monkeypatch.context() as patched:
        patched.setattr(jobs, "wait", stopped)
        with pytest.raises(SystemExit):
            lookup.look_up(archive, Traits(family="DUPONT"), actor=RIS)
    assert left() == [young], "who asks deletes what was left, and what it asked itself"
    old = owe(timedelta(minutes=5))
    with at_its_port(archive):
        until = monotonic() + 10
        while old in left() and monotonic() < until:
            sleep(0.05)
        assert old not in left()


@on_sqlite
def test_nothing_is_asked_without_a_trait_a_supplier_or_a_listener(settings: Settings, archive: Archive) -> None:
    with pytest.raises(InvalidRequest):
        lookup.look_up(archive, Traits(sex="F"), actor=RIS)
    short = archive.settings.hl7.supplier.model_copy(update={"seconds": 0.1})
    hl7 = archive.settings.hl7.model_copy(update={"supplier": short})
    object.__setattr__(archive, "settings", archive.settings.model_copy(update={"hl7": hl7}))
    with pytest.raises(Busy, match="no process took it"):
        lookup.look_up(archive, Traits(family="DUPONT"), actor=RIS)
    with archive.reading() as conn:
        assert jobs.list_jobs(conn, limit=10) == [], "nothing of the patient stays"
    with open_archive(settings, process="test") as other, pytest.raises(NotFound):
        lookup.look_up(other, Traits(family="DUPONT"), actor=RIS)


# -- a peer written byte by byte ----------------------------------------------------------------------------------

Script = Callable[[bytes], list[bytes]]  # from a framed message to the pieces that are sent back; none: the end

HEAD = "MSH|^~\\&|RIS|CABINET|MINIPACS|350000001|20260105083000||RSP^K22^RSP_K21|A{n}|P|2.5||||||8859/1"


def fields_of(framed: bytes) -> dict[str, list[str]]:
    assert framed[:1] == b"\x0b"
    assert framed[-2:] == b"\x1c\x0d"
    lines = framed[1:-2].decode("utf-8").split("\r")
    assert lines.pop() == "", "each segment ends with CR"
    return {line.split("|")[0]: line.split("|") for line in lines}


def framed(*segments: str) -> bytes:
    return b"\x0b" + "".join(f"{one}\r" for one in segments).encode("latin-1") + b"\x1c\x0d"


@contextmanager
def peer(script: Script, *, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Answers on one connection after another as the script says, over TLS with `tls`."""
    sock = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                conn, _ = sock.accept()
            except OSError:
                return
            if tls is not None:
                conn = tls.wrap_socket(conn, server_side=True)
            with conn:
                received = b""
                while piece := conn.recv(4096):
                    received += piece
                    if not received.endswith(b"\x1c\x0d"):
                        continue
                    message, received = received, b""
                    pieces = script(message)
                    for answer in pieces:
                        conn.sendall(answer)
                    if not pieces:
                        break

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield sock.getsockname()[1]
    finally:
        sock.shutdown(socket.SHUT_RDWR)
        sock.close()
        thread.join(10)


def asked_of(settings: Settings, script: Script, *, seconds: float = 5) -> dict[str, Any]:
    with peer(script) as port, asking(settings, port, seconds=seconds) as archive:
        return look_up(archive, Traits(family="D|U^PONT*", given="Anaïs", birth_date="19850712", identifier="A1"))


@pytest.mark.req("REQ-HL7-93", "REQ-HL7-92", "REQ-IHE-04")
@on_sqlite
def test_the_bytes_of_a_query_and_of_its_continuation(settings: Settings) -> None:
    seen: list[dict[str, list[str]]] = []

    def script(message: bytes) -> list[bytes]:
        said = fields_of(message)
        seen.append(said)
        first = len(seen) == 1
        found = "PID|1||77^^^CABINET^PI~2850735999901^^^SECU&1.2.250.1.213.1.4.8&ISO^NH||DUPONT^Ana\xefs^^^^^L||1985"
        answer = framed(
            HEAD.format(n=len(seen)),
            f"MSA|AA|{said['MSH'][9]}",
            f"QAK|{said['QPD'][2]}|OK",
            "|".join(said["QPD"]),
            *([found, "DSC|go-on|I"] if first else ["PID|1||78^^^CABINET^PI||DUPOND^^^^^^L"]),
        )
        return [bytes((byte,)) for byte in answer]

    found = asked_of(settings, script)
    assert [one["identifiers"] for one in found["items"]] == [
        [{"value": "77", "issuer": "CABINET", "type": "PI"}],
        [{"value": "78", "issuer": "CABINET", "type": "PI"}],
    ]
    assert (found["items"][0]["given_first"], found["items"][0]["birth_date"]) == ("Anaïs", "1985")
    first, second = seen
    assert first["MSH"][1:6] == ["^~\\&", "MINIPACS", "350000001", "RIS", "CABINET"]
    assert first["MSH"][8] == "QBP^Q22^QBP_Q21"
    assert (first["MSH"][10:12], first["MSH"][17]) == (["P", "2.5"], "UNICODE UTF-8")
    parameters = "@PID.3.1^A1~@PID.5.1.1^D\\F\\U\\S\\PONT*~@PID.5.2^Anaïs~@PID.7^19850712"
    assert first["QPD"] == ["QPD", "IHE PDQ Query", first["QPD"][2], parameters]
    assert first["RCP"] == ["RCP", "I", "50^RD"]
    assert list(first) == ["MSH", "QPD", "RCP"]
    assert second["DSC"] == ["DSC", "go-on", "I"]
    assert (second["QPD"], second["MSH"][9] != first["MSH"][9]) == (first["QPD"], True)


def test_every_silence_lie_and_refusal_of_a_peer_is_said(settings: Settings) -> None:
    def saying(code: str, *more: str, about: str = "", tag: str = "") -> Script:
        def script(message: bytes) -> list[bytes]:
            said = fields_of(message)
            msa = f"MSA|{code}|{about or said['MSH'][9]}"
            return [framed(HEAD.format(n=1), msa, *more, f"QAK|{tag or said['QPD'][2]}|{code}")]

        return script

    for script, error, words in (
        (lambda _message: [], Busy, "without an answer"),
        (lambda _message: [framed("NOTHING")], Busy, "cannot be read"),
        (saying("AA", about="OTHER"), Busy, "another message"),
        (saying("AA", tag="OTHER"), Busy, "something else"),
        (saying("AR", "ERR||MSH^1^9|200^Unsupported^HL70357|E"), Busy, r"refuses \(AR 200 MSH\^1\^9\)"),
        (saying("AE"), InvalidRequest, r"refuses \(AE\)"),
    ):
        with pytest.raises(error, match=words):  # type: ignore[call-overload]
            asked_of(settings, script)  # type: ignore[arg-type]


@pytest.mark.req("REQ-HL7-93")
@on_sqlite
def test_a_peer_that_never_answers_is_waited_for_in_bounds(settings: Settings, archive: Archive) -> None:
    started = monotonic()
    with pytest.raises(Busy, match="did not answer within"):
        asked_of(settings, lambda _message: [b"\x0bMSH|^~"], seconds=0.3)
    with pytest.raises(Busy, match="cannot be reached"):
        look_up(archive, Traits(family="X"))
    assert monotonic() - started < 5
