"""Acknowledgements (HL7 2.5 2.9.2, original mode; REQ-HL7-20 to 23), and errors of the archive as conditions of HL7."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from archive import errors
from archive.errors import ArchiveError
from hl7_listener.context import Reply, Warning
from hl7_listener.encoding import UTF8, Delimiters, escape
from hl7_listener.message import MEANINGS, HL7Error, Segment

_SIGNS = Delimiters()
_UNFRAMED = {0x0B: " ", 0x1C: " "}  # what would begin or end the frame of the answer, in a field that comes back
_OLD = ("2.1", "2.2", "2.3", "2.3.1", "2.4")  # their ERR has one field
_BUG_TEXT = "internal error, see the log of the archive; the message can be sent again"


@dataclass(frozen=True, slots=True)
class Problem:
    """One ERR segment."""

    code: int  # ERR-3, table 0357
    location: str  # SEG^seq^field…, "" when it is no place in the message
    text: str  # ERR-8
    severity: str = "E"  # ERR-4, table 0516

    def __str__(self) -> str:
        """For the journal: no text."""
        return f"{self.code} {self.location}".rstrip()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is answered."""

    code: str  # MSA-1: AA, AE, AR
    problems: tuple[Problem, ...] = ()
    kind: str = ""  # MSH-9; "" is an acknowledgement of the message's event
    segments: tuple[str, ...] = ()  # of an answer to a query, behind the others

    @property
    def error(self) -> str | None:
        """The first problem, for the journal."""
        return next((str(one) for one in self.problems if one.severity == "E"), None)


# Every error of the archive, by its own name: MSA-1 and ERR-3. A new one has to be thought about here.
OF_ERROR: dict[type[ArchiveError], tuple[str, int]] = {
    errors.ArchiveError: ("AR", 207),
    errors.Rejected: ("AE", 207),
    errors.UnreadableInstance: ("AE", 207),
    errors.UidMismatch: ("AE", 102),
    errors.InvalidQuery: ("AE", 102),
    errors.AttributeRefused: ("AE", 102),
    errors.TooLarge: ("AE", 102),
    errors.Unsupported: ("AR", 200),
    errors.NotAcceptable: ("AE", 207),
    errors.NotAuthenticated: ("AE", 207),
    errors.NotAllowed: ("AE", 207),
    errors.InvalidRequest: ("AE", 102),
    errors.Conflict: ("AE", 205),
    errors.StillKept: ("AE", 207),
    errors.IdentifierInUse: ("AE", 205),
    errors.MergedAway: ("AE", 204),
    errors.InsNotQualified: ("AE", 204),
    errors.NotFound: ("AE", 204),
    errors.Gone: ("AE", 204),
    errors.RejectedBefore: ("AE", 207),
    errors.Unavailable: ("AR", 207),
    errors.StorageFull: ("AR", 207),
    errors.StorageFailed: ("AR", 207),
    errors.IndexUnavailable: ("AR", 207),
    errors.Busy: ("AR", 206),
    errors.CommitInDoubt: ("AR", 207),
}

BUG = Verdict("AR", (Problem(207, "", _BUG_TEXT),))


def accepted(warnings: Iterable[Warning]) -> Verdict:
    """The message was integrated."""
    return Verdict("AA", tuple(Problem(one.code, one.location, one.text, severity="W") for one in warnings))


def answer(reply: Reply) -> Verdict:
    """What a query found, or why it could not be answered."""
    said = [refusal(error) for error in reply.errors]
    problems = tuple(problem for one in said for problem in one.problems)
    return Verdict(said[0].code if said else "AA", problems, reply.kind, reply.segments)


def refusal(error: HL7Error | ArchiveError) -> Verdict:
    """The message was not applied."""
    if isinstance(error, HL7Error):
        return Verdict(error.ack, (Problem(error.code, error.location, error.text),))
    code, condition = next(OF_ERROR[kind] for kind in type(error).__mro__ if kind in OF_ERROR)
    return Verdict(code, (Problem(condition, "", str(error)),))


