"""Specific Character Set (0008,0005): one table of its terms, text in and out (PS3.3 C.12.1.1.2, PS3.5 §6.1).

Reading never fails: bytes that the declared set does not define are read with `fallback` (ISO_IR 100, in which every
byte is some character, so that nothing is lost), and so are bytes above 0x7F where only ASCII was declared
(REQ-DCM-60). Writing never replaces a character: a set that lacks one is not used (REQ-DCM-62). ISO_IR 203
(Latin-9) is read and never written (REQ-DCM-61).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

SPECIFIC_CHARACTER_SET = 0x00080005
DEFAULT = "ISO_IR 6"
UTF8 = "ISO_IR 192"
LATIN1 = "ISO_IR 100"


@dataclass(frozen=True, slots=True)
class Charset:
    """One set of characters: `codec` is Python's; `escape` designates it to G1, or to G0 where `g0` says so."""

    codec: str
    escape: bytes = b""
    g0: bool = False  # 94×94 set designated to G0: two 7-bit bytes a character
    wide: bool = False  # two bytes a character
    alone: bool = False  # may not be combined with code extensions


ASCII = Charset("ascii", b"\x1b(B")
_ROMAJI = Charset("shift_jis", b"\x1b(J")  # ISO-IR 14: ASCII but for two signs
_SINGLE = {  # number of ISO-IR: codec, final of the escape sequence `ESC - F`
    100: ("latin_1", b"A"), 101: ("iso8859_2", b"B"), 109: ("iso8859_3", b"C"), 110: ("iso8859_4", b"D"),
    144: ("iso8859_5", b"L"), 127: ("iso8859_6", b"G"), 126: ("iso8859_7", b"F"), 138: ("iso8859_8", b"H"),
    148: ("iso8859_9", b"M"), 166: ("tis_620", b"T"), 203: ("iso8859_15", b"b"),
}  # fmt: skip
TABLE: dict[str, Charset] = {
    "": ASCII,
    DEFAULT: ASCII,
    "ISO 2022 IR 6": ASCII,
    UTF8: Charset("utf_8", alone=True),
    "GB18030": Charset("gb18030", alone=True),
    "GBK": Charset("gbk", alone=True),
    "ISO_IR 13": Charset("shift_jis", b"\x1b)I"),
    "ISO 2022 IR 13": Charset("shift_jis", b"\x1b)I"),
    "ISO 2022 IR 87": Charset("iso2022_jp", b"\x1b$B", g0=True, wide=True),
    "ISO 2022 IR 159": Charset("iso2022_jp_1", b"\x1b$(D", g0=True, wide=True),
    "ISO 2022 IR 149": Charset("euc_kr", b"\x1b$)C", wide=True),
    "ISO 2022 IR 58": Charset("gb2312", b"\x1b$)A", wide=True),
}
for _number, (_codec, _final) in _SINGLE.items():
    TABLE[f"ISO_IR {_number}"] = TABLE[f"ISO 2022 IR {_number}"] = Charset(_codec, b"\x1b-" + _final)

_BY_ESCAPE = {charset.escape: charset for charset in TABLE.values() if charset.escape} | {_ROMAJI.escape: _ROMAJI}
_ESCAPE = re.compile(b"(\x1b(?:\\$[()]?[@-Z]|[(),\\-./][@-~]))")
_MISSPELT = re.compile(r"(ISO[ _-]?2022[ _-]?)?(?:ISO)?[ _-]?IR[ _-]?(\d+)")
_ALIASES = {"UTF-8": UTF8, "UTF8": UTF8, "UNICODE UTF-8": UTF8, "ISO 2022 GBK": "GBK", "ISO 2022 58": "ISO 2022 IR 58"}
_ISO_8859 = re.compile(r"(?:ISO[ _-]?)?8859[-/_ ](\d+)")
_PARTS = {1: 100, 2: 101, 3: 109, 4: 110, 5: 144, 6: 127, 7: 126, 8: 138, 9: 148, 11: 166, 15: 203}


@lru_cache(maxsize=256)
def term(written: str) -> str | None:
    """The defined term for what was written, common misspellings included; None when there is no such set."""
    name = " ".join(written.strip(" \0").upper().split())
    if name in TABLE:
        return name
    if name in _ALIASES:
        return _ALIASES[name]
    if match := _ISO_8859.fullmatch(name):
        number = _PARTS.get(int(match[1]))
        return f"ISO_IR {number}" if number else None
    if match := _MISSPELT.fullmatch(name):
        extended, plain = f"ISO 2022 IR {match[2]}", f"ISO_IR {match[2]}"
        if plain in TABLE and not match[1]:
            return plain
        return extended if extended in TABLE else None
    return None


