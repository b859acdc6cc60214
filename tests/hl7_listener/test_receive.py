"""From bytes to an acknowledgement that is true: journal, idempotence, refusals, repairs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from structlog.testing import capture_logs

from archive import messages
from archive.access import Actor
from archive.audit.read import list_rows
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import Conflict, IndexUnavailable, NotFound, StorageFull
from archive.schema import hl7_answer, hl7_message, patient
from archive.work_items import Kind, list_items, open_item
from hl7_listener import dispatch
from hl7_listener.context import Context, Warning
from hl7_listener.message import HL7Error, Message, parse
from hl7_listener.receive import arrival_of, receive, replay, sender_of, unread
from hl7_listener.structure import check
from tests.hl7_listener.conftest import EVN, MSH, PID, Answer, a28, lines


def send(archive: Archive, raw: bytes, connection: str = "127.0.0.1 #1") -> Answer:
    arrival = arrival_of(raw, source="127.0.0.1", at=archive.clock())
    return Answer.of(receive(archive, arrival, connection=connection), "latin-1")


def journal(archive: Archive, **wanted: Any) -> list[dict[str, Any]]:
    with archive.reading() as conn:
        return messages.list_messages(conn, **wanted)


def patients(archive: Archive) -> int:
    with archive.reading() as conn:
        return int(conn.execute(select(func.count()).select_from(patient)).scalar_one())


def audit(archive: Archive) -> list[dict[str, Any]]:
    with archive.reading() as conn:
        return [row for row in list_rows(conn, limit=100).items if row["door"] == "hl7"]


@pytest.fixture
def handling(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Have the event A99 handled by a function of the test."""

    def use(handler: Any) -> None:
        monkeypatch.setitem(dispatch.HANDLERS, ("ADT", "A99"), handler)

    return use


def a99(control_id: str = "9") -> bytes:
    return a28(control_id, msh=MSH.replace("A28^ADT_A05", "A99"))


@pytest.mark.req("REQ-HL7-07", "REQ-HL7-23")
def test_a_message_is_kept_as_it_came_with_its_connection_and_its_answer(archive: Archive) -> None:
    raw = a28("M1", name="ÉTÉ")
    answer = send(archive, raw, "10.0.0.9 #4")
    assert (answer.code, answer.of_message, answer.errors) == ("AA", "M1", [])
    (line,) = journal(archive)
    assert line["connection"] == "10.0.0.9 #4"
    assert (line["sender"], line["control_id"], line["kind"]) == ("RIS|CABINET", "M1", "ADT^A28")
    assert (line["state"], line["ack"], line["error"]) == ("applied", "AA", None)
    assert line["answered_at"] is not None
    with archive.reading() as conn:
        assert messages.stored(conn, line["id"]).raw == raw
    assert patients(archive) == 1


@pytest.mark.req("REQ-HL7-07")
def test_the_bytes_are_durable_before_anything_is_made_of_them(
    archive: Archive, handling: Callable[[Any], None]
) -> None:
    seen = []

    def look(_conn: Any, _message: Message, context: Context) -> list[Warning]:
        with archive.reading() as other:
            seen.append(messages.stored(other, context.message_pk))
        return []

    handling(look)
    assert send(archive, a99()).code == "AA"
    assert [(one.raw, one.state) for one in seen] == [(a99(), "received")]


@pytest.mark.req("REQ-HL7-24")
def test_the_same_message_again_has_the_same_answer_and_no_effect(archive: Archive) -> None:
    first = send(archive, a28("M1"))
    audited = len(audit(archive))
    for raw in (a28("M1"), a28("M1").replace(b"20260105083000||ADT", b"20260105091500||ADT")):
        again = send(archive, raw, "127.0.0.1 #2")
        assert (again.code, again.of_message) == (first.code, "M1")
        assert again.segments[0] != first.segments[0]
    assert [line["state"] for line in journal(archive)] == ["repeated", "repeated", "applied"]
    assert len(audit(archive)) == audited


@pytest.mark.req("REQ-HL7-24")
def test_a_message_in_doubt_is_not_accepted_before_its_fact_stands_in_the_journal(archive: Archive) -> None:
    """Its rows are committed, and it comes again: the same answer, once the file can be written."""
    folder = archive.journal.folder
    folder.rename(folder.with_name("away"))
    folder.write_bytes(b"")  # no file can be made in it
    for _ in range(2):
        assert send(archive, a28("D1")).code == "AR"
    folder.unlink()
    folder.with_name("away").rename(folder)
    assert send(archive, a28("D1")).code == "AA"
    assert [one.kind for one in archive.journal.read()] == ["patient"]
    assert patients(archive) == 1


