"""A stored data set with corrections, as it leaves (REQ-DCM-70, 71, 72). What is stored stays as it is (law 3).

Only what changes is written anew: the corrected elements, one more item of Original Attributes Sequence, and, where the
data set's own character set lacks a letter of them, all text. Everything else is copied, pixels as ranges of the file.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from archive.dicom import encode, transcode
from archive.dicom.charset import SPECIFIC_CHARACTER_SET, UTF8, fits, term
from archive.dicom.corrections import (
    MAC_PARAMETERS,
    MODIFIED_AT,
    MODIFIED_ATTRIBUTES,
    MODIFYING_SYSTEM,
    ORIGINAL_ATTRIBUTES,
    REASON,
    SIGNATURES,
    SOURCE_OF_VALUES,
    SYSTEM,
    Changes,
    unaffected,
    vr_of,
)
from archive.dicom.elements import UNDEFINED, encoding_of, opened
from archive.dicom.json import JsonReader
from archive.dicom.source import Source
from archive.dicom.transcode import Writer, charsets_of
from archive.dicom.tree import Element, parse, top_level, unfold
from archive.errors import NotAcceptable

_LENGTH_TO_END = 0x00080001  # retired; wrong once anything changed
_LATIN9 = {"ISO_IR 203", "ISO 2022 IR 203"}  # read, never written (REQ-DCM-61)


@dataclass(frozen=True, slots=True)
class Coercion:
    """What is needed to write a data set with its changes.

    `source` is whom it was received from, as Source of Previous Values (0400,0564); `fallback` the character set of
    text beyond ASCII without (0008,0005).
    """

    changes: Changes
    source: str
    fallback: str


def pieces(
    path: str,
    coercion: Coercion | None,
    *,
    data_set_offset: int,
    source_syntax: str,
    target_syntax: str,
    bulk: bool = True,
) -> Iterator[bytes]:
    """The data set of a stored file with its changes, in its own syntax or in one of the `alternatives`, in pieces.
    Without `bulk` data, in any syntax.

    Raises (with the first piece):
        NotAcceptable: it cannot be given in `target_syntax`.
        UnreadableInstance: the elements cannot be followed.
        OSError: the file cannot be read.
    """
    if bulk and target_syntax != source_syntax and target_syntax not in transcode.alternatives(source_syntax):
        raise NotAcceptable(f"what is stored in {source_syntax} cannot be given in {target_syntax}")
    where, own = data_set_offset, target_syntax == source_syntax
    with opened(path, data_set_offset=where, transfer_syntax_uid=source_syntax) as (source, encoding):
        # in its own syntax, what cannot be followed in a sequence is copied
        elements = top_level(source, encoding) if own and bulk else parse(source, encoding)
        writer = Writer(source, source_syntax, target_syntax, bulk=bulk)
        if coercion is None:
            written = writer.data_set(elements)
        else:
            written = _data_set(source, elements, writer, coercion, rest=own and bulk)
        yield from _deflated(written) if encoding_of(target_syntax).deflated else written


def _data_set(
    source: Source, elements: list[Element], writer: Writer, coercion: Coercion, *, rest: bool
) -> Iterator[bytes]:
    charset = "\\".join(charsets_of(source, elements))
    if not _suits(charset, coercion.changes):
        writer.recode = coercion.fallback
        charset = UTF8
    first: dict[int, Element] = {}
    for element in elements:
        first.setdefault(element.tag, element)
        if writer.recode or element.tag in (ORIGINAL_ATTRIBUTES, MAC_PARAMETERS, SIGNATURES):
            unfold(source, element)
    yield from writer.data_set(elements, _edits(source, first, writer, coercion, charset))
    if rest and elements:  # behind pixels, not to be followed
        yield from writer.copy(elements[-1].end, source.end())


def _suits(charset: str, changes: Changes) -> bool:
    """Whether all that is new can be written in the data set's own character set."""
    if any(term(one) in _LATIN9 for one in charset.split("\\")):
        return False
    return all(fits(text, charset) for element in changes.attributes.values() for text in encode.texts(element))


def _edits(
    source: Source, first: dict[int, Element], writer: Writer, coercion: Coercion, charset: str
) -> dict[int, Iterator[bytes] | None]:
    attributes = coercion.changes.attributes
    edits: dict[int, Iterator[bytes] | None] = {
        tag: iter((encode.of_json(f"{tag:08X}", element, writer.encoding, charset),))
        for tag, element in attributes.items()
    }
    edits[_LENGTH_TO_END] = None
    edits[ORIGINAL_ATTRIBUTES] = _original(first, writer, coercion)
    if writer.recode:
        edits[SPECIFIC_CHARACTER_SET] = iter((writer.made(SPECIFIC_CHARACTER_SET, "CS", UTF8.encode()),))
        return edits  # signatures over text are gone with it
    sequences = [first.get(tag) for tag in (MAC_PARAMETERS, SIGNATURES)]
    reader = JsonReader(source, (), bulk_uri=lambda path: path)  # signatures themselves are not looked at
    items = [[reader.data_set(item) for item in (one.items if one else None) or ()] for one in sequences]
    kept = unaffected(*items, changed={*attributes, ORIGINAL_ATTRIBUTES})
    for one, all_items, numbers in zip(sequences, items, kept, strict=True):
        if one is not None and (len(numbers) < len(all_items) or one.items is None):
            edits[one.tag] = _some(one, numbers, writer) if numbers else None
    return edits


def _some(sequence: Element, numbers: list[int], writer: Writer) -> Iterator[bytes]:
    """A sequence with some of its items."""
    yield writer.head(sequence.tag, "SQ", UNDEFINED)
    for number in numbers:
        yield from writer.item((sequence.items or [])[number])
    yield encode.sequence_end(writer.encoding)


def _original(first: dict[int, Element], writer: Writer, coercion: Coercion) -> Iterator[bytes]:
    """Original Attributes Sequence: what is in it, and what is changed now (PS3.3 C.12.1.1.9, REQ-DCM-71)."""
    encoding, changes = writer.encoding, coercion.changes
    yield writer.head(ORIGINAL_ATTRIBUTES, "SQ", UNDEFINED)
    if ORIGINAL_ATTRIBUTES in first:
        yield from writer.items(first[ORIGINAL_ATTRIBUTES])
    yield encode.item(encoding)
    yield writer.head(MODIFIED_ATTRIBUTES, "SQ", UNDEFINED)
    yield encode.item(encoding)
    for tag in changes.former:
        if tag in first:
            yield from writer.element(first[tag])
        else:
            yield writer.made(tag, vr_of(tag, changes), b"")
    yield encode.item_end(encoding)
    yield encode.sequence_end(encoding)
    yield writer.made(MODIFIED_AT, "DT", changes.moment.encode())
    yield writer.made(MODIFYING_SYSTEM, "LO", SYSTEM.encode())
    yield writer.made(SOURCE_OF_VALUES, "LO", coercion.source.encode("ascii", "ignore"))
    yield writer.made(REASON, "CS", changes.reason.encode())
    yield encode.item_end(encoding)
    yield encode.sequence_end(encoding)


def _deflated(written: Iterator[bytes]) -> Iterator[bytes]:
    """RFC 1951, made even (PS3.5 A.5)."""
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    length = 0
    for piece in written:
        if deflated := deflater.compress(piece):
            length += len(deflated)
            yield deflated
    last = deflater.flush()
    yield last + b"\0" * ((length + len(last)) % 2)
