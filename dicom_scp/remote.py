"""Another archive, as we ask it: C-FIND, C-GET and C-MOVE as SCU (PS3.4 C.4.1, C.4.2, C.4.3), Study Root.

What a C-GET brings goes the way of everything that is received (`dicom_scp.store`), its `source` being the peer; a
C-MOVE sends it to our own port.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from archive.access import PEER_MAY, Actor, Door
from archive.clock import monotonic
from archive.core import Archive
from archive.dicom.dictionary import public_vr, tag_of
from archive.dicom.file_meta import FileMeta
from archive.dicom.syntaxes import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, JPEG, RLE
from archive.errors import Unavailable, UnreadableInstance
from archive.sections import Peer
from archive.sending import peer_named
from archive.takeover import Listed
from dicom_scp import dimse
from dicom_scp.associate import Proposed, Role
from dicom_scp.classes import PLAIN, STORAGE_SYNTAXES
from dicom_scp.dimse import RESPONSE, Field
from dicom_scp.ends import AbortReason, NotAssociated, ProtocolError
from dicom_scp.exchange import Message
from dicom_scp.messages import StoreRequest
from dicom_scp.normalized import decode, encode
from dicom_scp.requestor import Requestor
from dicom_scp.status import PENDING, Status
from dicom_scp.store import store

log = structlog.get_logger(__name__)

FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{last}" for last in "123")
_BEGUN = frozenset({*PENDING, Status.SUCCESS})
# Each in a context of its own, so that what is stored in one of them comes in it; all others share one.
_ALONE = (
    EXPLICIT_LE, IMPLICIT_LE, *(JPEG + last for last in ("50", "51", "57", "70", "80", "81", "90", "91")), RLE,
    DEFLATED_LE, EXPLICIT_BE, *(JPEG + last for last in ("201", "202", "203")),
)  # fmt: skip
_TOGETHER = tuple(sorted(STORAGE_SYNTAXES - set(_ALONE)))
CLASSES_AT_ONCE = 127 // (len(_ALONE) + 1)  # of 128 contexts, one is that of C-GET itself
UIDS_AT_ONCE = 100  # in one identifier at level IMAGE

Row = dict[str, Any]  # DICOM JSON


@dataclass(frozen=True, slots=True)
class Answers:
    """What a C-FIND gave. Not `complete`: the peer stopped before its end, for instance at its limit."""

    rows: list[Row]
    seen: int  # with those that were not wanted
    complete: bool
    status: int
    comment: str


class Refused(Exception):
    """The peer does not answer what it was asked; the message says how."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A peer that is queried. Everything raises AssociationEnd: it cannot be reached, refuses us, or breaks off."""

    archive: Archive
    name: str
    ae_title: str
    peer: Peer

    @property
    def actor(self) -> Actor:
        """The peer, as what it gives is filed and audited."""
        return Actor(self.ae_title, self.peer.host or "", Door.DICOM, PEER_MAY["store"])

    @contextmanager
    def asking(self) -> Iterator[Asking]:
        """An association for queries."""
        with self._open(FIND) as requestor:
            yield Asking(self, requestor)

    @contextmanager
    def _open(self, sop_class: str, classes: Sequence[str] = ()) -> Iterator[Requestor]:
        proposed = [Proposed(1, sop_class, PLAIN)]
        for uid in classes:
            for syntaxes in (*((syntax,) for syntax in _ALONE), _TOGETHER):
                proposed.append(Proposed(2 * len(proposed) + 1, uid, syntaxes))
        roles = {uid: Role(scu=False, scp=True) for uid in classes}
        settings = self.archive.settings
        with Requestor.open(settings, self.ae_title, self.peer, tuple(proposed), roles=roles) as requestor:
            if 1 not in requestor.exchange.contexts:
                raise NotAssociated("the peer does not offer this service")
            yield requestor

    def move(self, keys: Mapping[str, Any]) -> str:
        """Have what these keys name sent to our own port; why not all of it came, as far as the peer says; "" else."""
        with self._open(MOVE) as requestor:
            _ask(requestor, Field.C_MOVE_RQ, MOVE, keys, destination=self.archive.settings.dicom.ae_title)
            return _ending(self._last(requestor, Field.C_MOVE_RQ))

    def get(self, keys: Mapping[str, Any], classes: Sequence[str]) -> str:
        """Fetch what these keys name, of at most CLASSES_AT_ONCE SOP classes, on the association itself. Why not all of
        it came, as far as the peer says; "" else.

        Raises:
            Unavailable: this archive cannot take more.
        """
        scope = uuid.uuid4().hex
        try:
            with self._open(GET, classes) as requestor:
                _ask(requestor, Field.C_GET_RQ, GET, keys)
                return _ending(self._last(requestor, Field.C_GET_RQ, self._storing(requestor, scope)))
        finally:
            self.archive.accesses.end_scope(scope)

    def _last(
        self, requestor: Requestor, operation: Field, otherwise: Callable[[Message], None] | None = None
    ) -> dimse.Command:
        """The last response; what comes before and is none is handed to `otherwise`."""
        while True:
            message = requestor.receive(monotonic() + self.archive.settings.dicom.idle_seconds)
            if otherwise is not None and message.command.field == Field.C_STORE_RQ:
                otherwise(message)
                continue
            command = _response(message, operation)
            requestor.exchange.drain()
            if command.status not in PENDING:
                return command

    def _storing(self, requestor: Requestor, scope: str) -> Callable[[Message], None]:
        def take(message: Message) -> None:
            command, context = message.command, message.context
            request = StoreRequest(
                meta=FileMeta(command.sop_class_uid, command.sop_instance_uid, context.transfer_syntax, self.ae_title),
                data_set=requestor.exchange.data_set(),
                actor=self.actor,
                scope=scope,
                fetched=True,
            )
            answer = store(request, self.archive)
            requestor.exchange.drain()
            requestor.exchange.send(context.id, dimse.response(command, answer))
            if answer.status & 0xFF00 == Status.OUT_OF_RESOURCES:
                raise Unavailable(answer.comment or "nothing more can be stored")

        return take