def test_the_control_id_of_another_message_is_refused(archive: Archive) -> None:
    assert send(archive, a28("M1", pid="P1")).code == "AA"
    answer = send(archive, a28("M1", pid="P2"))
    assert (answer.code, answer.errors) == ("AE", [("205", "MSH^1^10", "E")])
    assert patients(archive) == 1
    assert send(archive, a28("M1", pid="P1")).code == "AA"  # the first keeps it
    assert [line["error"] for line in journal(archive, state=messages.State.REFUSED)] == ["205 MSH^1^10"]


@pytest.mark.req("REQ-HL7-24")
def test_control_ids_are_each_senders_own(archive: Archive) -> None:
    for sender in ("RIS", "OTHER", "ris"):
        assert send(archive, a28("M1", pid=sender, msh=MSH.replace("|RIS|", f"|{sender}|"))).code == "AA"
    assert patients(archive) == 3


@pytest.mark.req("REQ-HL7-24")
def test_a_content_error_is_repeated_too_without_another_look(
    archive: Archive, handling: Callable[[Any], None]
) -> None:
    raw = a99()
    assert send(archive, raw).errors == [("201", "MSH^1^9", "E")]  # AR: not remembered

    def refuse(_conn: Any, _message: Message, _context: Context) -> list[Warning]:
        raise HL7Error(204, "ORC^1^2", "unknown order")

    handling(refuse)
    assert (send(archive, raw).code, send(archive, raw).errors) == ("AE", [("204", "ORC^1^2", "E")])
    handling(lambda *_: [])
    answer = send(archive, raw)
    assert (answer.code, answer.errors) == ("AE", [("204", "ORC^1^2", "E")])
    assert [line["state"] for line in journal(archive)] == ["repeated", "repeated", "refused", "refused"]


@pytest.mark.req("REQ-HL7-24")
def test_one_message_on_many_connections_at_once_is_applied_once(archive: Archive) -> None:
    answers: list[str] = []
    start = threading.Barrier(6)

    def work() -> None:
        start.wait()
        answers.append(send(archive, a28("M1")).code)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["AA"] * 6
    assert sorted(line["state"] for line in journal(archive)) == ["applied", *["repeated"] * 5]


