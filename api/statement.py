"""What the conformance statement says of DICOMweb (PS3.2, PS3.18 §6), from the tables that the port works by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from api import accept, described, rendered, stow
from api.capabilities import RESOURCES
from archive.config import Settings
from archive.dicom import lossless, syntaxes
from archive.dicom.attributes import ATTRIBUTES, Level
from archive.dicom.dictionary import name_of_uid
from archive.dicom.viewport import ENLARGED_PIXELS
from archive.index.computed import COMPUTED
from archive.index.query import matchable

_PARAMETERS = (
    ("`{attribute}={value}`", "keyword or tag, in sequences with a point: matching as of C-FIND, below"),
    ("`includefield`", "attributes by keyword or tag, several by a comma; `all`"),
    ("`limit` `offset`", "pages in a stable order; how many more there are is in a Warning"),
    ("`fuzzymatching`", "names are folded always; true: components that begin so match too"),
    ("`emptyvaluematching`", '`""` asks for what has no value (PS3.4 C.2.2.2.7)'),
    ("`multiplevaluematching`", "each of the values has to be there (PS3.4 C.2.2.2.8)"),
    ("`strict`", "ours: what is not done is 400 instead of Warning 299"),
)
_REASONS = (
    (f"{stow.OUT_OF_RESOURCES:04X}", "out of resources"),
    ("A900", "a UID is missing, or another than announced"),
    (f"{stow.OTHER_STUDY:04X}", "another study than the one of the address"),
    ("C001", "not readable; metadata that are none, bulk data or frames that did not come"),
    (f"{stow.ANOTHER_CONTENT:04X}", "other content under a known SOP Instance UID"),
    ("C0F2", "purged, or rejected at the end of its retention"),
    ("C0F3", "rejected before (113037, 113038)"),
    ("0122", "not supported"),
    ("0124", "a rejection note from somebody who may not reject"),
    (f"{stow.NOT_DICOM:04X}", "not a part that is taken in"),
    *((f"{code:04X}", f"stored; {outcome.value}") for outcome, code in stow.WARNINGS.items()),
)


def statement(settings: Settings) -> str:
    """The chapter, in Markdown."""
    return "\n".join(_lines(settings))


def _lines(settings: Settings) -> Iterator[str]:
    yield "## DICOMweb"
    yield ""
    yield "Under `/dicom-web`; WADO-URI at `/wado`. `OPTIONS` tells the same of any resource, as WADL or JSON."
    yield ""
    yield from _table(
        ("resource", "method", "transaction", "takes", "gives"),
        (
            (f"`{path}`", one.name, one.transaction, _codes(one.takes), _codes(one.gives))
            for path, methods in RESOURCES.items()
            for one in methods
        ),
    )
    yield "### Transfer syntaxes given over DICOMweb"
    yield ""
    compressed = ", ".join(f"{name_of_uid(uid)} ({uid})" for uid in lossless.SYNTAXES)
    frames = ", ".join(f"{accept.FRAME_MEDIA_TYPES[uid]} ({uid})" for uid in lossless.SYNTAXES)
    yield (
        f"As stored (`transfer-syntax=*`); Explicit VR Little Endian when none is named, as stored where pixels are "
        f"lossy or no decoder takes them; by name also Implicit VR Little Endian, {compressed}. Never with a new loss, "
        "else 406. The highest q decides; what is stored compressed and accepted so is not compressed anew. "
        f"Explicit VR Big Endian ({syntaxes.EXPLICIT_BE}) is never given, HTJ2K only of what is stored so. Frames: "
        f"decoded, or as stored under {', '.join(dict.fromkeys(accept.FRAME_MEDIA_TYPES.values()))}; of what is stored "
        f"without loss also compressed frame by frame, when it is named: {frames}."
    )
    yield ""
    yield "### Searching"
    yield ""
    yield from _table(("parameter", "meaning"), _PARAMETERS)
    for level, title in ((Level.STUDY, "studies"), (Level.SERIES, "series"), (Level.IMAGE, "instances")):
        own = {level, Level.PATIENT} if level is Level.STUDY else {level}
        keys = sorted(
            [one.keyword for one in ATTRIBUTES if one.tag in matchable(level) and one.level in own]
            + [one.keyword for one in COMPUTED if one.tag in matchable(level) and one.level in own]
        )
        yield f"Keys of {title}, besides those of the levels above: {', '.join(keys)}."
        yield ""
    yield f"An answer has at most {settings.dicom.find_limit} results. Status codes: 200, 204, 400, 401, 403, 406, 503."
    yield ""
    yield "### Storing"
    yield ""
    yield (
        "What comes as application/dicom is stored as it comes, and corrected on the way out. What comes as metadata "
        "and bulk data is stored in Explicit VR Little Endian, or as its pixels came, in ISO_IR 192; metadata up to "
        f"{described.METADATA_BYTES >> 20} MiB, bulk data of any size. Status codes: 200, 202, 400, 401, 403, 406, "
        "409, 413, 415, 503, 507."
    )
    yield ""
    yield from _table(("reason", "meaning"), _REASONS)
    yield "### Retrieving"
    yield ""
    yield (
        "Status codes: 200, 206 (some of it, or a range), 304, 400, 401, 403, 404, 406, 410 (purged, rejected, or "
        "replaced, with a Link to what stands for it), 416, 503. Rendered: `window` (linear), `viewport` (with region "
        f"and flips; enlarged to {ENLARGED_PIXELS} pixels at most), `quality`, `annotation` (patient, technique); "
        f"thumbnails of {rendered.THUMBNAIL_PIXELS} pixels, nothing burnt in. "
        "ETag and If-None-Match where images are given; Range on bulk data and on instances that leave as they lie. "
        "WADO-URI: contentType application/dicom, image/jpeg, image/png; anonymize and presentationUID are refused. "
        "Not there: UPS-RS, Storage Commitment over DICOMweb."
    )
    yield ""
    yield "### Deleting"
    yield ""
    yield (
        "DELETE is no transaction of PS3.18. It is refused with its reasons (409) while the law or a hold keeps a "
        "study, and else files a rejection note (IHE IOCM); no file is removed by it."
    )
    yield ""


def _codes(media_types: Iterable[str]) -> str:
    return ", ".join(f"`{one}`" for one in media_types)


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""
