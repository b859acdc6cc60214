"""An HL7 v2 message as a typed view that cannot change: bytes in, segments, fields, components out.

hl7apy reads each message too, and what it cannot read is refused; it says which fields hold formatted text. The values
themselves are cut here, by the delimiters alone: hl7apy cuts anew a field with more components than its tables know,
forgets positions beyond them, and does not undo escapes (docs/decisions/0009-how-hl7apy-is-used.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final, Literal

import structlog

from archive.identity.acts import Write
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
    person at the sender's (ERR-8) and repeats no value of the message. `after` is written in the transaction of the
    refusal, for a person to see what happened: nothing else of the message stays.
    """

    def __init__(self, code: int, location: str = "", text: str = "", *, after: Write | None = None) -> None:
        self.code = code
        self.location = location
        self.text = text or MEANINGS[code][1]
        self.after = after
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
        """The repetitions of field `n`, from 1; empty when it is absent. Empty repetitions keep their place.

        Raises HL7Error 102 for a field of more than ten thousand parts.
        """
        text = self._raw(n)
        if not text:
            return ()
        if self.name == "MSH" and n <= 2:
            return (Repetition(((text,),)),)
        signs = self.grammar.delimiters
        if sum(text.count(sign) for sign in signs.inner) > _MAX_PARTS:
            raise HL7Error(102, self.at(n), "too many parts")
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
_FIRST_LINE = re.compile(rb"(?:\xef\xbb\xbf)?[\r\n]*([^\r\n]{0,65536})")
# What a message may consist of; far above any that means something, and below what would fill the memory.
_MAX_SEGMENTS = 100_000
_MAX_FIELDS = 1_000  # of a segment
_MAX_PARTS = 10_000  # of a field: repetitions, components, subcomponents
# What hl7apy is shown of it, for it takes a millisecond for five parts. Documents in Base64 are left out.
_SHOWN_PARTS = 5_000
_SHOWN_PARTS_IN_A_FIELD = 200
_SHOWN_IN_A_FIELD = 1 << 12  # characters


def head(raw: bytes) -> Segment | None:
    """What the MSH of a message says, read as far as that is possible; None when there is no MSH at all.

    For answers to messages that cannot be read further. Never raises.
    """
    found = _FIRST_LINE.match(raw)
    line = found[1] if found is not None else b""
    text = line.decode("latin-1")
    delimiters = Delimiters.of(text)
    if delimiters is None or sum(text.count(sign) for sign in {*delimiters.field, *delimiters.inner}) > _MAX_PARTS:
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
    if text.count("\r" if "\r" in text else "\n") > _MAX_SEGMENTS:  # before they are cut
        raise HL7Error(100, "MSH^1", "too many segments")
    lines = list(_lines(text))
    formatted = _formatted_fields(lines, delimiters, msh.value(12) or "")
    segments: list[Segment] = []
    seen: dict[str, int] = {}
    for line in lines:
        name, _, rest = line.partition(delimiters.field)
        name = name[:_SHOWN_IN_A_FIELD]
        seen[name] = seen.get(name, 0) + 1
        if rest.count(delimiters.field) >= _MAX_FIELDS:
            place = f"{name}^{seen[name]}" if _NAME.fullmatch(name) else ""  # any characters may stand there
            raise HL7Error(100, place, "too many fields")
        fields = tuple(rest.split(delimiters.field))
        texts = formatted.get(name, frozenset())
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


def _formatted_fields(lines: list[str], delimiters: Delimiters, version: str) -> dict[str, frozenset[int]]:
    """By name of segment, the numbers of its fields of type FT or TX, as hl7apy has them for that version.

    Raises:
        HL7Error: 100, hl7apy cannot read the message, or reads another number of segments.
    """
    from hl7apy.consts import VALIDATION_LEVEL
    from hl7apy.exceptions import HL7apyException
    from hl7apy.parser import parse_message

    texts = list(_shown(lines, delimiters, version))
    try:
        # with find_groups, it drops Z segments and those out of place without a word
        parsed = parse_message("\r".join(texts), validation_level=VALIDATION_LEVEL.TOLERANT, find_groups=False)
        found = list(parsed.children)
    except (HL7apyException, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        log.warning("hl7apy cannot read a message", error=type(error).__name__)
        raise HL7Error(100, "MSH^1", "the message cannot be parsed") from error
    if parsed.version != version or [one.name for one in found] != [text[:3] for text in texts]:
        raise HL7Error(100, "MSH^1", "the message cannot be parsed whole")
    result: dict[str, frozenset[int]] = {}
    for segment in found:
        numbers = (
            int(field.name.rpartition("_")[2])
            for field in segment.children
            if field.name and field.datatype in ("FT", "TX")
        )
        result[segment.name] = result.get(segment.name, frozenset()) | frozenset(numbers)
    return result


@lru_cache(maxsize=4096)
def _has_tables(name: str, version: str) -> bool:
    """Whether hl7apy takes segments of this name: those of the version, and Z segments."""
    from hl7apy import load_reference
    from hl7apy.exceptions import ChildNotFound

    if not _NAME.fullmatch(name):
        return False
    try:
        load_reference(name, "Segment", version)
    except ChildNotFound:
        return name.startswith("Z")
    return True


def _shown(lines: list[str], delimiters: Delimiters, version: str) -> Iterator[str]:
    """The segments for hl7apy, within the bounds above, but for those whose names it does not know (REQ-HL7-14).

    It wants all four delimiters of MSH-2: signs that mean nothing stand for those that the message does without.
    """
    free = iter("\x01\x02\x03\x04")
    signs = "".join(sign or next(free) for sign in _four(delimiters))
    sign = delimiters.field
    room = _SHOWN_PARTS
    for number, line in enumerate(lines):
        if not _has_tables(line[:3], version) or line[3:4] not in ("", sign):
            continue
        fields = line[4:].split(sign, _MAX_FIELDS)
        for position, field in enumerate(fields):
            parts = sum(field.count(one) for one in delimiters.inner)
            if len(field) > _SHOWN_IN_A_FIELD or parts > _SHOWN_PARTS_IN_A_FIELD:
                fields[position], parts = "", 0
            room -= parts + 1
        if room < 0 and number:
            return
        if number:
            yield line[:3] + sign + sign.join(fields)
        else:
            yield f"MSH{sign}{sign.join([signs, *fields[1:]])}"


def _four(delimiters: Delimiters) -> tuple[str, str, str, str]:
    return delimiters.component, delimiters.repetition, delimiters.escape, delimiters.sub
