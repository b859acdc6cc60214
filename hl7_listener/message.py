"""An HL7 v2 message as a typed view that cannot change: bytes in, segments, fields, components out.

hl7apy reads each message too, and what it cannot read is refused; it says which fields hold formatted text. The values
themselves are cut here, by the delimiters alone: hl7apy cuts anew a field with more components than its tables know,
forgets positions beyond them, and does not undo escapes (docs/decisions/0009-how-hl7apy-is-used.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import structlog

from hl7_listener.encoding import Delimiters, UndecodableBytes, UnknownCharset, decode, unescape

log = structlog.get_logger(__name__)


class _Null(str):
    """Two double quotes, told from a text that holds the same by its identity alone."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NULL"


NULL: Final[str] = _Null('""')
"""The value of a field or component that holds two double quotes: what was known is to be deleted (REQ-HL7-13).
Compare with `is`."""

VERSIONS = ("2.3", "2.3.1", "2.4", "2.5", "2.5.1", "2.6")

Ack = Literal["AE", "AR"]
MEANINGS: dict[int, tuple[Ack, str]] = {  # ERR-3 (table 0357): MSA-1 and the table's text; sheet 20 §3
    100: ("AE", "Segment sequence error"),
    101: ("AE", "Required field missing"),
    102: ("AE", "Data type error"),
    103: ("AE", "Table value not found"),
    200: ("AR", "Unsupported message type"),
    201: ("AR", "Unsupported event code"),
    202: ("AR", "Unsupported processing id"),
    203: ("AR", "Unsupported version id"),
    204: ("AE", "Unknown key identifier"),
    205: ("AE", "Duplicate key identifier"),
    206: ("AR", "Application record locked"),
    207: ("AR", "Application internal error"),
}


class HL7Error(Exception):
    """Why a message is not applied: a condition of sheet 20 §3.

    `location` is `SEG^seq^field[^rep[^comp[^sub]]]` (ERR-2), "" when it is no place in the message. `text` is for a
    person at the sender's (ERR-8) and repeats no value of the message.
    """

    def __init__(self, code: int, location: str = "", text: str = "") -> None:
        self.code = code
        self.location = location
        self.text = text or MEANINGS[code][1]
        super().__init__(f"{code} {location}".rstrip())

    @property
    def ack(self) -> Ack:
        """MSA-1 that goes with the code."""
        return MEANINGS[self.code][0]


@dataclass(frozen=True, slots=True)
class Repetition:
    """One repetition of a field. Absent and empty are both None; `""` is NULL."""

    components: tuple[tuple[str | None, ...], ...]  # each with its subcomponents

    def component(self, n: int, sub: int = 1) -> str | None:
        """Subcomponent `sub` of component `n`, both from 1: None when absent or empty; may be NULL."""
        if not 1 <= n <= len(self.components):
            return None
        subs = self.components[n - 1]
        return subs[sub - 1] if 1 <= sub <= len(subs) else None


