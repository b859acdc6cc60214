"""Bytes of a message as text and back: character set (MSH-18), delimiters (MSH-1, MSH-2), escapes (HL7 2.5 2.7)."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from archive.dicom import charset as dicom_charset

UTF8 = "UNICODE UTF-8"
_HIGH = re.compile(rb"[\x80-\xff]")


class UnknownCharset(Exception):
    """MSH-18 names a character set that is not supported."""


class UndecodableBytes(Exception):
    """The bytes are not text of the character set that MSH-18 declares."""


def codec_of(written: str) -> str:
    """Python's codec for a value of table 0211, usual misspellings included.

    `8859/1` is ISO 8859-1, never windows-1252 (REQ-HL7-12).

    Raises:
        UnknownCharset: not ASCII, UTF-8 or a part of ISO 8859.
    """
    if written.strip().upper() in ("ASCII", "US-ASCII"):
        return "ascii"
    term = dicom_charset.term(written) if written.strip() else None
    if term is None:
        raise UnknownCharset
    found = dicom_charset.TABLE[term]
    if found.g0 or found.wide or (found.alone and term != dicom_charset.UTF8) or found.codec == "shift_jis":
        raise UnknownCharset
    return found.codec


def decode(raw: bytes, declared: str, *, default: str) -> tuple[str, str]:
    """The text of a message and the codec it was read with; a byte order mark is dropped (REQ-HL7-12).

    `declared` is the first repetition of MSH-18. Where it is empty, UTF-8 that cannot be anything else is read as such,
    the rest as `default`, the site's.

    Raises:
        UnknownCharset: `declared` is not supported.
        UndecodableBytes: in the declared set, some bytes mean nothing.
    """
    marked = raw.startswith(codecs.BOM_UTF8)
    body = raw[len(codecs.BOM_UTF8) :] if marked else raw
    if declared:
        codec = codec_of(declared)
    elif marked or (_HIGH.search(body) and _is_utf8(body)):
        codec = "utf_8"
    else:
        codec = codec_of(default)
    try:
        return body.decode(codec), codec
    except UnicodeDecodeError as error:
        raise UndecodableBytes from error


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Delimiters:
    """MSH-1 and MSH-2; "" where a message does without (REQ-HL7-10)."""

    field: str = "|"
    component: str = "^"
    repetition: str = "~"
    escape: str = "\\"
    sub: str = "&"

    @classmethod
    def of(cls, msh: str) -> Delimiters | None:
        """Those that the text of an MSH segment declares; None when it declares none that can be used."""
        if len(msh) < 5 or not msh.startswith("MSH"):
            return None
        field = msh[3]
        rest = msh[4:].partition(field)[0][:4]
        signs = [field, *rest]
        if not rest or len(set(signs)) < len(signs) or any(not _is_sign(one) for one in signs):
            return None
        return cls(*signs, *[""] * (5 - len(signs)))

    @property
    def inner(self) -> tuple[str, ...]:
        """Those that cut a field."""
        return tuple(sign for sign in (self.component, self.repetition, self.sub) if sign)

    def __str__(self) -> str:
        """MSH-2."""
        return f"{self.component}{self.repetition}{self.escape}{self.sub}"


def _is_sign(letter: str) -> bool:
    return "!" <= letter <= "~" and not letter.isalnum() and letter != '"'


def unescape(text: str, delimiters: Delimiters, *, codec: str, formatted: bool = False) -> str:
    """A value with its escapes undone, after it was split (REQ-HL7-11). What is not understood stays as it is.

    `formatted` is for FT and TX: `.br` and `.sp` are line breaks there, highlighting is dropped.
    """
    sign = delimiters.escape
    if not sign or sign not in text:
        return text
    whole = re.compile(f"{re.escape(sign)}([^{re.escape(sign)}]*){re.escape(sign)}")

    def plain(found: re.Match[str]) -> str:
        known = _plain(found[1], delimiters, codec=codec, formatted=formatted)
        return found[0] if known is None else known

    return whole.sub(plain, text)


def _plain(code: str, delimiters: Delimiters, *, codec: str, formatted: bool) -> str | None:
    sign = {
        "F": delimiters.field,
        "S": delimiters.component,
        "T": delimiters.sub,
        "R": delimiters.repetition,
        "E": delimiters.escape,
    }.get(code)
    if sign:
        return sign
    if code[:1] == "X" and len(code) > 1:
        try:
            return bytes.fromhex(code[1:]).decode(codec)
        except ValueError:  # no hexadecimal digits, or no text
            return None
    return _layout(code) if formatted else None


def _layout(code: str) -> str | None:
    if code in ("H", "N"):
        return ""
    found = re.fullmatch(r"\.(?:br|sp\+?(\d{0,2}))", code)
    return None if found is None else "\n" * max(1, int(found[1] or 1))


def escape(text: str, delimiters: Delimiters) -> str:
    """A value as it may stand in a message: delimiters escaped, no segment ends inside."""
    sign = delimiters.escape
    names = {
        delimiters.escape: "E",
        delimiters.field: "F",
        delimiters.component: "S",
        delimiters.sub: "T",
        delimiters.repetition: "R",
    }
    return "".join(
        " " if letter < " " else f"{sign}{names[letter]}{sign}" if letter in names and sign else letter
        for letter in text
    )
