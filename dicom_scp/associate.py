"""A-ASSOCIATE-RQ and -AC as typed values (PS3.8 §9.3.2, §9.3.3; PS3.7 Annex D.3.3).

Our own codec because unknown items have to be skipped (PS3.8 §9.3.1), lengths are hostile, and an association of
one query lives no longer than this takes; the tests compare it with pynetdicom's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from dicom_scp.ends import ProtocolError
from dicom_scp.pdu import PDU_HEAD, PduType

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
_ITEM_HEAD = struct.Struct(">BxH")
_FIXED = struct.Struct(">H2x16s16s32x")


@dataclass(frozen=True, slots=True)
class Proposed:
    """A presentation context of a request."""

    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to a presentation context. `result`: 0 accepted, 1 user, 2 provider, 3 abstract, 4 transfer syntax."""

    id: int
    result: int
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class Role:
    """SCP/SCU Role Selection, as roles of the requestor (PS3.7 §D.3.3.4)."""

    scu: bool
    scp: bool


@dataclass(frozen=True, slots=True)
class Identity:
    """User Identity (PS3.7 §D.3.3.7). Kinds: 1 name, 2 name and passcode, 3 Kerberos, 4 SAML, 5 JWT."""

    kind: int
    response_requested: bool
    primary: bytes
    secondary: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class UserInformation:
    """What both sides say of themselves. `max_pdu` 0: no limit."""

    max_pdu: int = 0
    implementation_class_uid: str = ""
    implementation_version: str = ""
    window: tuple[int, int] | None = None  # operations invoked, performed
    roles: dict[str, Role] = field(default_factory=dict)
    extended: dict[str, bytes] = field(default_factory=dict)  # SOP class: application information
    service_classes: dict[str, str] = field(
        default_factory=dict
    )  # common extended negotiation: SOP class: service class
    identity: Identity | None = None
    identity_response: bytes | None = None


@dataclass(frozen=True, slots=True)
class AssociateRequest:
    """A-ASSOCIATE-RQ."""

    called: bytes  # 16 bytes as received, so that the answer can repeat them
    calling: bytes
    contexts: tuple[Proposed, ...]
    user: UserInformation
    protocol_version: int = 1
    application_context: str = APPLICATION_CONTEXT

    @property
    def called_ae(self) -> str:
        return _title(self.called)

    @property
    def calling_ae(self) -> str:
        return _title(self.calling)


@dataclass(frozen=True, slots=True)
class AssociateAccept:
    """A-ASSOCIATE-AC."""

    called: bytes
    calling: bytes
    results: tuple[Result, ...]
    user: UserInformation


def _title(raw: bytes) -> str:
    return raw.decode("ascii", "replace").strip(" \0")


def _uid(raw: bytes) -> str:
    return raw.decode("ascii", "replace").rstrip("\0 ")