def terms(raw: bytes) -> tuple[str, ...]:
    """The values of (0008,0005) as they are written, without padding; () when it is empty."""
    text = raw.decode("latin_1").strip(" \0")
    return tuple(value.strip(" \0") for value in text.split("\\")) if text else ()


def decode(raw: bytes, charsets: tuple[str, ...], *, person_name: bool = False, fallback: str = LATIN1) -> str:
    """The text of a value whose data set has `charsets` as (0008,0005); several values stay joined by `\\`.

    Never raises. Padding is not removed. Only `person_name` values have the delimiters `^` and `=`, after which the
    first set is in force again (PS3.5 §6.1.2.5.3).
    """
    if b"\x1b" in raw:
        sets, spare = _plan(charsets, fallback)
        if not sets[0].alone:
            return _decode_extended(raw, sets[0], spare, b"\\^=" if person_name else b"\\")
    elif raw.isascii():
        return raw.decode("ascii")
    sets, spare = _plan(charsets, fallback)
    return _decode_with(raw, sets[0], spare)


@lru_cache(maxsize=256)
def _plan(charsets: tuple[str, ...], fallback: str) -> tuple[list[Charset], str]:
    spare = TABLE.get(term(fallback) or LATIN1, TABLE[LATIN1]).codec
    sets = [TABLE[known] for written in charsets if (known := term(written)) is not None]
    return sets or [ASCII], spare


def _decode_with(raw: bytes, charset: Charset, spare: str) -> str:
    try:
        return raw.decode("ascii" if charset.g0 else charset.codec)
    except UnicodeDecodeError:
        try:
            return raw.decode(spare)
        except UnicodeDecodeError:
            return raw.decode("latin_1")


def _decode_extended(raw: bytes, first: Charset, spare: str, delimiters: bytes) -> str:
    """ISO 2022 code extensions: escape sequences designate G0 and G1; a delimiter brings the first set back."""
    resets = re.compile(b"[\\x00-\\x1a\\x1c-\\x1f" + re.escape(delimiters) + b"]")
    initial = None if first.codec == "ascii" or first.g0 else first
    g0: Charset | None = first if first.g0 else None
    g1 = initial
    text: list[str] = []
    for piece in _ESCAPE.split(raw):
        if piece[:1] == b"\x1b" and _ESCAPE.fullmatch(piece):
            designated = _BY_ESCAPE.get(piece)
            if designated is None:
                text.append(piece.decode("latin_1"))  # not ours to understand: kept, so that nothing is lost
            elif designated.g0:
                g0 = designated
            elif piece[1:2] == b"(":
                g0 = None
            else:
                g1 = designated
            continue
        start = 0
        while start < len(piece):
            # in a 94×94 set of G0 the bytes of `^`, `=` and `\` are halves of characters
            found = re.compile(b"[\\x00-\\x1a\\x1c-\\x1f]").search(piece, start) if g0 else resets.search(piece, start)
            end = found.end() if found else len(piece)
            text.append(_decode_run(piece[start:end], g0, g1, spare))
            if found:
                g0, g1 = None, initial
            start = end
    return "".join(text)


_RUNS = re.compile(b"[\x80-\xff]+|[\x00-\x7f]+")


def _decode_run(raw: bytes, g0: Charset | None, g1: Charset | None, spare: str) -> str:
    if g0 is None:
        return _decode_with(raw, g1 or ASCII, spare)
    parts = []
    for run in _RUNS.findall(raw):
        if run[0] >= 0x80:
            parts.append(_decode_with(run, g1 or ASCII, spare))
            continue
        try:
            parts.append((g0.escape + run + ASCII.escape).decode(g0.codec))
        except UnicodeDecodeError:
            parts.append(run.decode("ascii"))
    return "".join(parts)


