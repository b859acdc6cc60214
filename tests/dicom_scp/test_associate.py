"""Our association codec, judged by pynetdicom's, and by garbage."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ

from dicom_scp.associate import (
    APPLICATION_CONTEXT,
    AssociateAccept,
    AssociateRequest,
    Identity,
    Proposed,
    Result,
    Role,
    UserInformation,
    decode_accept,
    decode_request,
    encode_accept,
    encode_request,
    title,
)
from dicom_scp.ends import ProtocolError

CT, FIND = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.2.2.1"
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
REQUEST = AssociateRequest(
    called=title("ARCHIVE"),
    calling=title("CT 1"),
    contexts=(Proposed(1, CT, (EXPLICIT, IMPLICIT)), Proposed(3, FIND, (IMPLICIT,))),
    user=UserInformation(
        max_pdu=65536,
        implementation_class_uid="1.2.3.4",
        implementation_version="THING_1",
        window=(5, 3),
        roles={CT: Role(scu=False, scp=True)},
        extended={FIND: b"\1\0\1"},
        service_classes={"1.2.3.9": "1.2.840.10008.4.2"},
        identity=Identity(2, True, b"anne", b"secret"),
    ),
)
ACCEPT = AssociateAccept(
    called=title("ARCHIVE"),
    calling=title("CT 1"),
    results=(Result(1, 0, EXPLICIT), Result(3, 4, IMPLICIT)),
    user=UserInformation(
        max_pdu=131072,
        implementation_class_uid="1.2.3.4",
        implementation_version="THING_1",
        window=(1, 1),
        roles={CT: Role(scu=False, scp=True)},
        extended={FIND: b"\1\0\0"},
        identity_response=b"",
    ),
)


def test_pynetdicom_reads_the_request_that_we_write() -> None:
    theirs = A_ASSOCIATE_RQ()
    theirs.decode(encode_request(REQUEST))
    assert theirs.called_ae_title == "ARCHIVE"
    assert theirs.calling_ae_title == "CT 1"
    assert theirs.application_context_name == APPLICATION_CONTEXT
    assert [
        (one.context_id, one.abstract_syntax, tuple(one.transfer_syntax)) for one in theirs.presentation_context
    ] == [(one.id, one.abstract_syntax, one.transfer_syntaxes) for one in REQUEST.contexts]
    user = theirs.user_information
    assert user is not None
    assert user.maximum_length == 65536
    assert user.implementation_version_name == "THING_1"
    assert (user.role_selection[CT].scu_role, user.role_selection[CT].scp_role) == (0, 1)
    assert (user.async_ops_window.max_operations_invoked, user.async_ops_window.max_operations_performed) == (5, 3)
    assert user.ext_neg[0].app_info == b"\1\0\1"
    assert user.common_ext_neg[0].service_class_uid == "1.2.840.10008.4.2"
    assert user.user_identity.primary_field == b"anne"
    assert user.user_identity.secondary_field == b"secret"


def test_we_read_the_request_that_pynetdicom_writes() -> None:
    theirs = A_ASSOCIATE_RQ()
    theirs.decode(encode_request(REQUEST))
    assert decode_request(theirs.encode()[6:]) == REQUEST


def test_pynetdicom_reads_the_acceptance_that_we_write_and_back() -> None:
    theirs = A_ASSOCIATE_AC()
    theirs.decode(encode_accept(ACCEPT))
    assert [(one.context_id, one.result) for one in theirs.presentation_context] == [(1, 0), (3, 4)]
    assert theirs.presentation_context[0].transfer_syntax == EXPLICIT
    assert theirs.user_information is not None
    assert theirs.user_information.user_identity.server_response == b""
    read = decode_accept(theirs.encode()[6:])
    assert read.user == ACCEPT.user
    assert [(one.id, one.result) for one in read.results] == [(1, 0), (3, 4)]


def test_unknown_items_are_skipped() -> None:
    """PS3.8 §9.3.1: «items that are not recognized shall be ignored»."""
    body = encode_request(REQUEST)[6:] + b"\x99\x00\x00\x02hi"
    assert decode_request(body) == REQUEST


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_a_damaged_request_is_read_or_refused(noise: bytes, place: int, flip: int) -> None:
    whole = bytearray(encode_request(REQUEST)[6:])
    whole[place % len(whole)] ^= flip
    for body in (bytes(whole), bytes(whole[:place]), bytes(whole[:68]) + noise, noise):
        for decode in (decode_request, decode_accept):
            try:
                decode(body)
            except ProtocolError:
                continue
