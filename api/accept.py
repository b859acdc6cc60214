"""Which representation of a resource an asker gets: HTTP content negotiation with the media types of PS3.18 8.7.

One function decides, `choose`, over two tables: the ranges that the asker accepts and the representations that can
be given. What a resource can be given as is said by `of_objects`, `of_frames` and the other constants below
(REQ-DCM-91, REQ-DCM-98). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from urllib.parse import unquote

from archive.dicom import lossless
from archive.dicom.syntaxes import EXPLICIT_LE, JPEG, NATIVE, RLE
from archive.errors import InvalidRequest, NotAcceptable

OCTETS = "application/octet-stream"
DICOM = "application/dicom"
RELATED = "multipart/related"

_SAME = {  # old or loose names of a media type
    "image/x-jls": "image/jls",
    "image/x-dicom-rle": "image/dicom-rle",
    "video/mpeg2": "video/mpeg",
}
_WIDER = {  # a media type that means another one too, where that is what there is
    "application/json": "application/dicom+json",
    "text/xml": "application/dicom+xml",
    "application/xml": "application/dicom+xml",
}
# The media type of one compressed frame (PS3.18 Table 8.7.3-5).
FRAME_MEDIA_TYPES = {
    RLE: "image/dicom-rle",
    **dict.fromkeys((f"{JPEG}{n}" for n in (50, 51, 57, 70)), "image/jpeg"),
    **dict.fromkeys((f"{JPEG}{n}" for n in (80, 81)), "image/jls"),
    **dict.fromkeys((f"{JPEG}{n}" for n in (90, 91)), "image/jp2"),
    **dict.fromkeys((f"{JPEG}{n}" for n in (92, 93)), "image/jpx"),
    **dict.fromkeys((f"{JPEG}{n}" for n in (110, 111, 112)), "image/jxl"),
    **dict.fromkeys((f"{JPEG}{n}" for n in (201, 202, 203)), "image/jphc"),
    **dict.fromkeys((f"{JPEG}{n}" for n in ("100", "100.1", "101", "101.1")), "video/mpeg"),
    **dict.fromkeys((f"{JPEG}{n}{fragmentable}" for n in range(102, 107) for fragmentable in ("", ".1")), "video/mp4"),
    **dict.fromkeys((f"{JPEG}{n}" for n in (107, 108)), "video/mp4"),
}


@dataclass(frozen=True, slots=True)
class Range:
    """One media range of an Accept header. `media_type` is what a part, or the single payload, has to be."""

    media_type: str  # "*/*" when any will do
    multipart: bool | None  # None: either will do
    transfer_syntax: str | None  # a UID, "*", or None when nothing was said
    quality: float


@dataclass(frozen=True, slots=True)
class Representation:
    """One form in which a resource can be given.

    `default`: given when the range names no transfer syntax. `stored`: what `transfer-syntax=*` means. Without
    `open_type`, only a range that names the very media type leads here, no wildcard. `recompressed`: made by
    compressing anew what is stored compressed otherwise; whoever accepts the stored form too gets that.
    """

    media_type: str
    transfer_syntax: str | None = None
    multipart: bool = False
    default: bool = True
    stored: bool = False
    open_type: bool = True
    recompressed: bool = False


REMEMBERED_BYTES = 512  # a longer header is worked out anew each time
_PART = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*"?)+')
_PARAMETER = re.compile(r';\s*([!#$%&\'*+.^_`|~\w-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;"]*)\s*')
_MEDIA_TYPE = re.compile(r"([!#$%&'*+.^_`|~\w-]+)/([!#$%&'*+.^_`|~\w-]+)", re.ASCII)


def parse(header: str | None) -> tuple[Range, ...]:
    """The ranges of an Accept header; none, or an empty one, means `*/*` (RFC 9110 12.5.1).

    Tolerates empty elements (a trailing comma), parameters with and without quotes, parameters nobody knows
    (`boundary=**`, `start=…`), and the lone `*` of old Java clients.

    Raises:
        InvalidRequest: an element is no media range, or its q is no number from 0 to 1.
    """
    return (_remembered if len(header or "") <= REMEMBERED_BYTES else _parsed)(header or "")


def _parsed(header: str) -> tuple[Range, ...]:
    elements = [element.strip() for element in _PART.findall(header)]
    ranges = tuple(_range(element) for element in elements if element)
    return ranges or (Range("*/*", None, None, 1.0),)


_remembered = lru_cache(maxsize=256)(_parsed)  # clients ask for the same again and again


def _range(text: str) -> Range:
    name, separator, rest = text.partition(";")
    name = name.strip().lower()
    if name == "*":
        name = "*/*"
    if not _MEDIA_TYPE.fullmatch(name):
        raise InvalidRequest(f"{name[:80]!r} in Accept is not a media type")
    parameters = {key.lower(): _unquote(value) for key, value in _PARAMETER.findall(separator + rest)}
    try:
        quality = float(parameters.get("q", "1"))
    except ValueError:
        quality = -1.0
    if not 0 <= quality <= 1:
        raise InvalidRequest("a q in Accept is not a number from 0 to 1")
    multipart: bool | None = False
    if name == "*/*":
        multipart = None
    elif name in (RELATED, "multipart/*"):
        multipart = True
        name = parameters.get("type", "*/*").lower()
    return Range(_SAME.get(name, name), multipart, parameters.get("transfer-syntax") or None, quality)


def _unquote(value: str) -> str:
    value = value.strip()
    if value.startswith('"') and value.endswith('"') and len(value) > 1:
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value


def choose(ranges: Iterable[Range], offers: Sequence[Representation]) -> Representation | None:
    """The offer that the asker prefers; among equals the one named first. None: nothing is acceptable.

    The most specific range that matches an offer gives its quality (RFC 9110 12.5.1); 0 excludes it. Pixels are not
    compressed anew for somebody who takes them as they are stored (REQ-DRIM-03).
    """
    ranges = tuple(ranges)
    wanted = [(offer, quality) for offer in offers if (quality := _quality(ranges, offer)) > 0]
    as_stored = any(offer.stored for offer, _ in wanted)
    best, best_quality = None, 0.0
    for offer, quality in wanted:
        if quality > best_quality and not (as_stored and offer.recompressed):
            best, best_quality = offer, quality
    return best


def _quality(ranges: Sequence[Range], offer: Representation) -> float:
    matching = [(precision, one.quality) for one in ranges if (precision := _precision(one, offer))]
    return max(matching)[1] if matching else 0.0


def _precision(one: Range, offer: Representation) -> int:
    """How exactly a range means an offer; 0 when it does not."""
    if one.multipart not in (None, offer.multipart) or not _same_syntax(one.transfer_syntax, offer):
        return 0
    group = f"{offer.media_type.partition('/')[0]}/*"
    if offer.media_type in (one.media_type, _WIDER.get(one.media_type)):
        precision = 30
    elif one.media_type in (group, "*/*") and offer.open_type:
        precision = 20 if one.media_type == group else 10
    else:
        return 0
    return precision + 2 * (one.transfer_syntax not in (None, "*")) + (one.multipart is not None)


def _same_syntax(wanted: str | None, offer: Representation) -> bool:
    if wanted is None:
        return offer.default
    return offer.stored if wanted == "*" else wanted == offer.transfer_syntax


@dataclass(frozen=True, slots=True)
class Wish:
    """What one request accepts: its `accept=` query parameter first, its Accept header otherwise (PS3.18 8.7.8.1)."""

    parameter: tuple[Range, ...]
    header: tuple[Range, ...]

    def choose(self, offers: Sequence[Representation]) -> Representation | None:
        """The preferred offer, or None."""
        return (choose(self.parameter, offers) if self.parameter else None) or choose(self.header, offers)

    def demand(self, offers: Sequence[Representation]) -> Representation:
        """The preferred offer. Raises NotAcceptable, which names what there is (406)."""
        chosen = self.choose(offers)
        if chosen is None:
            raise not_acceptable(offers)
        return chosen


def wish(header: str | None, query_string: str) -> Wish:
    """What a request accepts, from its Accept header (several joined by commas) and its raw query string.

    The query is read here since a `+` in `accept=application/dicom+json` is meant as a plus.
    """
    pairs = (pair.partition("=") for pair in query_string.split("&"))
    parameter = [unquote(value) for name, _, value in pairs if name == "accept" and value]
    return Wish(parse(",".join(parameter)) if parameter else (), parse(header))


def not_acceptable(offers: Sequence[Representation]) -> NotAcceptable:
    """The 406 that names the forms in which this could be had."""
    forms = dict.fromkeys(content_type(offer) for offer in offers)
    return NotAcceptable(f"none of the accepted media types can be given; there is: {', '.join(forms)}")


def content_type(offer: Representation) -> str:
    """The media range that asks for exactly this offer."""
    syntax = f"; transfer-syntax={offer.transfer_syntax}" if offer.transfer_syntax else ""
    if offer.multipart:
        return f'{RELATED}; type="{offer.media_type}"{syntax}'
    return f"{offer.media_type}{syntax}"


@lru_cache(maxsize=256)
def part_type(offer: Representation) -> str:
    """The Content-Type of one part that is given so, or of the body itself."""
    return content_type(replace(offer, multipart=False))


def takes_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header takes gzip (RFC 9110 12.5.3): its own weight counts before that of `*`."""
    weights: dict[str, str] = {}
    for coding in header.lower().replace(" ", "").replace("\t", "").split(","):
        name, _, weight = coding.partition(";q=")
        weights[name] = weight or "1"
    said = weights.get("gzip") or weights.get("x-gzip") or weights.get("*") or "0"
    return said.strip("0.") != ""


