"""A lossy copy of a stored image, as the new instance that the standard asks for, if every frame passes its gate.

    outcome = derive(
        path, transfer_syntax_uid=…,             # the original as it is stored: never changed, never corrected
        gate=archive.settings.retention.gate,    # modality -> Quality | None
        series_instance_uid=…,                   # one new series for each original series: the caller maps
        policy_version=…, at=…, equipment=equipment_of(archive.settings),
        receive=lambda meta: archive.cold.receive(meta, at=…),
    )
    match outcome:
        case Kept(reason, detail, summary): …    # it stays without loss; nothing was received
        case Derived(): …                        # outcome.incoming holds the whole data set, ready to `settle`

`assess` does the same without making anything, for `minipacs retention quality`. Rules: sheet 10 §7, REQ-DCM-80…86,
PS3.3 C.7.6.1.1.5, C.12.4.1. Age, holds and audit are the caller's. Corrections are not applied here: on the way out
they apply to the copy as to its original.

One frame is in memory at a time, twice; encoded frames wait in an unnamed temporary file beyond 4 MiB.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from archive.dicom import elements, pixels
from archive.dicom.codecs import jpeg2000
from archive.dicom.derived import DerivedWriter, Facets
from archive.dicom.eligible import Facts, Reason, asked, excluded, facts_of
from archive.dicom.equipment import Equipment
from archive.dicom.file_meta import FileMeta, data_set_offset
from archive.dicom.frames import Frames, Image
from archive.dicom.quality import Figures, Summary, measure, summary
from archive.dicom.source import Source
from archive.dicom.tree import Element, parse
from archive.dicom.uids import new_uid
from archive.errors import NotAcceptable, NotFound, UnreadableInstance, Unsupported
from archive.sections import Quality

if TYPE_CHECKING:
    import numpy as np

TRANSFER_SYNTAX_UID: Final = jpeg2000.TRANSFER_SYNTAX_UID
_IN_MEMORY = 1 << 22
Gate = Callable[[str], Quality | None]


class Sink(Protocol):
    """What takes the data set: `archive.storage.incoming.Incoming`, or a buffer in `tests`."""

    def write(self, data: bytes) -> None: ...
    def discard(self) -> None: ...


S = TypeVar("S", bound=Sink)


@dataclass(frozen=True, slots=True)
class Kept:
    """The instance stays without loss, and why. `summary`: of the frames that were measured, if any."""

    reason: Reason
    detail: str = ""
    summary: Summary | None = None
    modality: str = ""

    def record(self) -> dict[str, Any]:
        """As JSON, to be kept with the instance."""
        figures = self.summary.record() if self.summary else None
        return {"kept": str(self.reason), "detail": self.detail, "figures": figures}


@dataclass(frozen=True, slots=True)
class Assessed:
    """What the codec made of an instance whose every frame passed. Bytes are those of pixels alone."""

    modality: str
    quality: Quality  # as asked, caps included
    summary: Summary
    uncompressed_bytes: int
    stored_bytes: int  # as the original holds them, compressed without loss or not
    compressed_bytes: int

    @property
    def ratio(self) -> float:
        """Uncompressed by compressed bytes (REQ-DCM-82, PS3.3 C.7.6.1.1.5.2)."""
        return self.uncompressed_bytes / self.compressed_bytes

    def record(self) -> dict[str, Any]:
        """As JSON, to be kept with the instance (REQ-DCM-86)."""
        return {
            "codec": self.quality.codec,
            "library": jpeg2000.library(),
            "asked": self.quality.model_dump(mode="json"),
            "ratio": round(self.ratio, 2),
            "uncompressed_bytes": self.uncompressed_bytes,
            "stored_bytes": self.stored_bytes,
            "compressed_bytes": self.compressed_bytes,
            "figures": self.summary.record(),
        }


@dataclass(frozen=True, slots=True)
class Derived(Generic[S]):
    """A lossy copy, whole in `incoming`, neither flushed nor named nor filed. It is for a new series."""

    incoming: S
    meta: FileMeta
    series_instance_uid: str
    original_sop_instance_uid: str
    policy_version: str
    at: datetime
    assessed: Assessed

    @property
    def sop_instance_uid(self) -> str:
        return self.meta.sop_instance_uid

    def record(self) -> dict[str, Any]:
        """`instance.derivation` as JSON (REQ-DCM-86)."""
        return {
            **self.assessed.record(),
            "original": self.original_sop_instance_uid,
            "policy_version": self.policy_version,
            "at": self.at.isoformat(),
        }


def derive(
    path: str,
    *,
    transfer_syntax_uid: str,
    gate: Gate,
    series_instance_uid: str,
    policy_version: str,
    at: datetime,
    equipment: Equipment,
    receive: Callable[[FileMeta], S],
) -> Derived[S] | Kept:
    """Make the lossy copy of a stored instance, or say why it stays as it is.

    `at` is aware; it is written by the clock of the data set, Timezone Offset From UTC (0008,0201), else of Paris.

    Raises:
        OSError: the file cannot be read.
        StorageFull, StorageFailed: as `receive` and its result raise them; what was received is discarded.
    """
    with _examined(path, transfer_syntax_uid, gate) as (work, outcome):
        if isinstance(outcome, Kept):
            return outcome
        assert work is not None  # what is assessed was worked on
        meta = FileMeta(work.facts.sop_class_uid, new_uid(), TRANSFER_SYNTAX_UID)
        facets = Facets(
            facts=work.facts,
            sop_instance_uid=meta.sop_instance_uid,
            series_instance_uid=series_instance_uid,
            ratio=outcome.ratio,
            codec_description="JPEG 2000 irreversible",
            method=jpeg2000.METHOD,
            photometric_interpretation=jpeg2000.photometric_interpretation(work.image.photometric),
            smallest=work.smallest,
            largest=work.largest,
            at=at,
            equipment=equipment,
        )
        incoming = receive(meta)
        try:
            writer = DerivedWriter(work.source, transfer_syntax_uid, facets)
            for piece in writer.pieces(work.elements, work.lengths, work.encoded()):
                incoming.write(piece)
        except (NotAcceptable, UnreadableInstance) as error:
            incoming.discard()
            return Kept(Reason.UNREADABLE, str(error), outcome.summary, work.facts.modality)
        except BaseException:
            incoming.discard()
            raise
        return Derived(
            incoming=incoming,
            meta=meta,
            series_instance_uid=series_instance_uid,
            original_sop_instance_uid=work.facts.sop_instance_uid,
            policy_version=policy_version,
            at=at,
            assessed=outcome,
        )


def assess(path: str, *, transfer_syntax_uid: str, gate: Gate) -> Assessed | Kept:
    """What `derive` would come to, without making anything. Raises OSError."""
    with _examined(path, transfer_syntax_uid, gate) as (_, outcome):
        return outcome


@dataclass(slots=True)
class _Work:
    """One original that is being encoded."""

    source: Source
    elements: list[Element]
    facts: Facts
    image: Image
    spool: IO[bytes]
    lengths: list[int] = field(default_factory=list)
    smallest: int = 1 << 16
    largest: int = -(1 << 16)

    def encoded(self) -> Iterator[bytes]:
        """The codestreams, in order."""
        self.spool.seek(0)
        for length in self.lengths:
            yield self.spool.read(length)


@contextmanager
def _examined(path: str, transfer_syntax_uid: str, gate: Gate) -> Iterator[tuple[_Work | None, Assessed | Kept]]:
    """Every frame encoded and measured, the file open meanwhile; no work where it was not begun."""
    try:
        where = data_set_offset(path)
    except UnreadableInstance as error:
        yield None, Kept(Reason.UNREADABLE, str(error))
        return
    with (
        elements.opened(path, data_set_offset=where, transfer_syntax_uid=transfer_syntax_uid) as (source, encoding),
        closing(tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)) as spool,
    ):
        work: _Work | None = None
        outcome: Assessed | Kept
        try:
            found = parse(source, encoding)
            facts = facts_of(source, found, transfer_syntax_uid)
            quality = gate(facts.modality)
            reason = excluded(facts) or (Reason.NO_GATE if quality is None else None)
            if reason or facts.image is None or quality is None:
                outcome = Kept(reason or Reason.NO_PIXELS, modality=facts.modality)
            else:
                work = _Work(source, found, facts, facts.image, spool)
                outcome = _encode(work, asked(quality, facts))
        except UnreadableInstance as error:
            outcome = Kept(Reason.UNREADABLE, str(error))
        yield work, outcome


def _encode(work: _Work, quality: Quality) -> Assessed | Kept:
    image, modality = work.image, work.facts.modality
    figures: list[Figures] = []
    try:
        frames = Frames(work.source, image, work.facts.transfer_syntax_uid)
        uncompressed = len(frames) * image.frame_bits // 8
        stored = sum(frames.length(number) for number in range(1, len(frames) + 1))
        if stored <= uncompressed / quality.ratio:
            return Kept(Reason.SMALL, f"{stored} of {uncompressed} bytes without loss", modality=modality)
        for number in range(1, len(frames) + 1):
            values = pixels.decode(frames, number).values
            if not _within(values, image):
                return Kept(Reason.BITS, f"frame {number} uses bits above those stored", modality=modality)
            figures.append(_encode_frame(work, values, quality))
            if not figures[-1].reach(quality):
                return Kept(Reason.GATE, f"frame {number}", summary(figures), modality)
    except (Unsupported, NotFound) as error:
        return Kept(Reason.CODEC, str(error), summary(figures) if figures else None, modality)
    compressed = sum(work.lengths)
    if compressed >= stored:
        return Kept(Reason.SMALL, f"{stored} bytes without loss, {compressed} with", summary(figures), modality)
    return Assessed(modality, quality, summary(figures), uncompressed, stored, compressed)


def _encode_frame(work: _Work, values: np.ndarray[Any, Any], quality: Quality) -> Figures:
    codestream = jpeg2000.encode(values, bits_stored=work.image.bits_stored, ratio=quality.ratio)
    again = jpeg2000.decode(codestream, values)
    work.spool.write(codestream)
    work.lengths.append(len(codestream))
    work.smallest = min(work.smallest, int(again.min()))
    work.largest = max(work.largest, int(again.max()))
    return measure(values, again, bits_stored=work.image.bits_stored, padding=work.facts.padding)


def _within(values: np.ndarray[Any, Any], image: Image) -> bool:
    """Whether all values are numbers of Bits Stored: the bits above may hold an overlay that a codec would drop."""
    if image.signed:
        least, most = -(1 << image.bits_stored - 1), (1 << image.bits_stored - 1) - 1
    else:
        least, most = 0, (1 << image.bits_stored) - 1
    return int(values.min()) >= least and int(values.max()) <= most