def choose(texts: Iterable[str], wanted: tuple[str, ...]) -> str:
    """The value of (0008,0005) to answer with: the requester's set if every character fits, else ISO_IR 192.

    `wanted` is (0008,0005) of the request, () when absent. `""` means that the answer needs none: all is ASCII.
    """
    everything = "".join(texts)
    known = [term(written) for written in wanted]
    first = known[0] if known else ""
    if first is None or None in known:
        return "" if everything.isascii() else UTF8
    if not everything.isascii() or first:
        for candidate in _candidates([name for name in known if name is not None]):
            if fits(everything, candidate):
                return candidate
    return "" if everything.isascii() else UTF8


def charset_of(attributes: Mapping[str, Any]) -> str:
    """The term to write DICOM JSON with: ISO_IR 100 when it holds every character, else ISO_IR 192 (REQ-DCM-61)."""
    return LATIN1 if fits(orjson.dumps(dict(attributes)).decode(), LATIN1) else UTF8


def _candidates(known: list[str]) -> list[str]:
    """What may be written for a requester: the first set alone, then all of them as code extensions."""
    if not known:
        return [""]
    first = known[0]
    if first.endswith("IR 203"):
        return [LATIN1]
    if TABLE[first].alone:
        return [first]
    plain = first.replace("ISO 2022 IR", "ISO_IR")
    if plain not in TABLE or plain == DEFAULT:  # a set that only exists as an extension of ASCII
        plain = ""
    leading = _extended(plain)
    usable = [_extended(name) for name in known if not (name.endswith("IR 203") or TABLE[name].alone)]
    extensions = [name for name in usable if name != leading and TABLE[name] is not ASCII]
    return [plain, "\\".join([leading, *extensions])] if extensions else [plain]


def _extended(name: str) -> str:
    return name.replace("ISO_IR", "ISO 2022 IR")


def fits(text: str, charset: str) -> bool:
    """Whether every character of `text` exists in `charset`, the value of (0008,0005)."""
    try:
        encode(text, charset)
    except UnicodeEncodeError:
        return False
    return True


def encode(text: str, charset: str, *, person_name: bool = False) -> bytes:
    """`text` in `charset`, the value of (0008,0005) (several terms joined by `\\`); without padding.

    Raises:
        UnicodeEncodeError: a character does not exist there. Nothing is ever replaced (REQ-DCM-62).
    """
    if text.isascii():
        return text.encode("ascii")
    sets = _sets(charset)
    if len(sets) == 1 and not sets[0].g0 and not sets[0].wide and sets[0].codec != "shift_jis":
        return text.encode(sets[0].codec)
    return _encode_extended(text, sets, "\\^=" if person_name else "\\")


@lru_cache(maxsize=64)
def _sets(charset: str) -> tuple[Charset, ...]:
    return tuple(TABLE[term(written) or DEFAULT] for written in charset.split("\\"))


def _encode_extended(text: str, sets: tuple[Charset, ...], delimiters: str) -> bytes:
    first = sets[0]
    initial = None if first.codec == "ascii" or first.g0 else first
    g0, g1 = ASCII, initial
    out = bytearray()
    for position, letter in enumerate(text):
        if letter.isascii():
            if g0 is not ASCII:
                out += ASCII.escape
                g0 = ASCII
            if (letter in delimiters or letter < " ") and g1 is not initial:
                if initial is not None:
                    out += initial.escape
                g1 = initial
            out += letter.encode("ascii")
            continue
        for charset in ([g0] if g0.g0 else []) + ([g1] if g1 else []) + list(sets):
            raw = _encode_letter(letter, charset)
            if raw is None:
                continue
            if charset.g0 and g0 is not charset:
                out += charset.escape
                g0 = charset
            elif not charset.g0 and g1 is not charset:
                out += charset.escape
                g1 = charset
            out += raw
            break
        else:
            raise UnicodeEncodeError(first.codec, text, position, position + 1, "not in the character set")
    if g0 is not ASCII:
        out += ASCII.escape
    if g1 is not initial and initial is not None:
        out += initial.escape
    return bytes(out)


def _encode_letter(letter: str, charset: Charset) -> bytes | None:
    """A letter beyond ASCII in one set, without its escape sequence; None when it is not there."""
    if charset is ASCII:
        return None
    try:
        raw = letter.encode(charset.codec)
    except UnicodeEncodeError:
        return None
    if charset.g0:
        size = len(charset.escape)
        return raw[size : size + 2] if raw.startswith(charset.escape) else None
    if len(raw) != (2 if charset.wide else 1) or raw[0] < 0x80:
        return None
    return raw