class Asking:
    """Queries on one association, one after the other."""

    def __init__(self, remote: Remote, requestor: Requestor) -> None:
        self._remote = remote
        self._requestor = requestor
        self._number = 0

    def find(self, keys: Mapping[str, str], *, wanted: Callable[[Row], bool] = lambda _row: True) -> Answers:
        """Ask one C-FIND: the keywords of its keys and their values, "" for what is wanted back. Of the answers those
        that are `wanted`.

        Raises Refused: the peer answers nothing but a failure.
        """
        requestor, settings = self._requestor, self._remote.archive.settings.dicom
        self._number += 1
        _ask(requestor, Field.C_FIND_RQ, FIND, identifier(**keys), number=self._number)
        rows: list[Row] = []
        seen = 0
        while True:
            message = requestor.receive()
            command = _response(message, Field.C_FIND_RQ)
            data = requestor.exchange.identifier() or b""
            if command.status not in PENDING:
                break
            syntax = message.context.transfer_syntax
            try:
                row = decode(data, syntax, default_charset=settings.default_charset)
            except UnreadableInstance as error:
                raise Refused(f"{self._remote.name} answers what cannot be read") from error
            seen += 1
            rows += [row] if wanted(row) else []
        status = command.status or 0
        if status != Status.SUCCESS and not seen:
            raise Refused(f"{self._remote.name} answers the query with status {status:04X}")
        return Answers(rows, seen, status == Status.SUCCESS, status, command.comment)

    def instances(self, study_uid: str) -> list[Listed]:
        """Every instance that the peer has of a study: its series, then the instances of each, as the hierarchy
        demands.

        Raises Refused: it does not list them all.
        """
        listed: dict[str, Listed] = {}
        for series in self._all("SERIES", study_uid, SeriesInstanceUID=""):
            series_uid = value(series, "SeriesInstanceUID")
            keys = {"SeriesInstanceUID": series_uid, "SOPInstanceUID": ""}
            try:
                rows = self._all("IMAGE", study_uid, **keys, SOPClassUID="")
            except Refused:  # Orthanc reads each file for the class, and fails over the first that is damaged
                rows = self._all("IMAGE", study_uid, **keys)
            for row in rows:
                uid = value(row, "SOPInstanceUID")
                listed[uid] = Listed(uid, series_uid, value(row, "SOPClassUID"))
        listed.pop("", None)
        return list(listed.values())

    def classes(self, study_uid: str) -> list[str]:
        """The SOP classes of a study, where the peer says them."""
        answers = self.find({"QueryRetrieveLevel": "STUDY", "StudyInstanceUID": study_uid, "SOPClassesInStudy": ""})
        found = (row.get("00080062", {}).get("Value") or () for row in answers.rows)
        return [str(uid) for uids in found for uid in uids if uid]

    def _all(self, level: str, study_uid: str, **keys: str) -> list[Row]:
        answers = self.find({"QueryRetrieveLevel": level, "StudyInstanceUID": study_uid, **keys})
        if not answers.complete:
            raise Refused(f"{self._remote.name} does not list all of a study (status {answers.status:04X})")
        return answers.rows


