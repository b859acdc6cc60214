"""Storage commitment on the wire: N-ACTION and its statuses, reports on an association of ours or on the peer's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.sop_class import StorageCommitmentPushModel
from sqlalchemy import select

from archive import jobs
from archive.config import Settings
from archive.retrieve import select as stored
from archive.schema import commitment_request
from dicom_scp import dimse
from dicom_scp.associate import Proposed
from dicom_scp.dimse import Field
from dicom_scp.normalized import decode, encode
from tests.archive.lifecycle.aging import receive
from tests.builders import ct_slice, new_uid
from tests.dicom_scp.conftest import Running, running
from tests.dicom_scp.listening import Listener, listening, request
from tests.dicom_scp.wire import CT, EXPLICIT, IMPLICIT, REQUEST, Peer, command, data_set
from tests.dicom_scp.wire import request as association
from tests.server import free_port

PUSH, INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
COMMIT = ("store", "commit")


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    """CT1, where it hears reports."""
    with listening() as started:
        yield started


@pytest.fixture
def server(settings: Settings, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """CT1 hears on an association of ours, CT2 on its own; TESTER may store only. What fails is tried soon."""
    monkeypatch.setattr(jobs, "FIRST_PAUSE", timedelta(seconds=0.2))
    peers = {
        "CT1": {"host": "127.0.0.1", "port": listener.port, "may": COMMIT},
        "CT2": {"may": COMMIT, "commit_association": "same"},
        "AWAY": {"host": "127.0.0.1", "port": free_port(), "may": COMMIT},
        "TESTER": {"may": ("store",)},
    }
    with running(settings, peers=peers) as started:
        yield started


def held(server: Running, count: int = 2) -> list[tuple[str, str]]:
    uids = []
    for _ in range(count):
        ds = ct_slice()
        receive(server.archive, ds)
        uids.append((CT, str(ds.SOPInstanceUID)))
    return uids


def ask(server: Running, ds: Dataset, ae_title: str = "CT1") -> int:
    """An N-ACTION by pynetdicom; its status."""
    ae = AE(ae_title)
    ae.add_requested_context(StorageCommitmentPushModel)
    assoc = ae.associate("127.0.0.1", server.port, ae_title="MINIPACS")
    assert assoc.is_established
    status, _ = assoc.send_n_action(ds, 1, StorageCommitmentPushModel, INSTANCE)
    assoc.release()
    return int(status.Status)


def references(ds: Dataset, keyword: str = "ReferencedSOPSequence") -> list[tuple[str, str]]:
    return [(str(one.ReferencedSOPClassUID), str(one.ReferencedSOPInstanceUID)) for one in ds.get(keyword, ())]


class Raw(Peer):
    """A peer that proposes nothing but storage commitment, and verification."""

    def open(self, ae_title: str, syntax: str = EXPLICIT) -> None:
        contexts = (*REQUEST.contexts[:2], Proposed(5, PUSH, (syntax,)))
        accepted = self.associate(association(calling=ae_title.ljust(16).encode(), contexts=contexts))
        assert [one.result for one in accepted.results] == [0, 0, 0]

    def act(self, content: bytes, *, instance: str = INSTANCE, type: int = 1, message_id: int = 7) -> None:
        self.say(command(5, dimse.normalized_request(Field.N_ACTION_RQ, message_id, PUSH, instance, type=type)))
        self.say(data_set(5, content))


def content(transaction_uid: str, *instances: tuple[str, str], syntax: str = EXPLICIT) -> bytes:
    items = [
        {"00081150": {"vr": "UI", "Value": [one]}, "00081155": {"vr": "UI", "Value": [uid]}} for one, uid in instances
    ]
    return encode(
        {
            "00081195": {"vr": "UI", "Value": [transaction_uid]},
            "00081199": {"vr": "SQ", "Value": items},
        },
        syntax,
    )


@pytest.mark.req("REQ-DCM-50")
def test_all_that_is_held_is_committed_on_an_association_of_ours(server: Running, listener: Listener) -> None:
    images = held(server)
    assert ask(server, request("1.2.3.1", *images)) == 0
    type_id, ds = listener.hear()
    assert (type_id, ds.TransactionUID, ds.RetrieveAETitle) == (1, "1.2.3.1", "MINIPACS")
    assert references(ds) == images
    assert "FailedSOPSequence" not in ds


@pytest.mark.req("REQ-DCM-50")
def test_each_failure_has_its_reason(server: Running, listener: Listener) -> None:
    good, lost = held(server)
    (copy,) = stored(server.archive, instance_uids=[lost[1]])
    with open(copy.path, "r+b") as file:
        file.truncate(100)
    other_class = ("1.2.840.10008.5.1.4.1.1.4", good[1])
    unknown, no_image = (CT, new_uid()), ("1.2.840.10008.5.1.4.31", new_uid())
    assert ask(server, request("1.2.3.2", good, lost, other_class, unknown, no_image)) == 0
    type_id, ds = listener.hear()
    assert (type_id, references(ds)) == (2, [good])
    reasons = [int(one.FailureReason) for one in ds.FailedSOPSequence]
    assert list(zip(references(ds, "FailedSOPSequence"), reasons, strict=True)) == [
        (lost, 0x0110),
        (other_class, 0x0119),
        (unknown, 0x0112),
        (no_image, 0x0122),
    ]
    assert ask(server, request("1.2.3.2", good)) == 0  # the same Transaction UID for something else
    type_id, ds = listener.hear()
    assert (type_id, references(ds), ds.FailedSOPSequence[0].FailureReason) == (2, [], 0x0131)


@pytest.mark.req("REQ-DCM-50")
def test_a_report_counts_when_it_is_answered_well(server: Running, listener: Listener) -> None:
    """The peer refuses it twice: it is told again, the same."""
    (image,) = held(server, 1)
    listener.status = 0x0110
    assert ask(server, request("1.2.3.3", image)) == 0
    with server.archive.reading() as conn:
        id = conn.execute(select(jobs.job.c.pk).where(jobs.job.c.kind == "dicom.commitment")).scalar_one()
    for _ in range(200):
        found = jobs.wait(server.archive, id, seconds=0.1)
        if found.attempts >= 2:
            break
    assert found.error == "the peer answered 0110"
    assert reported(server) == [False]
    listener.status = 0
    _, ds = listener.hear()
    assert references(ds) == [image]
    assert jobs.wait(server.archive, id, seconds=10).result == {"committed": 1, "failed": 0}
    assert reported(server) == [True]


def reported(server: Running) -> list[bool]:
    with server.archive.reading() as conn:
        return [at is not None for at in conn.execute(select(commitment_request.c.reported_at)).scalars()]


@pytest.mark.req("REQ-DCM-50")
def test_a_peer_that_is_away_is_told_when_it_is_back(server: Running) -> None:
    (image,) = held(server, 1)
    assert ask(server, request("1.2.3.4", image), "AWAY") == 0
    port = server.archive.settings.dicom.peers["AWAY"].port
    with server.archive.reading() as conn:
        id = conn.execute(select(jobs.job.c.pk)).scalar_one()
    for _ in range(200):
        if (found := jobs.wait(server.archive, id, seconds=0.1)).error:
            break
    assert (found.state, found.error) == ("due", "the peer cannot be reached")
    with listening("AWAY", port or 0) as back:
        assert references(back.hear()[1]) == [image]


@pytest.mark.req("REQ-DCM-50")
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_the_answer_names_what_was_asked(server: Running, syntax: str) -> None:
    with Raw(server) as peer:
        peer.open("CT1", syntax)
        peer.act(content("1.2.3.5", (CT, new_uid()), syntax=syntax))
        _, answer, rest = peer.message()
        assert (answer.field, answer.responding_to, answer.status, rest) == (0x8130, 7, 0, b"")
        assert (answer.sop_class_uid, answer.sop_instance_uid, answer.type) == (PUSH, INSTANCE, 1)
        assert peer.echoes()


CASES = {
    "another action": ({"type": 2}, content("1.2.3", (CT, "1.2.3.4")), 0x0123),
    "another instance": ({"instance": "1.2.3.4"}, content("1.2.3", (CT, "1.2.3.4")), 0x0112),
    "no Transaction UID": ({}, content("", (CT, "1.2.3.4")), 0x0115),
    "a Transaction UID that is none": ({}, content("1.2.x", (CT, "1.2.3.4")), 0x0115),
    "nothing asked for": ({}, content("1.2.3"), 0x0115),
    "an instance without its UID": ({}, content("1.2.3", (CT, "")), 0x0115),
    "an instance without its class": ({}, content("1.2.3", ("", "1.2.3.4")), 0x0115),
    "a sequence that is none": ({}, content("1.2.3")[:-12] + b"\x08\0\x99\x11LO\x02\0ab", 0x0115),
    "no data set at all": ({}, b"\xff" * 40, 0x0115),
    "a length past the end": ({}, content("1.2.3", (CT, "1.2.3.4"))[:-3], 0x0115),
}


@pytest.mark.req("REQ-DCM-50")
@pytest.mark.parametrize("case", CASES)
def test_a_request_that_cannot_be_meant_is_refused_and_leaves_nothing(server: Running, case: str) -> None:
    said, raw, status = CASES[case]
    with Raw(server) as peer:
        peer.open("CT1")
        peer.act(raw, **said)
        _, answer, _ = peer.message()
        assert (answer.status, answer.responding_to) == (status, 7)
        assert peer.echoes()
    assert reported(server) == []


@pytest.mark.req("REQ-DCM-50")
def test_who_may_not_ask_is_refused_and_audited(server: Running) -> None:
    assert ask(server, request("1.2.3.6", (CT, new_uid())), "TESTER") == 0x0124
    assert reported(server) == []
    (row,) = [row for row in server.audit_rows() if row.event == "110103"]
    assert (row.user, row.action, row.outcome, json.loads(row.detail)["reason"]) == (
        *("TESTER", "E", 8, "not allowed for this peer"),
    )


@pytest.mark.req("REQ-DCM-50")
def test_a_peer_that_wants_it_hears_the_report_on_its_own_association(server: Running) -> None:
    images = held(server)
    with Raw(server) as peer:
        peer.open("CT2")
        for number, asked in enumerate((images, images[:1])):
            peer.act(content(f"1.2.3.7{number}", *asked))
            assert peer.message()[1].status == 0
            context, event, raw = peer.message()
            assert (context, event.field, event.type) == (5, Field.N_EVENT_REPORT_RQ, 1)
            assert (event.sop_class_uid, event.sop_instance_uid) == (PUSH, INSTANCE)
            told = decode(raw, EXPLICIT, default_charset="ISO_IR 100")
            assert told["00081195"]["Value"] == [f"1.2.3.7{number}"]
            assert [one["00081155"]["Value"][0] for one in told["00081199"]["Value"]] == [uid for _, uid in asked]
            assert peer.echoes()  # something else first: it need not wait
            assert reported(server)[number] is False
            peer.say(command(5, answer_to(event)))
            assert peer.echoes()
            assert reported(server)[number] is True


def answer_to(event: dimse.Command, status: int = 0) -> bytes:
    return dimse.response(event, dimse.Answer(status))


@pytest.mark.parametrize("reply", ["none", "refusal"])
def test_a_report_that_is_not_answered_there_is_owed_still(server: Running, reply: str) -> None:
    with Raw(server) as peer:
        peer.open("CT2")
        peer.act(content("1.2.3.8", *held(server)))
        assert peer.message()[1].status == 0
        _, event, _ = peer.message()
        if reply == "refusal":
            peer.say(command(5, answer_to(event, 0x0110)))
            assert peer.echoes()
    assert reported(server) == [False]
    with server.archive.reading() as conn:
        owed = conn.execute(select(jobs.job).where(jobs.job.c.kind == "dicom.commitment")).one()
    assert owed.state == "due"
    assert timedelta(seconds=5) < owed.due_at - server.archive.real_clock() < timedelta(seconds=16)


def test_an_answer_to_no_report_ends_the_association(server: Running) -> None:
    with Raw(server) as peer:
        peer.open("CT2")
        event = dimse.normalized_request(Field.N_EVENT_REPORT_RQ, 1, PUSH, INSTANCE, type=1)
        peer.say(command(5, answer_to(dimse.decode(event))))
        assert peer.hear()[0] == 7


def test_a_peer_that_goes_at_once_is_not_spoken_to_any_more(server: Running) -> None:
    images = held(server)
    with Raw(server) as peer:
        peer.open("CT2")
        peer.act(content("1.2.3.9", *images))
        peer.say(b"\5\0\0\0\0\4\0\0\0\0")
        assert peer.message()[1].status == 0
        assert peer.hear()[0] == 6
    assert reported(server) == [False]


@pytest.mark.parametrize(
    ("dicom", "why"),
    [
        ({"peers": {"CT1": {"may": ["commit"]}}}, "give them"),
        ({"peers": {"CT1": {"notify": True}}}, "needs host and port"),
        ({"commit_requires_backup": True}, "leave it false"),
    ],
)
@pytest.mark.req("REQ-DCM-50")
def test_what_could_never_be_kept_stops_the_start(dicom: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Settings.model_validate({"dicom": dicom})