# Tables: what each resource can be given as, the preferred first.

JSON, XML = "application/dicom+json", "application/dicom+xml"
METADATA = (Representation(JSON), Representation(XML, multipart=True))
STORED = (Representation(JSON), Representation(XML))  # what became of what was sent
CAPABILITIES = (Representation("application/vnd.sun.wadl+xml"), Representation("application/json"))
BULK_DATA = (
    Representation(OCTETS, EXPLICIT_LE, multipart=True, stored=True),
    Representation(OCTETS, EXPLICIT_LE, stored=True),
)
RENDERED = (Representation("image/jpeg"), Representation("image/png"))
ALL_RENDERED = (Representation("image/jpeg", multipart=True), Representation("image/png", multipart=True))


def of_objects(stored: str, syntaxes: Sequence[str], *, as_default: str, single: bool) -> tuple[Representation, ...]:
    """Forms of an instance kept in the syntax `stored` and available in `syntaxes` (which holds `stored`).

    `as_default` is the one given when nobody names a syntax: Explicit VR Little Endian, or the stored one where that
    is all there is (PS3.18 8.7.3.1). `single`: one instance was asked for, which may come without multipart.
    """
    return tuple(
        Representation(
            DICOM,
            syntax,
            multipart,
            default=syntax == as_default,
            stored=syntax == stored,
            recompressed=stored not in NATIVE and syntax not in NATIVE and syntax != stored,
        )
        for multipart in ((True, False) if single else (True,))
        for syntax in dict.fromkeys((stored, *syntaxes))
    )