def remote_of(archive: Archive, name: str) -> Remote:
    """A peer of the settings. Raises NotFound."""
    peer = peer_named(archive, name)
    return Remote(archive, name, peer.ae_title or name, peer)


def identifier(**keys: str) -> Row:
    """Keywords and values as DICOM JSON; several values are separated by backslashes."""
    found: Row = {}
    for keyword, text in keys.items():
        tag = tag_of(keyword)
        assert tag is not None, keyword
        vr = public_vr(tag)
        values = text.split("\\") if text else []
        content = [{"Alphabetic": one} for one in values] if vr == "PN" else values
        found[f"{tag:08X}"] = {"vr": vr, **({"Value": content} if content else {})}
    return found


def value(row: Row, keyword: str) -> str:
    """The first value of an answer as text; "" when it has none."""
    tag = tag_of(keyword)
    assert tag is not None, keyword
    content = row.get(f"{tag:08X}", {}).get("Value") or [""]
    first = content[0]
    text = first.get("Alphabetic", "") if isinstance(first, dict) else first
    return str("" if text is None else text).replace("\0", "").strip()


def requests_for(study_uid: str, listed: Sequence[Listed], missing: Sequence[Listed]) -> Iterator[Row]:
    """The identifiers that fetch what is missing of what is listed, and little else: the study, whole series, or
    instances by their UIDs."""
    if len(missing) == len(listed):
        yield identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID=study_uid)
        return
    for series_uid in dict.fromkeys(one.series_instance_uid for one in missing):
        keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid}
        wanted = [one.sop_instance_uid for one in missing if one.series_instance_uid == series_uid]
        if len(wanted) == sum(one.series_instance_uid == series_uid for one in listed):
            yield identifier(QueryRetrieveLevel="SERIES", **keys)
            continue
        for start in range(0, len(wanted), UIDS_AT_ONCE):
            uids = "\\".join(wanted[start : start + UIDS_AT_ONCE])
            yield identifier(QueryRetrieveLevel="IMAGE", **keys, SOPInstanceUID=uids)


def _ask(
    requestor: Requestor,
    operation: Field,
    sop_class: str,
    keys: Mapping[str, Any],
    *,
    number: int = 1,
    destination: str = "",
) -> None:
    context = requestor.exchange.contexts[1]
    command = dimse.query_request(operation, number, sop_class, destination=destination)
    requestor.exchange.send(1, command, encode(keys, context.transfer_syntax))


def _response(message: Message, operation: Field) -> dimse.Command:
    command = message.command
    if command.field != operation | RESPONSE or command.status is None:
        raise ProtocolError("something else than the answer to what was asked", AbortReason.UNEXPECTED_PDU)
    return command


def _ending(command: dimse.Command) -> str:
    if command.status == Status.SUCCESS:
        return ""
    return f"the peer ended with status {command.status:04X}" + (f": {command.comment}" if command.comment else "")
