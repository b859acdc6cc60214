"""What the conformance statement says of storing, finding and retrieving; and what a part of it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.uid import UID

from archive import errors
from archive.dicom.attributes import ATTRIBUTES, LEVELS, Level
from archive.index.computed import COMPUTED
from archive.index.query import matchable
from archive.sections import Dicom
from dicom_scp import status
from dicom_scp.classes import COMPOSITE, NAMES
from dicom_scp.status import Status

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the statement: paragraphs, then a table (`columns` () for none). `depth` 2 is a chapter."""

    title: str
    depth: int = 2
    text: tuple[str, ...] = ()
    columns: Row = ()
    rows: tuple[Row, ...] = ()


def name_of(uid: str) -> str:
    """The name that PS3.6 gives a UID, also where pydicom does not know it yet."""
    known = UID(uid).name
    return NAMES.get(uid, uid) if known == uid else known


def yes(value: bool) -> str:
    return "yes" if value else "no"


def markdown(parts: list[Part]) -> str:
    """The statement as a page, below its own head."""
    lines: list[str] = []
    for part in parts:
        lines += [f"{'#' * part.depth} {part.title}", ""]
        for paragraph in part.text:
            lines += [paragraph, ""]
        if part.columns:
            lines.append(f"| {' | '.join(part.columns)} |")
            lines.append("|" + "---|" * len(part.columns))
            lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in part.rows]
            lines.append("")
    return "\n".join(lines)


def storage(dicom: Dicom) -> Iterator[Part]:
    yield Part(
        "Storage SCP",
        text=(
            "Level 2 (Full): every attribute, private ones included, is kept, bit for bit; nothing is discarded. "
            "Signatures: Level 3. Success is answered when the data set is flushed to disk and committed to the index.",
            "Corrections (patient, order) are put over what leaves, with an item of Original Attributes Sequence, and "
            "never over what is stored. STOW-RS does not coerce what is stored either: PS3.18 10.5.2 wants Original "
            "Attributes in the stored object when an origin server coerces; here they are in what leaves "
            "(REQ-DCM-70, REQ-DCM-99).",
            "The same data set again: success, nothing new. Other content under a known SOP Instance UID: "
            f"`{dicom.uid_conflict}`, kept aside.",
        ),
    )
    outcomes = {
        (f"{answer.status:04X}", outcome.value, tags(answer.offending)) for outcome, answer in status.OF_OUTCOME.items()
    }
    refused = {
        (f"{code:04X}", _first_words(kind), "the UID" if kind is errors.UidMismatch else "")
        for kind, code in status.OF_ERROR.items()
        if kind not in _NOT_OF_STORING
    }
    yield Part(
        "Statuses of C-STORE",
        3,
        text=("With Error Comment (0000,0902), and Offending Element (0000,0901) where it is known.",),
        columns=("status", "when", "offending element"),
        rows=(
            *sorted(outcomes),
            *sorted(refused),
            (f"{Status.UNRECOGNISED_OPERATION:04X}", "not an operation of the presentation context", ""),
            (f"{Status.MISTYPED_ARGUMENT:04X}", "a data set is missing, or too much", "(0000,0800)"),
            (f"{Status.BUG:04X}", "an error of the archive itself", ""),
        ),
    )


_NOT_OF_STORING = {  # branches, and errors of queries, retrieves and administration
    errors.ArchiveError, errors.Rejected, errors.Unavailable, errors.InvalidQuery, errors.TooLarge,
    errors.NotAcceptable, errors.NotAuthenticated, errors.InvalidRequest, errors.NotFound, errors.Conflict,
    errors.IdentifierInUse, errors.MergedAway,
}  # fmt: skip


def _first_words(kind: type[errors.ArchiveError]) -> str:
    first = (kind.__doc__ or "").split("\n")[0].split(" (")[0]
    return first.split(";")[0].rstrip(".")


def tags(tags: tuple[int, ...]) -> str:
    return ", ".join(f"({tag >> 16:04X},{tag & 0xFFFF:04X})" for tag in tags)


