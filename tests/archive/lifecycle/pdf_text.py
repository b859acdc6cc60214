"""The text of a PDF as a reader copies it: by the ToUnicode map of each font (ISO 32000-1 §9.10)."""

from __future__ import annotations

import base64
import re
import zlib

_OBJECT = re.compile(rb"(\d+) 0 obj\s*<<(.*?)>>\s*(?:stream\r?\n(.*?)endstream)?", re.S)
_SHOWN = re.compile(rb"/(F\d+\+\d+) [\d.]+ Tf|\(((?:\\.|[^\\)])*)\) Tj", re.S)
_ESCAPE = re.compile(rb"\\([0-7]{3}|.)", re.S)


def text_of(pdf: bytes) -> str:
    """All text, a space between what is shown apart."""
    objects = {int(one[1]): (one[2], one[3]) for one in _OBJECT.finditer(pdf)}
    fonts = {
        name[1].decode(): _map(*objects[int(reference[1])])
        for head, _ in objects.values()
        if (name := re.search(rb"/Name /(F\d+\+\d+)", head))
        and (reference := re.search(rb"/ToUnicode (\d+) 0 R", head))
    }
    pages = re.search(rb"/Kids \[(.*?)\]", pdf, re.S)
    assert pages
    shown: list[str] = []
    for page in re.findall(rb"(\d+) 0 R", pages[1]):
        content = re.search(rb"/Contents (\d+) 0 R", objects[int(page)][0])
        assert content
        font: dict[int, str] = {}
        for found in _SHOWN.finditer(_plain(*objects[int(content[1])])):
            if found[1]:
                font = fonts[found[1].decode()]
            else:
                shown.append("".join(font[code] for code in _ESCAPE.sub(_unescaped, found[2])))
    return " ".join(" ".join(shown).split())


def _unescaped(escape: re.Match[bytes]) -> bytes:
    kept = escape[1]
    return bytes([int(kept, 8)]) if len(kept) == 3 else {b"n": b"\n", b"r": b"\r", b"t": b"\t"}.get(kept, kept)


def _map(head: bytes, stream: bytes) -> dict[int, str]:
    pairs = re.findall(rb"<([0-9A-F]{2})> <([0-9A-F]{4})>", _plain(head, stream))
    return {int(code, 16): chr(int(letter, 16)) for code, letter in pairs}


def _plain(head: bytes, stream: bytes) -> bytes:
    if b"ASCII85Decode" in head:
        stream = base64.a85decode(stream.strip().removesuffix(b"~>"))
    return zlib.decompress(stream) if b"FlateDecode" in head else stream