@dataclass(frozen=True, slots=True)
class _Grammar:
    """How the values of a message are cut and read."""

    delimiters: Delimiters
    codec: str


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment; `seq` counts those of its name from 1."""

    name: str
    seq: int
    raw_fields: tuple[str, ...]  # of MSH, the first is MSH-1; nothing is lost here (REQ-HL7-14, REQ-HL7-15)
    formatted: frozenset[int]  # numbers of fields of data type FT or TX
    grammar: _Grammar

    def field(self, n: int) -> tuple[Repetition, ...]:
        """The repetitions of field `n`, from 1; empty when it is absent. Empty repetitions keep their place."""
        text = self._raw(n)
        if not text:
            return ()
        if self.name == "MSH" and n <= 2:
            return (Repetition(((text,),)),)
        signs = self.grammar.delimiters
        formatted = n in self.formatted
        return tuple(
            Repetition(
                tuple(
                    tuple(self._value(sub, formatted) for sub in _split(component, signs.sub))
                    for component in _split(repetition, signs.component)
                )
            )
            for repetition in _split(text, signs.repetition)
        )

    def value(self, n: int, component: int = 1, sub: int = 1) -> str | None:
        """Of the first repetition of field `n`: None when absent or empty; may be NULL."""
        found = self.field(n)
        return found[0].component(component, sub) if found else None

    def is_null(self, n: int) -> bool:
        """Whether the whole field is `""`."""
        return self._raw(n) == NULL

    def at(self, n: int, *more: int) -> str:
        """The place of a field for ERR-2; `more` are repetition, component and subcomponent."""
        return "^".join([self.name, *map(str, (self.seq, n, *more))])

    def _raw(self, n: int) -> str:
        return self.raw_fields[n - 1] if 1 <= n <= len(self.raw_fields) else ""

    def _value(self, text: str, formatted: bool) -> str | None:
        if not text:
            return None
        if text == NULL:
            return NULL
        return unescape(text, self.grammar.delimiters, codec=self.grammar.codec, formatted=formatted)


def _split(text: str, sign: str) -> list[str]:
    return text.split(sign) if sign else [text]


@dataclass(frozen=True)
class Message:
    """A message that could be read. Segments stand in the order in which they came, unknown ones too."""

    raw: bytes
    segments: tuple[Segment, ...]
    delimiters: Delimiters
    codec: str  # Python's, with which it was read

    def all(self, name: str) -> tuple[Segment, ...]:
        """Every segment of a name."""
        return tuple(one for one in self.segments if one.name == name)

    def first(self, name: str) -> Segment | None:
        """The first segment of a name."""
        return next((one for one in self.segments if one.name == name), None)

    @property
    def msh(self) -> Segment:
        """A message begins with it."""
        return self.segments[0]

    @property
    def type(self) -> str:
        """MSH-9.1, as `ADT`."""
        return self.msh.value(9) or ""

    @property
    def event(self) -> str:
        """MSH-9.2, as `A28`."""
        return self.msh.value(9, 2) or ""

    @property
    def structure(self) -> str:
        """MSH-9.3, as `ADT_A05`; "" when it is not said."""
        return self.msh.value(9, 3) or ""

    @property
    def control_id(self) -> str:
        """MSH-10."""
        return self.msh.value(10) or ""

    @cached_property
    def sender(self) -> str:
        """`MSH-3|MSH-4`, their namespaces."""
        return f"{self.msh.value(3) or ''}|{self.msh.value(4) or ''}"

    @property
    def version(self) -> str:
        """MSH-12.1, as `2.5`."""
        return self.msh.value(12) or ""

    @property
    def charset(self) -> str:
        """MSH-18, its first repetition; "" when it is not said."""
        return self.msh.value(18) or ""


_NAME = re.compile(r"[A-Z][A-Z0-9]{2}")
_SHOWN_TO_HL7APY = 1 << 16  # characters of a line; documents in Base64 are not


def head(raw: bytes) -> Segment | None:
    """What the MSH of a message says, read as far as that is possible; None when there is no MSH at all.

    For answers to messages that cannot be read further. Never raises.
    """
    line = re.split(rb"[\r\n]", raw.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n "), maxsplit=1)[0]
    text = line.decode("latin-1")
    delimiters = Delimiters.of(text)
    if delimiters is None:
        return None
    declared = _msh(text, delimiters, "latin_1").value(18) or ""
    try:
        text, codec = decode(line, declared, default="8859/1")
    except (UnknownCharset, UndecodableBytes):
        codec = "latin_1"
    return _msh(text, delimiters, codec)


def _msh(text: str, delimiters: Delimiters, codec: str) -> Segment:
    fields = (delimiters.field, *text[4:].split(delimiters.field))
    return Segment("MSH", 1, fields, frozenset(), _Grammar(delimiters, codec))


def parse(raw: bytes, *, default_charset: str) -> Message:
    """Read a message. Whether this archive takes its type, version and content is not asked here.

    Raises:
        HL7Error: 100 it does not begin with MSH or cannot be read; 102, 103 its character set; 203 its version.
    """
    msh = head(raw)
    if msh is None:
        raise HL7Error(100, "MSH^1", "the message does not begin with a readable MSH segment")
    if (msh.value(12) or "") not in VERSIONS:
        raise HL7Error(203, "MSH^1^12", f"versions that are understood: {', '.join(VERSIONS)}")
    declared = msh.value(18) or ""
    try:
        text, codec = decode(raw, declared, default=default_charset)
    except UnknownCharset:
        raise HL7Error(103, "MSH^1^18", "this character set is not supported") from None
    except UndecodableBytes:
        raise HL7Error(102, "MSH^1^18", "the bytes are not text of the declared character set") from None
    if not declared and codec == "utf_8" and not raw.isascii():
        log.info("MSH-18 is empty and the bytes are UTF-8: read as such", sender=msh.value(3))
    delimiters = msh.grammar.delimiters
    grammar = _Grammar(delimiters, codec)
    lines = list(_lines(text))
    formatted = _formatted_fields(lines, delimiters, msh.value(12) or "")
    segments: list[Segment] = []
    seen: dict[str, int] = {}
    for line, texts in zip(lines, formatted, strict=True):
        name, _, rest = line.partition(delimiters.field)
        seen[name] = seen.get(name, 0) + 1
        fields = tuple(rest.split(delimiters.field))
        if name == "MSH":
            fields = (delimiters.field, *fields)
        elif name == "OBX" and len(fields) > 1 and fields[1] in ("FT", "TX"):
            texts |= {5}
        segments.append(Segment(name, seen[name], fields, texts, grammar))
    return Message(raw, tuple(segments), delimiters, codec)


def _lines(text: str) -> Iterator[str]:
    """The segments: ended by CR, or CR LF, or LF in a message without any CR (REQ-HL7-01). Blank lines say nothing."""
    for line in text.split("\r" if "\r" in text else "\n"):
        if line.strip():
            yield line.strip("\n")


def _formatted_fields(lines: list[str], delimiters: Delimiters, version: str) -> list[frozenset[int]]:
    """For each line, the numbers of its fields of type FT or TX, as hl7apy's tables of that version have them.

    Raises:
        HL7Error: 100, hl7apy cannot read the message, or reads another number of segments.
    """
    from hl7apy.consts import VALIDATION_LEVEL
    from hl7apy.exceptions import HL7apyException
    from hl7apy.parser import parse_message

    shown = [number for number, line in enumerate(lines) if _NAME.fullmatch(line[:3])]
    free = iter("\x01\x02\x03\x04\x05\x06")  # hl7apy wants all four: signs that do not occur stand for the missing
    signs = "".join(sign or next(free) for sign in _four(delimiters))
    texts = [_bounded(lines[number], delimiters.field) for number in shown]
    texts[0] = f"MSH{delimiters.field}{signs}{texts[0][4 + len(texts[0][4:].partition(delimiters.field)[0]) :]}"
    try:
        parsed = parse_message("\r".join(texts), validation_level=VALIDATION_LEVEL.TOLERANT, find_groups=False)
        found = list(parsed.children)
    except (HL7apyException, ValueError, KeyError, IndexError, AttributeError, TypeError, RecursionError) as error:
        log.warning("hl7apy cannot read a message", error=type(error).__name__)
        raise HL7Error(100, "MSH^1", "the message cannot be parsed") from error
    if [one.name for one in found] != [text[:3] for text in texts]:
        raise HL7Error(100, "MSH^1", "the message cannot be parsed whole")
    result: list[frozenset[int]] = [frozenset()] * len(lines)
    for number, segment in zip(shown, found, strict=True):
        result[number] = frozenset(
            int(field.name.rpartition("_")[2])
            for field in segment.children
            if field.name and field.datatype in ("FT", "TX")
        )
    return result


def _four(delimiters: Delimiters) -> tuple[str, str, str, str]:
    return delimiters.component, delimiters.repetition, delimiters.escape, delimiters.sub


def _bounded(line: str, sign: str) -> str:
    """A line for hl7apy: fields that are too long for it to be worth it are left empty."""
    if len(line) <= _SHOWN_TO_HL7APY:
        return line
    return sign.join(field if len(field) <= _SHOWN_TO_HL7APY else "" for field in line.split(sign))