_MATCHING = (
    ("single value", "letter by letter, except person names; numbers and times by their value (`2230` is `223000`)"),
    ("list of UID", "UI, any level"),
    ("universal", "an empty key, or `*` in any VR, UI too"),
    ("wildcard", "`*` and `?` in AE, CS, LO, LT, PN, SH, ST, UC, UR, UT"),
    ("range", "DA, TM, DT; a range of times does not cross midnight; DT with an offset is compared in UTC"),
    ("combined date-time", "study, and performed procedure step, when it was negotiated"),
    ("sequence", "one item in the key; one of the items held has to meet all of it"),
    ("empty value", '`""`, when it was negotiated'),
    (
        "multiple values",
        "values joined by `\\`, when it was negotiated: each has to be there (PS3.4 C.2.2.2.8: AND), in any order and "
        "beside others; AE, AS, AT, CS, LO, PN, SH, UC of a VM greater than 1, wildcards too. Otherwise, of Modalities "
        "in Study: any of them",
    ),
    (
        "person names",
        "without regard to case, accents and ligatures (É is E, œ is oe, ç is c), `'` and `’` alike, hyphen and space "
        "alike; on each component group; the whole name without a wildcard, trailing empty components ignored",
    ),
    (
        "Patient ID",
        "with its issuer, where that is asked; an identifier that was merged away, or the INS in Other Patient IDs "
        "Sequence, finds the surviving patient",
    ),
)
_UNIQUE = {"PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"}


def queries(dicom: Dicom) -> Iterator[Part]:
    hierarchy = (
        "Each unique key above the level is required, one value (`dicom.strict_hierarchy`)."
        if dicom.strict_hierarchy
        else "The unique keys above the level are required, but Series Instance UID may be missing or `*`."
    )
    yield Part(
        "Query SCP",
        text=(
            f"Patient Root and Study Root, also relational when that was negotiated. {hierarchy} Answers have "
            "Query/Retrieve Level, Retrieve AE Title, Instance Availability (ONLINE hot tier, NEARLINE cold tier, "
            "UNAVAILABLE replaced or without a good copy; the worst of what is below), Specific Character Set, and "
            "Timezone Offset From UTC where the images have it. A key that is not supported is left out, and the "
            f"status is FF01. After {dicom.find_limit} matches: A700.",
            "At a level, the keys of the levels above can be asked too. Counts and availability are of current "
            "instances: rejected ones and replaced originals do not count.",
        ),
        columns=("matching", "how"),
        rows=_MATCHING,
    )
    for level in LEVELS:
        yield Part(
            f"Keys of level {level.value}",
            3,
            text=("U unique, R required, O optional key.",) if level is Level.PATIENT else (),
            columns=("attribute", "tag", "VR", "type", "matched"),
            rows=tuple(sorted(_keys(level), key=lambda row: row[1])),
        )
    yield Part(
        "Statuses of C-FIND",
        3,
        columns=("status", "when"),
        rows=(
            ("FF00, FF01", "a match; FF01: some keys were left out"),
            ("0000", "the end"),
            ("FE00", "cancelled"),
            ("A700", "too many matches, or the index is away"),
            ("A900", "the identifier breaks the rules of its model; Offending Element"),
            ("C001", "the identifier cannot be read"),
            ("0122 · 0124", "another SOP class than that of the context · not allowed"),
        ),
    )


def _keys(level: Level) -> Iterator[Row]:
    matched = matchable(level)
    for one in ATTRIBUTES:
        if one.level is level:
            kind = "U" if one.keyword in _UNIQUE else "R" if one.required else "O"
            yield one.keyword, tags((one.tag,)), one.vr, kind, yes(one.tag in matched)
    for other in COMPUTED:
        if other.level is level or (other.level is None and level is Level.IMAGE):
            yield other.keyword, tags((other.tag,)), other.vr, "O", yes(other.tag in matched)


def retrieves(dicom: Dicom) -> Iterator[Part]:
    destinations = sorted(title for title, peer in dicom.callers().items() if peer.host and peer.port)
    roots = ", ".join(name_of(uid) for uid in sorted(COMPOSITE))
    yield Part(
        "Retrieve SCP",
        text=(
            "C-MOVE and C-GET by lists of UIDs at STUDY, SERIES and IMAGE, by one Patient ID at PATIENT; unique keys "
            f"above the level may be left out. By SOP Instance UID alone: {roots}; the last leaves out pixels, "
            "overlays, waveforms, spectra and documents. Frames are not extracted: level FRAME is refused with A900.",
            "Sub-operations of C-MOVE carry the AE title and Message ID of who asked. Failed instances are listed in "
            "(0008,0058), in explicit VR the first 1 008. Counts stop at 65 535.",
            "Move destinations: " + (", ".join(destinations) or "those of `dicom.peers` with an address") + ".",
        ),
        columns=("status", "when"),
        rows=(
            ("FF00", "pending, with the first sub-operation, then twice a second"),
            ("0000", "all sent, or nothing matches"),
            ("B000", "some failed, or were answered with a warning"),
            ("A702", "all failed; the destination cannot be reached"),
            ("A801", "C-MOVE alone: not a known destination"),
            ("A701", "the index is away: matches cannot be counted"),
            ("A900 · C001", "the identifier breaks the rules of its model · cannot be read"),
            ("0122 · 0124", "another SOP class than that of the context · not allowed"),
            ("FE00", "cancelled, with what remained"),
        ),
    )