# --- reading ---------------------------------------------------------------------------------------------------


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and value of each item. Raises ProtocolError when a length goes past the end."""
    offset = 0
    while offset < len(data):
        if offset + 4 > len(data):
            raise ProtocolError("an item ends in its head")
        kind, length = _ITEM_HEAD.unpack_from(data, offset)
        offset += 4
        if offset + length > len(data):
            raise ProtocolError(f"item {kind:02X} is longer than what holds it")
        yield kind, data[offset : offset + length]
        offset += length


def _counted(data: bytes, offset: int) -> tuple[bytes, int]:
    """A value behind its 16-bit length, and where it ends."""
    if offset + 2 > len(data):
        raise ProtocolError("a sub-item ends in a length")
    (length,) = struct.unpack_from(">H", data, offset)
    end = offset + 2 + length
    if end > len(data):
        raise ProtocolError("a length inside a sub-item goes past its end")
    return data[offset + 2 : end], end


def _fixed(body: bytes) -> tuple[int, bytes, bytes]:
    if len(body) < _FIXED.size:
        raise ProtocolError("an A-ASSOCIATE PDU is too short")
    version, called, calling = _FIXED.unpack_from(body)
    return version, called, calling


def decode_request(body: bytes) -> AssociateRequest:
    """Read what follows the head of an A-ASSOCIATE-RQ. Raises ProtocolError."""
    version, called, calling = _fixed(body)
    application_context = ""
    contexts: dict[int, Proposed] = {}
    user = UserInformation()
    for kind, value in _items(body[_FIXED.size :]):
        if kind == 0x10:
            application_context = _uid(value)
        elif kind == 0x20:
            if len(value) < 4:
                raise ProtocolError("a presentation context ends in its head")
            inner = list(_items(value[4:]))
            abstract = next((_uid(raw) for item, raw in inner if item == 0x30), "")
            if not value[0] % 2 or value[0] in contexts:
                raise ProtocolError(f"presentation context id {value[0]} is even or given twice")
            contexts[value[0]] = Proposed(value[0], abstract, tuple(_uid(raw) for item, raw in inner if item == 0x40))
        elif kind == 0x50:
            user = _user_information(value)
    return AssociateRequest(called, calling, tuple(contexts.values()), user, version, application_context)


def decode_accept(body: bytes) -> AssociateAccept:
    """Read what follows the head of an A-ASSOCIATE-AC. Raises ProtocolError."""
    _, called, calling = _fixed(body)
    results: list[Result] = []
    user = UserInformation()
    for kind, value in _items(body[_FIXED.size :]):
        if kind == 0x21:
            if len(value) < 4:
                raise ProtocolError("a presentation context ends in its head")
            syntax = ""
            if value[2] == 0:  # else the sub-item means nothing and may be anything
                syntax = next((_uid(raw) for item, raw in _items(value[4:]) if item == 0x40), "")
            results.append(Result(value[0], value[2], syntax))
        elif kind == 0x50:
            user = _user_information(value)
    return AssociateAccept(called, calling, tuple(results), user)


def _user_information(data: bytes) -> UserInformation:
    user = UserInformation()
    for kind, value in _items(data):
        match kind:
            case 0x51:
                user = replace(user, max_pdu=_numbers(">I", value)[0])
            case 0x52:
                user = replace(user, implementation_class_uid=_uid(value))
            case 0x53:
                invoked, performed = _numbers(">HH", value)
                user = replace(user, window=(invoked, performed))
            case 0x54 | 0x56 | 0x57:
                _of_a_class(kind, value, user)
            case 0x55:
                user = replace(user, implementation_version=value.decode("ascii", "replace").strip())
            case 0x58:
                user = replace(user, identity=_identity(value))
            case 0x59:
                user = replace(user, identity_response=_counted(value, 0)[0])
    return user


def _numbers(form: str, value: bytes) -> tuple[int, ...]:
    if len(value) != struct.calcsize(form):
        raise ProtocolError("a sub-item has a wrong length")
    return struct.unpack(form, value)


def _of_a_class(kind: int, value: bytes, user: UserInformation) -> None:
    """Role selection, extended and common extended negotiation: one sub-item for each SOP class."""
    raw, end = _counted(value, 0)
    uid = _uid(raw)
    if kind == 0x54:
        if len(value) < end + 2:
            raise ProtocolError("a role selection is too short")
        user.roles[uid] = Role(value[end] == 1, value[end + 1] == 1)
    elif kind == 0x56:
        user.extended[uid] = value[end:]
    else:
        user.service_classes[uid] = _uid(_counted(value, end)[0])


def _identity(value: bytes) -> Identity:
    if len(value) < 2:
        raise ProtocolError("a user identity is too short")
    primary, end = _counted(value, 2)
    secondary, _ = _counted(value, end)
    return Identity(value[0], value[1] == 1, primary, secondary)


# --- writing ---------------------------------------------------------------------------------------------------


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM_HEAD.pack(kind, len(value)) + value


def _text(value: str) -> bytes:
    return value.encode("ascii", "replace")


def _count(value: bytes) -> bytes:
    return struct.pack(">H", len(value)) + value


def title(name: str) -> bytes:
    """An AE title as its 16 bytes."""
    return _text(name)[:16].ljust(16)


def encode_request(request: AssociateRequest) -> bytes:
    """The whole PDU."""
    contexts = b"".join(
        _item(
            0x20,
            bytes((context.id, 0, 0, 0))
            + _item(0x30, _text(context.abstract_syntax))
            + b"".join(_item(0x40, _text(syntax)) for syntax in context.transfer_syntaxes),
        )
        for context in request.contexts
    )
    items = _item(0x10, _text(request.application_context)) + contexts
    return _associate(PduType.ASSOCIATE_RQ, request.called, request.calling, items + _user_item(request.user))


def encode_accept(accept: AssociateAccept) -> bytes:
    """The whole PDU."""
    results = b"".join(
        _item(0x21, bytes((result.id, 0, result.result, 0)) + _item(0x40, _text(result.transfer_syntax)))
        for result in accept.results
    )
    items = _item(0x10, _text(APPLICATION_CONTEXT)) + results
    return _associate(PduType.ASSOCIATE_AC, accept.called, accept.calling, items + _user_item(accept.user))


def _associate(kind: PduType, called: bytes, calling: bytes, items: bytes) -> bytes:
    body = _FIXED.pack(1, called, calling) + items
    return PDU_HEAD.pack(kind, len(body)) + body


def _user_item(user: UserInformation) -> bytes:
    return _item(0x50, b"".join(_sub_items(user)))


def _sub_items(user: UserInformation) -> Iterator[bytes]:
    yield _item(0x51, struct.pack(">I", user.max_pdu))
    yield _item(0x52, _text(user.implementation_class_uid))
    if user.window is not None:
        yield _item(0x53, struct.pack(">HH", *user.window))
    for uid, role in user.roles.items():
        yield _item(0x54, _count(_text(uid)) + bytes((role.scu, role.scp)))
    yield _item(0x55, _text(user.implementation_version))
    for uid, information in user.extended.items():
        yield _item(0x56, _count(_text(uid)) + information)
    for uid, service in user.service_classes.items():
        yield _item(0x57, _count(_text(uid)) + _count(_text(service)) + _count(b""))
    if user.identity is not None:
        identity = user.identity
        head = bytes((identity.kind, identity.response_requested))
        yield _item(0x58, head + _count(identity.primary) + _count(identity.secondary))
    if user.identity_response is not None:
        yield _item(0x59, _count(user.identity_response))