def build(msh: Segment | None, verdict: Verdict, *, at: datetime) -> bytes:
    """The ACK to a message whose MSH is `msh` (None: it has none), without framing. One ERR a problem.

    Sender and receiver are swapped; MSH-11, 12, 17 and 18 come back as they came, in the character set of the message.
    The delimiters are the usual ones: not every receiver looks for others. A warning (severity W) is told to those
    whose version of HL7 has severities. What a query found and its character set does not hold is said in UTF-8.
    """
    version = "2.5" if msh is None else msh.value(12) or ""
    codec = "ascii" if msh is None else msh.grammar.codec
    charset = same(msh, 18)
    if not _holds(codec if charset else "ascii", verdict.segments):
        codec, charset = "utf_8", UTF8
    segments = [_head(msh, at, verdict.kind, charset), _join("MSA", verdict.code, same(msh, 10))]
    if version in _OLD:
        segments += [_old_err(one) for one in verdict.problems if one.severity == "E"]
    else:
        segments += [_err(one) for one in verdict.problems]
    segments += verdict.segments
    return "".join(f"{segment.translate(_UNFRAMED)}\r" for segment in segments).encode(codec, "replace")


def repeat(msh: Segment | None, ack: bytes, *, at: datetime) -> bytes:
    """An answer that was given before, under a head of its own."""
    before, _, rest = ack.partition(b"\r")
    fields = before.decode("latin-1").split(_SIGNS.field)
    charset = fields[17] if len(fields) > 17 else ""
    return _head(msh, at, fields[8], charset).translate(_UNFRAMED).encode("latin-1", "replace") + b"\r" + rest


def _holds(codec: str, segments: tuple[str, ...]) -> bool:
    """Whether a character set has every letter of these."""
    try:
        "".join(segments).encode(codec)
    except UnicodeEncodeError:
        return False
    return True


def _head(msh: Segment | None, at: datetime, kind: str, charset: str) -> str:
    event = "" if msh is None else msh.value(9, 2) or ""
    kind = kind or _SIGNS.component.join(("ACK", escape(event, _SIGNS), "ACK")) if event else "ACK"
    fields = {
        3: same(msh, 5),
        4: same(msh, 6),
        5: same(msh, 3),
        6: same(msh, 4),
        7: f"{at:%Y%m%d%H%M%S%z}",
        9: kind,
        10: uuid.uuid4().hex[:20],  # the longest that every version allows
        11: same(msh, 11) or "P",
        12: same(msh, 12) or "2.5",
        17: same(msh, 17),
        18: charset,
    }
    return _join("MSH", str(_SIGNS), *(fields.get(n, "") for n in range(3, 19)))


def _err(problem: Problem) -> str:
    """HL7 2.5 2.15.5."""
    code = _SIGNS.component.join((str(problem.code), MEANINGS[problem.code][1], "HL70357"))
    place = problem.location
    return _join("ERR", "", place, code, problem.severity, "", "", "", escape(problem.text, _SIGNS))


def _old_err(problem: Problem) -> str:
    """HL7 2.4 2.16.5: segment, sequence, field, and code with its subcomponents."""
    place = [*problem.location.split("^"), "", "", ""][:3]
    code = _SIGNS.sub.join((str(problem.code), MEANINGS[problem.code][1], "HL70357"))
    return _join("ERR", _SIGNS.component.join((*place, code)))


def same(msh: Segment | None, n: int) -> str:
    """A field of a segment of the message, its MSH as a rule, as it stands there; said with the usual delimiters where
    the message has others."""
    if msh is None or n > len(msh.raw_fields):
        return ""
    if msh.grammar.delimiters == _SIGNS:
        return msh.raw_fields[n - 1]
    return _SIGNS.repetition.join(
        _SIGNS.component.join(
            _SIGNS.sub.join(escape(value or "", _SIGNS) for value in component) for component in one.components
        )
        for one in msh.field(n)
    )


def _join(*fields: str) -> str:
    return _SIGNS.field.join(fields).rstrip(_SIGNS.field)