def of_frames(stored: str, *, decodable: bool, lossy: bool, single: bool) -> tuple[Representation, ...]:
    """Forms of frames kept in the syntax `stored`.

    Native pixels are octets in Explicit VR Little Endian. Compressed ones come decoded when that is possible, which
    is the default for lossless ones (PS3.18 8.7.3.3); as they are under their own media type; or as they are as
    octets, for a client that asks for `type="application/octet-stream"; transfer-syntax=*` and reads the syntax from
    the part. What is there without loss also comes compressed without loss, for whoever names it. `single`: one frame
    was asked for, which may come without multipart.
    """
    made = [syntax for syntax in lossless.SYNTAXES if decodable and not lossy and syntax != stored]
    offers: list[Representation] = []
    for multipart in (True, False) if single else (True,):
        decoded = Representation(OCTETS, EXPLICIT_LE, multipart, stored=stored in NATIVE)
        forms = [decoded] if decodable else []
        if stored not in NATIVE:
            own = FRAME_MEDIA_TYPES.get(stored)
            if own is not None:
                forms.insert(0 if lossy else 1, Representation(own, stored, multipart, stored=True))
            forms.append(Representation(OCTETS, stored, multipart, not decodable, stored=True, open_type=own is None))
        forms += [
            Representation(FRAME_MEDIA_TYPES[syntax], syntax, multipart, recompressed=stored not in NATIVE)
            for syntax in made
        ]
        offers += forms
    return tuple(offers)
