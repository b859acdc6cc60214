"""Who talks to the archive during a soak: modalities, workstations, and peers that are wrong, slow or hostile."""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any

from pydicom.filereader import read_dataset

from dicom_scp import dimse, pdu
from dicom_scp.associate import Role, encode_request
from dicom_scp.dimse import Field
from dicom_scp.messages import Answer
from tests.builders import ct_slice, data_set, new_uid
from tests.dicom_scp import wire
from tests.dicom_scp.retrieving import Getter, cancel, identifier, retrieve_command
from tests.dicom_scp.wire import CT, STUDY_FIND, STUDY_GET, STUDY_MOVE

PIECE = 1 << 17  # bytes of a PDU that is written
_USER = replace(wire.REQUEST.user, max_pdu=PIECE, roles={CT: Role(scu=False, scp=True)})
_REQUEST = wire.request(user=_USER)
_PER_STUDY = 200


class Failed(AssertionError):
    """The archive did something that it must not do."""


@dataclass
class Port:
    """Where the archive listens; what `wire.Peer` asks of a server."""

    port: int

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock


@dataclass
class Ledger:
    """What the archive has promised, and what was done to it. Shared by all threads."""

    port: Port
    stopping: threading.Event = field(default_factory=threading.Event)
    kept: dict[str, tuple[str, str]] = field(default_factory=dict)  # acknowledged: SOP Instance UID to study, digest
    counts: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] = self.counts.get(what, 0) + number

    def keep(self, uid: str, study: str, digest: str) -> None:
        with self._lock:
            self.kept[uid] = (study, digest)

    def one(self, dice: random.Random) -> tuple[str, str] | None:
        """Some acknowledged instance: its UID and digest."""
        with self._lock:
            if not self.kept:
                return None
            uid = dice.choice(list(self.kept)[-500:])
            return uid, self.kept[uid][1]

    def per_study(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for study, _ in self.kept.values():
            found[study] = found.get(study, 0) + 1
        return found


class Caller(Getter):
    """An association that is counted and released."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger.port)  # type: ignore[arg-type]
        self._ledger = ledger
        ledger.count("associations")

    def release(self) -> None:
        self.say(pdu.RELEASE_RQ)
        if self.hear()[0] != 6:
            raise Failed("no answer to A-RELEASE-RQ")

    def store(self, uid: str, data: bytes) -> int:
        self.say(wire.command(3, dimse.store_request(1, CT, uid)))
        for start in range(0, len(data), 16_000):
            last = wire.LAST if start + 16_000 >= len(data) else 0
            self.say(wire.p_data(wire.pdv(3, last, data[start : start + 16_000])))
        status = self.message()[1].status
        return -1 if status is None else status


def endless(ledger: Ledger, seed: int, act: Callable[[Ledger, random.Random], None]) -> None:
    """Do the same again and again; what is wrong is noted and ends this thread."""
    dice = random.Random(seed)
    while not ledger.stopping.is_set():
        try:
            act(ledger, dice)
        except Exception as error:
            ledger.wrong.append(f"{act.__name__}: {type(error).__name__}: {error}")
            return


# --- honest peers


def modality(ledger: Ledger, dice: random.Random) -> None:
    """Store some images, some of them twice, now and then other content under a UID that is taken."""
    study = new_uid("soak", str(len(ledger.kept) // _PER_STUDY))
    with Caller(ledger) as peer:
        peer.associate(_REQUEST)
        for number in range(dice.randint(1, 12)):
            ds = ct_slice(
                number=number, rows=dice.choice((16, 64, 256)), columns=64, PatientID="SOAK", StudyInstanceUID=study,
                SeriesInstanceUID=new_uid(study),
            )  # fmt: skip
            uid, data = str(ds.SOPInstanceUID), data_set(ds)
            if (status := peer.store(uid, data)) != 0:
                raise Failed(f"C-STORE answered {status:04X}")
            ledger.keep(uid, study, hashlib.sha256(data).hexdigest())
            ledger.count("stored")
            if dice.random() < 0.1 and peer.store(uid, data) != 0:
                raise Failed("the identical instance was refused")
            if dice.random() < 0.02 and peer.store(uid, data[:-2] + b"\x55\x55") != 0xC0D1:
                raise Failed("other content was taken")
        peer.release()


def finder(ledger: Ledger, dice: random.Random) -> None:
    """Ask for studies or images; cancel some queries."""
    study = new_uid("soak", str(dice.randint(0, len(ledger.kept) // _PER_STUDY)))
    keys: dict[str, Any] = {"QueryRetrieveLevel": "STUDY", "PatientID": "SOAK", "NumberOfStudyRelatedInstances": ""}
    if dice.random() < 0.5:
        keys = {"QueryRetrieveLevel": "IMAGE", "StudyInstanceUID": study, "SOPInstanceUID": ""}
    stop = wire.command(5, cancel()) if dice.random() < 0.3 else b""
    with Caller(ledger) as peer:
        peer.associate(_REQUEST)
        peer.say(wire.command(5, retrieve_command(Field.C_FIND_RQ, STUDY_FIND)))
        peer.say(wire.data_set(5, identifier(implicit=True, **keys)) + stop)
        status = 0xFF00
        while status in (0xFF00, 0xFF01):
            status = peer.message()[1].status or 0
        if status not in (0, 0xFE00):
            raise Failed(f"C-FIND answered {status:04X}")
        ledger.count("queries")
        peer.release()


def getter(ledger: Ledger, dice: random.Random) -> None:
    """Get one instance back and compare it with what was sent."""
    chosen = ledger.one(dice)
    if chosen is None:
        time.sleep(0.1)
        return
    uid, digest = chosen
    with Caller(ledger) as peer:
        peer.associate(_REQUEST)
        peer.say(wire.command(7, retrieve_command(Field.C_GET_RQ, STUDY_GET)))
        peer.say(wire.data_set(7, identifier(QueryRetrieveLevel="IMAGE", SOPInstanceUID=uid)))
        came, responses = peer.collect()
        if {one: hashlib.sha256(data).hexdigest() for one, data in came.items()} != {uid: digest}:
            raise Failed(f"C-GET did not bring back what was stored: {responses[-1].Status:04X}")
        ledger.count("got")
        peer.release()


def mover(ledger: Ledger, dice: random.Random) -> None:
    """Have one instance sent to the destination."""
    chosen = ledger.one(dice)
    time.sleep(0.1)
    if chosen is None:
        return
    with Caller(ledger) as peer:
        peer.associate(_REQUEST)
        peer.say(wire.command(9, retrieve_command(Field.C_MOVE_RQ, STUDY_MOVE, "DEST")))
        peer.say(wire.data_set(9, identifier(QueryRetrieveLevel="IMAGE", SOPInstanceUID=chosen[0])))
        _, responses = peer.collect()
        if responses[-1].Status != 0:
            raise Failed(f"C-MOVE answered {responses[-1].Status:04X}")
        ledger.count("moved")
        peer.release()


# --- the others: whatever they are told, nobody else may notice


def hostile(ledger: Ledger, dice: random.Random) -> None:
    """One misdeed; then the connection goes, as it likes."""
    misdeed = dice.choice((_noise, _fuzzed_request, _absurd_length, _fuzzed_message, _cut_off, _half_query))
    with suppress(OSError, AssertionError, struct.error), Caller(ledger) as peer:
        peer.sock.settimeout(5)
        misdeed(peer, dice)
        if dice.random() < 0.5:  # some wait for the answer, some do not
            peer.hear()
    ledger.count("misdeeds")


def slow(ledger: Ledger, _dice: random.Random) -> None:
    """A byte now and then, until the archive has had enough."""
    whole = encode_request(_REQUEST)
    with suppress(OSError), Caller(ledger) as peer:
        peer.sock.settimeout(0.2)
        for byte in whole:
            if ledger.stopping.is_set():
                return
            peer.say(bytes((byte,)))
            with suppress(TimeoutError):
                if not peer.sock.recv(64):
                    break
    ledger.count("slow")


def _noise(peer: Caller, dice: random.Random) -> None:
    peer.say(dice.randbytes(dice.randint(1, 5000)))


def _fuzzed(whole: bytes, dice: random.Random) -> bytes:
    changed = bytearray(whole)
    for _ in range(dice.randint(1, 8)):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def _fuzzed_request(peer: Caller, dice: random.Random) -> None:
    whole = encode_request(_REQUEST)
    peer.say(whole[:6] + _fuzzed(whole[6:], dice) if dice.random() < 0.7 else _fuzzed(whole, dice))


def _absurd_length(peer: Caller, dice: random.Random) -> None:
    if dice.random() < 0.5:
        peer.associate(_REQUEST)
    peer.say(
        struct.pack(">BxI", dice.choice((1, 2, 4, 5, 7)), dice.choice((0x7FFFFFFF, 0xFFFFFFFF, 1 << 24))) + b"x" * 64
    )


def _message(dice: random.Random) -> bytes:
    ds = ct_slice(rows=16, columns=16)
    ds.PatientID = "HOSTILE"
    head = wire.command(3, dimse.store_request(1, CT, str(ds.SOPInstanceUID)))
    return head + wire.data_set(3, data_set(ds))


def _fuzzed_message(peer: Caller, dice: random.Random) -> None:
    """In the PDUs of a C-STORE, not in its data set: nothing of it may be taken for an instance that was sent."""
    peer.associate(_REQUEST)
    whole = _message(dice)
    peer.say(_fuzzed(whole[:160], dice) + whole[160:-200])


def _cut_off(peer: Caller, dice: random.Random) -> None:
    peer.associate(_REQUEST)
    whole = _message(dice)
    peer.say(whole[: dice.randrange(len(whole) - 1)])
    if dice.random() < 0.3:
        peer.say(pdu.USER_ABORT)


def _half_query(peer: Caller, dice: random.Random) -> None:
    """Ask for much and hang up."""
    peer.associate(_REQUEST)
    keys = identifier(QueryRetrieveLevel="STUDY", StudyInstanceUID=new_uid("soak", "0"))
    peer.say(wire.command(7, retrieve_command(Field.C_GET_RQ, STUDY_GET)) + wire.data_set(7, keys))
    if dice.random() < 0.5:
        peer.hear()


# --- one large object


def large(mebibytes: int) -> tuple[str, str, bytes, bytes]:
    """A multi-frame image of this size: SOP Instance and study UID, its bytes before the pixels, and one frame."""
    frame = random.Random(1).randbytes(1 << 20)
    study = new_uid("large", str(time.monotonic_ns()))
    ds = ct_slice(
        rows=512, columns=1024, NumberOfFrames=mebibytes, PatientID="LARGE", StudyInstanceUID=study,
        SeriesInstanceUID=new_uid(study), PixelData=b"\0\0",
    )  # fmt: skip
    head = data_set(ds)[:-6] + struct.pack("<I", mebibytes << 20)
    return str(ds.SOPInstanceUID), study, head, frame


def large_object(ledger: Ledger, mebibytes: int) -> None:
    """Store it, get it back, have it moved; compared by digest, never held whole."""
    uid, study, head, frame = large(mebibytes)
    digest = hashlib.sha256(head)
    for _ in range(mebibytes):
        digest.update(frame)
    with Caller(ledger) as peer:
        peer.sock.settimeout(300)
        peer.associate(_REQUEST)
        peer.say(wire.command(3, dimse.store_request(1, CT, uid)))
        peer.say(wire.p_data(wire.pdv(3, 0, head)))
        size = PIECE - 64
        for number in range(mebibytes):
            for start in range(0, len(frame), size):
                last = wire.LAST if number == mebibytes - 1 and start + size >= len(frame) else 0
                peer.say(wire.p_data(wire.pdv(3, last, frame[start : start + size])))
        if (status := peer.message()[1].status) != 0:
            raise Failed(f"C-STORE of the large object answered {status}")
        ledger.keep(uid, study, digest.hexdigest())
        peer.release()
    keys = identifier(QueryRetrieveLevel="IMAGE", SOPInstanceUID=uid)
    with Caller(ledger) as peer:
        peer.sock.settimeout(300)
        peer.associate(_REQUEST)
        peer.say(wire.command(7, retrieve_command(Field.C_GET_RQ, STUDY_GET)) + wire.data_set(7, keys))
        came = hashlib.sha256()
        for piece in _data_set_of(peer):
            came.update(piece)
        if came.hexdigest() != digest.hexdigest():
            raise Failed("the large object did not come back as it was stored")
        peer.say(wire.command(3, _stored(uid)))
        while (peer.message()[1].status or 0) == 0xFF00:
            pass
        peer.release()
    with Caller(ledger) as peer:
        peer.sock.settimeout(300)
        peer.associate(_REQUEST)
        peer.say(wire.command(9, retrieve_command(Field.C_MOVE_RQ, STUDY_MOVE, "SINK")) + wire.data_set(9, keys))
        _, responses = peer.collect()
        if responses[-1].Status != 0:
            raise Failed(f"C-MOVE of the large object answered {responses[-1].Status:04X}")
        peer.release()
    ledger.count("large objects")


def _stored(uid: str) -> bytes:
    return dimse.response(dimse.decode(dimse.store_request(1, CT, uid)), Answer(0))


def _data_set_of(peer: Caller) -> Iterator[bytes]:
    """The data set of the first C-STORE-RQ that is heard, piece by piece."""
    in_store = False
    while True:
        kind, body = peer.hear()
        if kind != 4:
            raise Failed(f"a PDU of type {kind} in the middle of a C-GET")
        while body:
            length, _, control = struct.unpack_from(">IBB", body)
            piece, body = body[6 : 4 + length], body[4 + length :]
            if control & 1:
                in_store = read_dataset(BytesIO(piece), True, True).CommandField == int(Field.C_STORE_RQ)
            elif in_store:
                yield piece
                if control & 2:
                    return
