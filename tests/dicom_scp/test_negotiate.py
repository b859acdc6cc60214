"""Who is let in, on which contexts, and how the others are told (REQ-DCM-02, 05 to 08)."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from pydicom.uid import UID
from pynetdicom import AE

from archive import accounts
from archive.access import EVERYTHING, Actor, Door
from archive.audit.record import Event
from archive.config import Settings
from dicom_scp import dimse
from dicom_scp.associate import Identity, Proposed, Role, UserInformation, encode_request, title
from dicom_scp.classes import STORAGE_CLASSES, STORAGE_SYNTAXES, Service, choose_syntax, service_of
from tests.builders import ct_slice, data_set
from tests.conftest import need
from tests.dicom_scp import wire
from tests.dicom_scp.conftest import Running, running
from tests.dicom_scp.wire import BIG_ENDIAN, CT, EXPLICIT, IMPLICIT, STUDY_FIND, STUDY_GET, Peer, request

OVER_TLS = "settings"

PRIVATE_CLASS = "1.2.826.0.1.3680043.10.1683.77.1"
UPS_PULL = "1.2.840.10008.5.1.4.34.6.3"  # a service of the standard that is not ours
REJECTED = 3


def answered(server: Running, **changes: object) -> tuple[int, bytes]:
    with Peer(server) as peer:
        peer.say(encode_request(request(**changes)))
        kind, body = peer.hear()
        return kind, body[1:4] if kind == REJECTED else b""


def user(**changes: Any) -> UserInformation:
    return replace(wire.REQUEST.user, **changes)


@pytest.mark.req("REQ-DCM-02", "REQ-DCM-08")
@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        ({"called": title("NOBODY")}, (1, 1, 7)),
        ({"application_context": "1.2.840.10008.3.1.1.2"}, (1, 1, 2)),
        ({"user": user(max_pdu=100)}, (1, 1, 1)),
    ],
    ids=["called AE title", "application context", "a PDU too small for anything"],
)
def test_a_request_is_rejected_with_its_reason(
    server: Running, changes: dict[str, object], codes: tuple[int, int, int]
) -> None:
    assert answered(server, **changes) == (REJECTED, bytes(codes))


@pytest.mark.req("REQ-DCM-08")
def test_another_version_of_the_protocol_is_rejected_by_acse(server: Running) -> None:
    whole = bytearray(encode_request(wire.REQUEST))
    whole[6:8] = b"\0\2"
    with Peer(server) as peer:
        peer.say(bytes(whole))
        assert peer.hear() == (REJECTED, bytes((0, 1, 2, 2)))


@pytest.mark.req("REQ-DCM-02")
def test_an_unknown_caller_is_rejected_and_audited_when_there_is_a_list(settings: Settings) -> None:
    with running(settings, accept_unknown_callers=False, peers={"CT1": {}}) as server:
        assert answered(server) == (REJECTED, bytes((1, 1, 3)))
        assert answered(server, calling=title("CT1"))[0] == 2
        [row] = [row for row in server.audit_rows() if row.event == Event.SECURITY_ALERT]
    assert (row.user, row.source, row.outcome) == ("TESTER", "127.0.0.1", 8)
    assert json.loads(row.detail)["reason"] == "unknown calling AE title"


@pytest.mark.req("REQ-DCM-02")
def test_several_ae_titles_answer_on_one_port(settings: Settings) -> None:
    with running(settings, ae_titles=("SECOND",)) as server:
        assert answered(server, called=title("SECOND"))[0] == 2
        assert answered(server, called=title("THIRD"))[0] == REJECTED


@pytest.mark.req("REQ-DCM-08")
def test_one_association_too_many_is_told_to_come_later(settings: Settings) -> None:
    with running(settings, max_associations=2) as server, Peer(server) as first, Peer(server) as second:
        first.associate()
        second.associate()
        assert answered(server) == (REJECTED, bytes((2, 3, 2)))
        assert first.echoes()
        assert second.echoes()


def test_the_answer_gives_one_syntax_a_context_and_says_what_is_wrong(server: Running) -> None:
    proposed = (
        Proposed(1, CT, ("1.2.3", IMPLICIT, EXPLICIT)),
        Proposed(3, CT, (BIG_ENDIAN,)),
        Proposed(5, UPS_PULL, (IMPLICIT,)),
        Proposed(7, CT, ("1.2.3",)),
        Proposed(9, CT, ("1.2.840.10008.1.2.4.70", EXPLICIT)),
        Proposed(11, STUDY_FIND, ("1.2.840.10008.1.2.4.70",)),
        Proposed(13, PRIVATE_CLASS, (EXPLICIT,)),
        Proposed(15, CT, ()),
    )
    with Peer(server) as peer:
        accept = peer.associate(request(contexts=proposed))
    assert [(one.id, one.result) for one in accept.results] == [
        (1, 0), (3, 0), (5, 3), (7, 4), (9, 0), (11, 4), (13, 3), (15, 4),
    ]  # fmt: skip
    syntaxes = {one.id: one.transfer_syntax for one in accept.results}
    assert (syntaxes[1], syntaxes[3], syntaxes[9]) == (EXPLICIT, BIG_ENDIAN, "1.2.840.10008.1.2.4.70")
    assert accept.user.max_pdu == 131_072


@pytest.mark.req("REQ-DCM-06")
def test_the_asynchronous_window_is_one_and_one_when_it_is_offered(server: Running) -> None:
    with Peer(server) as peer:
        assert peer.associate(request(user=user(window=(0, 8)))).user.window == (1, 1)
    with Peer(server) as peer:
        assert peer.associate().user.window is None


@pytest.mark.req("REQ-DCM-06")
def test_the_scp_role_is_accepted_for_storage_alone(server: Running) -> None:
    roles = {
        CT: Role(scu=False, scp=True),
        STUDY_GET: Role(scu=True, scp=True),
        "1.2.3": Role(scu=True, scp=True),
    }
    with Peer(server) as peer:
        accept = peer.associate(request(user=user(roles=roles)))
    assert accept.user.roles == {CT: Role(scu=False, scp=True), STUDY_GET: Role(scu=True, scp=False)}


@pytest.mark.req("REQ-DCM-34")
def test_extended_negotiation_is_answered_with_as_many_bytes_and_what_is_implemented(server: Running) -> None:
    offered = {STUDY_FIND: b"\1\1\1\1\1\1\1", STUDY_GET: b"\1\1", CT: b"\2\0\1"}
    with Peer(server) as peer:
        accept = peer.associate(request(user=user(extended=offered)))
    assert accept.user.extended == {STUDY_FIND: b"\1\1\0\1\0\1\1", STUDY_GET: b"\1\0"}
    with Peer(server) as peer:
        assert peer.associate(request(user=user(extended={STUDY_FIND: b"\0"}))).user.extended == {STUDY_FIND: b"\0"}
    worklist = "1.2.840.10008.5.1.4.31"
    with Peer(server) as peer:
        asking = request(contexts=(Proposed(1, worklist, (IMPLICIT,)),), user=user(extended={worklist: b"\1\1\1"}))
        assert peer.associate(asking).user.extended == {worklist: b"\0\1\0"}


@pytest.mark.req("REQ-DCM-07")
@pytest.mark.parametrize("how", ["announced", "switch"])
def test_an_unknown_storage_class_is_stored(settings: Settings, how: str) -> None:
    ds = ct_slice(SOPClassUID=PRIVATE_CLASS)
    announced = {PRIVATE_CLASS: "1.2.840.10008.4.2"} if how == "announced" else {}
    with running(settings, unknown_sop_classes=how == "switch") as server, Peer(server) as peer:
        proposed = (Proposed(1, PRIVATE_CLASS, (EXPLICIT,)), Proposed(3, UPS_PULL, (IMPLICIT,)))
        accept = peer.associate(request(contexts=proposed, user=user(service_classes=announced)))
        assert [one.result for one in accept.results] == [0, 3]
        peer.say(wire.command(1, dimse.store_request(1, PRIVATE_CLASS, ds.SOPInstanceUID)))
        peer.say(wire.data_set(1, data_set(ds)))
        assert peer.answer().status == 0
        assert server.stored_uids() == [ds.SOPInstanceUID]


@pytest.mark.req("REQ-DCM-05", "REQ-DCM-08")
def test_a_checked_identity_is_confirmed_and_audited_and_a_wrong_one_rejected(server: Running) -> None:
    admin = Actor(user="root", source="", door=Door.COMMAND, may=EVERYTHING)
    accounts.add_account(server.archive, "anne", ["technologist"], "correct horse battery", actor=admin)
    accounts.add_account(server.archive, "marc", ["auditor"], "correct horse battery", actor=admin)
    right = Identity(2, True, b"anne", b"correct horse battery")
    ds = ct_slice()
    with Peer(server) as peer:
        assert peer.associate(request(user=user(identity=right))).user.identity_response == b""
        peer.say(wire.command(3, dimse.store_request(1, CT, ds.SOPInstanceUID)))
        peer.say(wire.data_set(3, data_set(ds)))
        assert peer.answer().status == 0
    [row] = [row for row in server.audit_rows() if row.event == Event.INSTANCES_TRANSFERRED and '"open"' in row.detail]
    assert row.user == "anne"

    wrong = Identity(2, True, b"anne", b"wrong")
    assert answered(server, user=user(identity=wrong)) == (REJECTED, bytes((1, 2, 1)))
    unasked = Identity(2, False, b"anne", b"correct horse battery")
    with Peer(server) as peer:
        assert peer.associate(request(user=user(identity=unasked))).user.identity_response is None
    without_rights = Identity(2, False, b"marc", b"correct horse battery")
    with Peer(server) as peer:
        peer.associate(request(user=user(identity=without_rights)))
        assert peer.echoes()
        peer.say(wire.command(3, dimse.store_request(1, CT, ds.SOPInstanceUID)))
        peer.say(wire.data_set(3, data_set(ds)))
        assert peer.answer().status == 0x0124


@pytest.mark.req("REQ-DCM-05")
@pytest.mark.parametrize(("kind", "response"), [(1, b""), (3, None), (4, None), (5, None)])
def test_a_name_is_taken_and_what_cannot_be_checked_is_not_confirmed(
    server: Running, kind: int, response: bytes | None
) -> None:
    with Peer(server) as peer:
        accept = peer.associate(request(user=user(identity=Identity(kind, True, b"anne", b""))))
        assert accept.user.identity_response == response
        assert peer.echoes()


@pytest.mark.req("REQ-DCM-05", "REQ-DCM-08")
def test_a_token_names_the_user_and_a_wrong_one_is_rejected(settings: Settings, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [ECAlgorithm.to_jwk(key.public_key(), as_dict=True)]}))
    claims = {"iss": "https://sso.example", "aud": "minipacs", "sub": "anne", "exp": time.time() + 300}
    right = jwt.encode(claims, key, algorithm="ES256").encode()
    section = {"keys": keys, "issuer": "https://sso.example", "audience": "minipacs"}
    with running(settings, jwt=section, peers={"TESTER": {"may": ["query"]}}) as server:
        with Peer(server) as peer:
            assert peer.associate(request(user=user(identity=Identity(5, True, right)))).user.identity_response == b""
            ds = ct_slice()
            peer.say(wire.command(3, dimse.store_request(1, CT, ds.SOPInstanceUID)))
            peer.say(wire.data_set(3, data_set(ds)))
            assert peer.answer().status == 0x0124  # the rights are those of the peer
        login, refusal = server.audit_rows()[-2:]
        assert (login.event, login.user, login.outcome) == (Event.USER_AUTHENTICATION, "anne", 0)
        assert (refusal.event, refusal.user, refusal.outcome) == (Event.INSTANCES_TRANSFERRED, "anne", 8)
        wrong = Identity(5, True, right[:-4] + b"AAAA")
        assert answered(server, user=user(identity=wrong)) == (REJECTED, bytes((1, 2, 1)))


@pytest.mark.req("REQ-DCM-11", "REQ-DCM-12")
def test_every_class_and_syntax_of_the_tables_is_accepted() -> None:
    for suffix in ("66.7", "66.8", "88.76", "2.1", "13.1.3", "104.5", "481.9", "9.1.1", "130"):
        assert f"1.2.840.10008.5.1.4.1.1.{suffix}" in STORAGE_CLASSES
    for suffix in (
        "8.1",
        "1.98",
        "1.99",
        "2",
        "5",
        "4.57",
        "4.70",
        "4.81",
        "4.93",
        "4.106.1",
        "4.108",
        "4.112",
        "4.203",
    ):
        assert f"1.2.840.10008.1.2.{suffix}" in STORAGE_SYNTAXES
    assert len(STORAGE_CLASSES) > 180


def test_the_proposers_first_syntax_is_taken_but_explicit_before_implicit() -> None:
    jls = "1.2.840.10008.1.2.4.80"
    assert choose_syntax(Service.STORAGE, (IMPLICIT, EXPLICIT, jls)) == EXPLICIT
    assert choose_syntax(Service.STORAGE, (jls, EXPLICIT)) == jls
    assert choose_syntax(Service.STORAGE, (BIG_ENDIAN, IMPLICIT)) == IMPLICIT
    assert choose_syntax(Service.FIND, (jls, IMPLICIT)) == IMPLICIT
    assert choose_syntax(Service.FIND, (jls,)) is None


def test_what_the_standard_uses_for_something_else_is_never_a_storage_class() -> None:
    for uid in (UPS_PULL, "1.2.840.10008.5.1.4.33", "1.2.840.10008.5.1.1.9", "1.2.840.10008.1.2"):
        assert UID(uid).name != uid
        assert service_of(uid, unknown_is_storage=True) is None


@pytest.mark.req("REQ-DCM-01")
def test_echoscu_and_pynetdicom_are_answered(server: Running) -> None:
    need("echoscu")
    done = subprocess.run(
        ["echoscu", "-v", "-aec", "MINIPACS", "--repeat", "3", *server.options(), "127.0.0.1", str(server.port)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ae = AE("TESTER")
    ae.add_requested_context("1.2.840.10008.1.1")
    assoc = ae.associate("127.0.0.1", server.port, ae_title="MINIPACS", tls_args=server.tls_args)
    assert assoc.is_established
    assert assoc.send_c_echo().Status == 0
    assoc.release()
    assert assoc.is_released