@pytest.mark.req("REQ-HL7-24")
def test_two_processes_cannot_both_apply_one_message(archive: Archive) -> None:
    """Each has looked before the other committed: the second finds out at its own commit, and tries again."""
    with open_archive(archive.settings, process="other") as other:
        barrier = threading.Barrier(2)
        answers: list[str] = []

        def work(mine: Archive) -> None:
            barrier.wait()
            answers.extend(send(mine, a28(str(n))).code for n in range(10))

        threads = [threading.Thread(target=work, args=(one,)) for one in (archive, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == ["AA"] * 20
    states = [line["state"] for line in journal(archive)]
    assert (states.count("applied"), states.count("repeated")) == (10, 10)


HEADS = [
    ("SIU^S12", "P", "2.5", "AR", ("200", "MSH^1^9", "E")),
    ("ADT^A98", "P", "2.5", "AR", ("201", "MSH^1^9", "E")),
    ("ADT", "P", "2.5", "AR", ("201", "MSH^1^9", "E")),
    ("", "P", "2.5", "AE", ("101", "MSH^1^9", "E")),
    ("ADT^A28", "T", "2.5", "AR", ("202", "MSH^1^11", "E")),
    ("ADT^A28", "", "2.5", "AR", ("202", "MSH^1^11", "E")),
    ("ADT^A28", "P^T", "2.5", "AA", None),
    ("ADT^A28", "P", "9.9", "AR", ("203", "MSH^1^12", "E")),
    ("ADT^A28", "P", "", "AR", ("203", "MSH^1^12", "E")),
]


@pytest.mark.parametrize(("kind", "processing", "version", "code", "error"), HEADS)
def test_the_head_of_a_message_is_looked_at_first(
    archive: Archive, kind: str, processing: str, version: str, code: str, error: tuple[str, str, str] | None
) -> None:
    answer = send(archive, a28(msh=f"MSH|^~\\&|R|F|P|F|2026||{kind}|{{id}}|{processing}|{version}"))
    assert (answer.code, answer.errors) == (code, [error] if error else [])
    assert patients(archive) == (code == "AA")


def test_in_test_mode_other_processing_ids_can_be_taken(settings: Settings) -> None:
    hl7 = settings.hl7.model_copy(update={"processing_ids": ("P", "T")})
    with open_archive(settings.model_copy(update={"hl7": hl7}), process="test") as archive:
        assert send(archive, a28(msh=MSH.replace("|P|", "|T|"))).code == "AA"
        assert send(archive, a28("2", msh=MSH.replace("|P|", "|D|"))).code == "AR"


def test_a_message_without_control_id_or_with_an_endless_one_is_refused(archive: Archive) -> None:
    for control_id, error in (("", "101"), ("x" * 256, "102"), ('""', None)):
        answer = send(archive, a28(control_id))
        assert answer.errors == ([(error, "MSH^1^10", "E")] if error else [])
        assert answer.of_message == control_id
    assert send(archive, a28("1", msh=MSH.replace("|RIS|", f"|{'R' * 300}|"))).errors == [("102", "MSH^1^3", "E")]
    with archive.reading() as conn:
        assert conn.execute(select(func.count()).select_from(hl7_answer)).scalar_one() == 1


@pytest.mark.parametrize("raw", [b"\x00", b"hello", b"FHS|^~\\&|R\rMSH|^~\\&|", a28().decode().encode("utf-16")])
def test_what_is_no_message_is_kept_and_refused(archive: Archive, raw: bytes) -> None:
    answer = send(archive, raw)
    assert (answer.code, answer.of_message, answer.errors) == ("AE", "", [("100", "MSH^1", "E")])
    (line,) = journal(archive)
    with archive.reading() as conn:
        assert messages.stored(conn, line["id"]).raw == raw


def test_a_head_of_countless_parts_is_refused_like_none(archive: Archive) -> None:
    for field in (3, 9, 10, 12):
        parts = a28().split(b"|")
        parts[field - 1] = b"~" * 20_000
        assert send(archive, b"|".join(parts)).errors == [("100", "MSH^1", "E")]


STRUCTURES = [
    ([], ("100", "EVN^1")),
    ([EVN], ("100", "PID^1")),
    (["PID|1", EVN], ("100", "EVN^1")),
    ([EVN, "PID|1", "PID|2"], ("100", "PID^2")),
    ([EVN, "PID|1", "MSH|^~\\&|A"], ("100", "MSH^2")),
]


@pytest.mark.parametrize(("segments", "error"), STRUCTURES)
def test_an_admission_needs_evn_before_one_pid(archive: Archive, segments: list[str], error: tuple[str, str]) -> None:
    answer = send(archive, lines(MSH.format(id=1), *segments))
    assert (answer.code, [found[:2] for found in answer.errors]) == ("AE", [error])


MERGES = [
    ([], ("100", "PID^1")),
    (["PID|1"], ("100", "MRG^1")),
    (["MRG|1", "PID|1"], ("100", "MRG^1")),
    (["PID|1", "PID|2", "MRG|1"], ("100", "MRG^1")),
    (["PID|1", "PV1|1", "MRG|1"], ("100", "MRG^1")),
    (["PID|1", "MRG|1", "PID|2"], ("100", "MRG^2")),
    (["PID|1", "MRG|1", "MRG|2"], ("100", "MRG^2")),
]


@pytest.mark.parametrize(("segments", "error"), MERGES)
def test_in_a_merge_each_pid_is_followed_by_its_mrg(
    archive: Archive, segments: list[str], error: tuple[str, str]
) -> None:
    msh = MSH.replace("A28^ADT_A05", "A40^ADT_A39")
    answer = send(archive, lines(msh.format(id=1), EVN, *segments))
    assert (answer.code, [found[:2] for found in answer.errors]) == ("AE", [error])


def test_the_pairs_of_a_long_merge_are_each_looked_at_once(archive: Archive) -> None:
    msh = MSH.replace("A28^ADT_A05", "A40^ADT_A39")
    message = parse(lines(msh.format(id=1), EVN, *["PID|1", "MRG|1"] * 8_000), default_charset="8859/15")
    start = monotonic()
    assert check(message) == []
    assert monotonic() - start < 10  # minutes when each pair is looked for from the beginning


def test_what_cannot_be_kept_as_text_is_refused_for_good(archive: Archive) -> None:
    """A database that does not take it would have the sender send it for ever."""
    answer = send(archive, a28("1") + b"A\0B" + b"|" * 1_001)
    assert (answer.code, answer.errors) == ("AE", [("100", "", "E")])


def test_pd1_and_unknown_segments_may_stand_between_pid_and_mrg(archive: Archive) -> None:
    msh = MSH.replace("A28^ADT_A05", "A40^ADT_A39")
    pid = PID.format(pid="P1", name="DUPONT")
    answer = send(archive, lines(msh.format(id=1), EVN, pid, "PD1||", "ZFA|1", "", "MRG|P2^^^CABINET^PI", "PV1|1"))
    assert answer.code == "AA"


ORDERS = [
    (["ORC|NW|1", "OBR|1|1"], ("100", "PID^1")),
    ([PID, "OBR|1|1", "ORC|NW|1"], ("100", "OBR^1")),
    ([PID, "PV1|1"], ("100", "ORC^1")),
    ([PID, "ORC|NW|1"], ("100", "OBR^1")),
    ([PID, "ORC|NW|1", "OBR|1|1", "ORC|XO|2", "ORC|NW|3", "OBR|1|3"], ("100", "OBR^2")),
    ([PID, PID, "ORC|NW|1", "OBR|1|1"], ("100", "PID^2")),
]


@pytest.mark.parametrize(("segments", "error"), ORDERS)
def test_an_order_needs_one_pid_and_its_obr_behind_its_orc(
    archive: Archive, segments: list[str], error: tuple[str, str]
) -> None:
    msh = MSH.replace("ADT^A28^ADT_A05", "ORM^O01")
    answer = send(archive, lines(msh.format(id=1), *(one.format(pid=1, name="A") for one in segments)))
    assert (answer.code, [found[:2] for found in answer.errors]) == ("AE", [error])


def test_an_order_without_pv1_is_taken_with_a_warning(archive: Archive, sample: Callable[[str], bytes]) -> None:
    answer = send(archive, sample("orders/orm-25-fr.hl7"))
    assert answer.code == "AA"
    assert ("100", "PV1^1", "W") in answer.errors


def test_the_shared_samples_of_the_protocol_are_answered_as_they_should(
    archive: Archive, sample: Callable[[str], bytes]
) -> None:
    expected = {
        "base": ("AA", None), "dup-same": ("AA", None), "dup-diff": ("AE", ("205", "MSH^1^10")),
        "bad-type": ("AR", ("200", "MSH^1^9")), "bad-event": ("AR", ("201", "MSH^1^9")),
        "bad-version": ("AR", ("203", "MSH^1^12")), "bad-processing": ("AR", ("202", "MSH^1^11")),
        "no-pid": ("AE", ("100", "PID^1")), "no-pid3": ("AE", ("101", "PID^1^3")),
        "bad-date": ("AE", ("102", "PID^1^7")), "bad-sex": ("AE", ("103", "PID^1^8")),
        "no-evn": ("AE", ("100", "EVN^1")), "crlf": ("AA", None), "delims": ("AA", None),
    }  # fmt: skip
    for name, (code, error) in expected.items():
        answer = send(archive, sample(f"proto/{name}.hl7"))
        found = [one[:2] for one in answer.errors]
        assert (answer.code, found) == (code, [error] if error else []), name


@pytest.mark.req("REQ-HL7-23", "REQ-SEC-20")
def test_a_refusal_is_audited_with_who_was_refused_and_whom_it_was_about(archive: Archive) -> None:
    send(archive, a28("M9", pid="P7").replace(b"|19700203|", b"|19703902|"))
    (row,) = audit(archive)
    assert (row["event"], row["action"], row["outcome"]) == ("110110", "U", 8)
    assert (row["user"], row["source"], row["patient"]) == ("RIS|CABINET", "127.0.0.1", "P7^^^CABINET")
    assert row["detail"] == {"reason": "102 PID^1^7", "message": "M9", "kind": "ADT^A28"}


@pytest.mark.req("REQ-HL7-23")
def test_what_a_refused_or_broken_handler_wrote_is_undone(archive: Archive, handling: Callable[[Any], None]) -> None:
    def write_then(error: Exception) -> None:
        def handler(conn: Any, _message: Message, context: Context) -> list[Warning]:
            open_item(conn, Kind.TRUNCATED, "half", at=context.at, evidence={})
            raise error

        handling(handler)

    for number, error in enumerate((HL7Error(204, "PID^1^3"), RuntimeError("a bug"), StorageFull("full"))):
        write_then(error)
        assert send(archive, a99(str(number))).code == ("AE", "AR", "AR")[number]
        with archive.reading() as conn:
            assert list_items(conn) == []
    assert [line["error"] for line in journal(archive)] == ["207", "207", "204 PID^1^3"]


@pytest.mark.req("REQ-HL7-23")
def test_a_bug_is_answered_ar_with_its_traceback_in_the_log_and_may_come_again(
    archive: Archive, handling: Callable[[Any], None]
) -> None:
    def break_down(_conn: Any, _message: Message, _context: Context) -> list[Warning]:
        raise ZeroDivisionError

    handling(break_down)
    with capture_logs() as logged:
        answer = send(archive, a99())
    assert (answer.code, answer.errors) == ("AR", [("207", "", "E")])
    assert any(isinstance(line.get("exc_info"), ZeroDivisionError) for line in logged)
    assert audit(archive)[0]["outcome"] == 12
    handling(lambda *_: [])
    assert send(archive, a99()).code == "AA"


def test_nothing_of_a_message_is_logged(archive: Archive) -> None:
    with capture_logs() as logged:
        send(archive, a28("M1", pid="SECRET", name="GEHEIM"))
        send(archive, a28("M2", pid="SECRET", name="GEHEIM").replace(b"|19700203|", b"|19703902|"))
        send(archive, a28("M3", name="GEHEIM").replace(b"Anne", b"\xff"))
    assert logged
    assert "SECRET" not in repr(logged)
    assert "GEHEIM" not in repr(logged)
    assert "19703902" not in repr(logged)


@pytest.mark.req("REQ-HL7-23")
def test_below_the_reserve_and_while_stopping_the_answer_is_ar_and_nothing_is_kept(settings: Settings) -> None:
    storage = settings.storage.model_copy(update={"reserve_bytes": 1 << 60})
    with open_archive(settings.model_copy(update={"storage": storage}), process="test") as full:
        answer = send(full, a28())
        assert (answer.code, answer.errors) == ("AR", [("207", "", "E")])
        assert journal(full) == []
    with open_archive(settings, process="test") as archive:
        archive.commit.close()
        answer = send(archive, a28())
        assert (answer.code, answer.of_message, answer.errors) == ("AR", "1", [("206", "", "E")])


@pytest.mark.req("REQ-HL7-23")
def test_a_database_that_goes_away_meanwhile_is_ar_and_the_message_is_applied_when_it_comes_again(
    archive: Archive, handling: Callable[[Any], None]
) -> None:
    def lose_it(_conn: Any, _message: Message, _context: Context) -> list[Warning]:
        raise IndexUnavailable("the database did not take the write")

    handling(lose_it)
    assert send(archive, a99()).errors == [("207", "", "E")]
    handling(lambda *_: [])
    assert send(archive, a99()).code == "AA"


@pytest.mark.req("REQ-HL7-04")
def test_a_message_that_is_too_long_is_told_so(archive: Archive) -> None:
    answer = Answer.of(unread(archive, a28("BIG")))
    assert (answer.code, answer.of_message, answer.errors) == ("AR", "BIG", [("207", "", "E")])


@pytest.mark.req("REQ-HL7-07")
def test_a_message_can_be_applied_again_after_a_bug_by_a_person(
    archive: Archive, handling: Callable[[Any], None], actor: Actor
) -> None:
    def break_down(_conn: Any, _message: Message, _context: Context) -> list[Warning]:
        raise ZeroDivisionError

    handling(break_down)
    send(archive, a99())
    (line,) = journal(archive)
    actors = []

    def note(_conn: Any, _message: Message, context: Context) -> list[Warning]:
        actors.append(context.actor)
        return []

    handling(note)
    assert replay(archive, line["id"], actor=actor) == "AA"
    assert actors == [actor]
    (line,) = journal(archive)
    assert (line["state"], line["ack"], line["error"]) == ("applied", "AA", None)
    assert send(archive, a99()).code == "AA"  # the sender's repetition finds it done
    assert len(actors) == 1
    with pytest.raises(Conflict):
        replay(archive, line["id"], actor=actor)


def test_a_message_that_was_refused_can_be_applied_when_its_reason_is_gone(
    archive: Archive, handling: Callable[[Any], None], actor: Actor
) -> None:
    def refuse(_conn: Any, _message: Message, _context: Context) -> list[Warning]:
        raise HL7Error(204, "ORC^1^2")

    handling(refuse)
    send(archive, a99())
    (line,) = journal(archive)
    assert replay(archive, line["id"], actor=actor) == "AE"
    handling(lambda *_: [])
    assert replay(archive, line["id"], actor=actor) == "AA"
    assert send(archive, a99()).code == "AA"


def test_a_replay_does_not_take_the_control_id_of_another_message(archive: Archive, actor: Actor) -> None:
    send(archive, a28("M1", pid="P1"))
    send(archive, a28("M1", pid="P2"))
    refused, _ = journal(archive)
    assert replay(archive, refused["id"], actor=actor) == "AE"
    assert patients(archive) == 1


def test_only_a_message_of_the_journal_can_be_replayed(archive: Archive, actor: Actor) -> None:
    with pytest.raises(NotFound):
        replay(archive, 4711, actor=actor)


def test_a_message_whose_answer_was_lost_with_the_power_is_applied_when_it_comes_again(archive: Archive) -> None:
    """What a crash between the two commits leaves: a row of the journal without an answer."""
    arrival = arrival_of(a28("M1"), source="127.0.0.1", at=archive.clock())
    archive.commit.run(lambda conn: messages.keep(conn, arrival.raw, arrival.head, connection="1", at=arrival.at))
    assert send(archive, a28("M1")).code == "AA"
    assert [line["state"] for line in journal(archive)] == ["applied", "received"]


def test_the_journal_is_listed_from_the_latest_in_pages_and_by_what_is_asked(archive: Archive) -> None:
    for n in range(5):
        send(archive, a28(str(n), pid=f"P{n}"))
    send(archive, a28("bad", msh=MSH.replace("2.5^FRA^2.11", "9.9")))
    assert [line["control_id"] for line in journal(archive, limit=2)] == ["bad", "4"]
    last = journal(archive, limit=2)[-1]["id"]
    assert [line["control_id"] for line in journal(archive, before=last)] == ["3", "2", "1", "0"]
    assert [line["control_id"] for line in journal(archive, state=messages.State.REFUSED)] == ["bad"]
    assert [line["control_id"] for line in journal(archive, control_id="2")] == ["2"]
    assert journal(archive, sender="NOBODY|") == []


def test_the_time_of_an_answer_is_the_archives(archive: Archive) -> None:
    before = archive.clock()
    send(archive, a28())
    with archive.reading() as conn:
        row = conn.execute(select(hl7_message.c.received_at, hl7_message.c.ack)).one()
    assert before - timedelta(seconds=1) <= row.received_at <= archive.clock()
    assert f"{row.received_at:%Y%m%d%H%M%S}+0000" in row.ack.decode()


def test_whose_turn_it_is_is_read_from_the_head() -> None:
    assert sender_of(a28()) == "RIS|CABINET"
    assert sender_of(b"") == sender_of(b"garbage") == "|"


JUNK = st.lists(
    st.sampled_from([*'|^~\\&\r\n"\0A', "PID|1||A^^^B^PI||N^G", "MRG|X", EVN, "ORC|NW", "OBR|1", "MSH|", '""', "é"]),
    max_size=25,
)


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["ADT^A28", "ADT^A31", "ADT^A40", "ADT^A08", "ORM^O01", "", "X^Y"]),
    control_id=st.text(max_size=5),
    junk=JUNK,
)
def test_whatever_comes_there_is_one_answer_that_can_be_read(
    archive: Archive, kind: str, control_id: str, junk: list[str]
) -> None:
    msh = f"MSH|^~\\&|R|F|P|F|2026||{kind}|{control_id}|P|2.5||||||UNICODE UTF-8\r"
    with capture_logs() as logged:
        answer = send(archive, (msh + "".join(junk)).encode("utf-8", "replace"))
    assert answer.code in ("AA", "AE", "AR")
    assert sum(segment[0] == "MSA" for segment in answer.segments) == 1
    assert not [line for line in logged if "a bug" in line["event"]]
