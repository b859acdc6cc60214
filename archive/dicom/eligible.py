"""Which stored instances may have a lossy copy at all (REQ-DCM-85): a list of what may, and in doubt not.

Age, holds and `retention.cold` are not here: they are facts of the study (`archive.policy`, `archive.lifecycle`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from archive.dicom import syntaxes
from archive.dicom.codecs import jpeg2000
from archive.dicom.frames import Image, image_in
from archive.dicom.pixels import can_decode
from archive.dicom.source import Source
from archive.dicom.tree import Element
from archive.sections import Quality


class Reason(StrEnum):
    """Why an instance stays without loss: kept with it, counted, shown."""

    NO_PIXELS = "no pixels"
    NO_UID = "no SOP Class or Instance UID"
    SOP_CLASS = "SOP class"  # not one of the images that may be compressed
    MODALITY = "modality"  # excluded whatever the settings say
    NO_GATE = "no gate"  # the settings say no quality for this modality
    ALREADY_LOSSY = "already lossy"
    FLOAT = "float pixels"
    BITS = "bits"  # more than the codec takes, single bits, or bits in unusual places
    COLOUR = "photometric interpretation"
    OVERLAY = "overlay in the pixels"
    CONCATENATION = "concatenation"
    UNREADABLE = "unreadable"
    TINY = "tiny"  # a side below what the codec takes
    CODEC = "codec"  # it cannot be encoded or decoded
    SMALL = "small already"  # without loss it is as small as the lossy copy was to be, or came out
    GATE = "gate"  # a frame is under the floor of its modality


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides, from a data set as it is stored."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    modality: str
    image: Image | None
    high_bit: int | None = None
    lossy: bool = False  # Lossy Image Compression 01, or a ratio or a method of an earlier one
    embedded_overlay: bool = False
    concatenated: bool = False
    body_part: str = ""
    slice_thickness_mm: float | None = None  # the thinnest of its frames
    padding: int | None = None  # Pixel Padding Value


_CLASS: Final = "1.2.840.10008.5.1.4.1.1."
MAY = frozenset(  # CR, DX, CT, MR, US, SC, XA, XRF, 3D X-ray, with their enhanced and converted forms
    _CLASS + number
    for number in (
        "1", "1.1", "1.1.1", "2", "2.1", "2.2", "4", "4.1", "4.3", "4.4", "3.1", "6.1",
        "7", "7.2", "7.3", "7.4", "12.1", "12.1.1", "12.2", "12.2.1", "13.1.1", "13.1.2",
    )
)  # fmt: skip
NEVER = frozenset(  # modalities: breast, quantities, documents, everything that is no picture
    (
        "MG", "BI", "NM", "PT", "ST", "DOC", "SR", "KO", "PR", "SEG", "REG", "FID", "RWV", "PLAN", "RTIMAGE", "RTDOSE",
        "RTPLAN", "RTSTRUCT", "RTRECORD", "RTSEGANN", "RTRAD", "RTINTENT", "TEXTUREMAP", "M3D", "ECG", "EPS", "HD",
        "RESP", "EEG", "EMG", "EOG", "AU", "SMR", "STAIN", "ANN", "TRACT",
    )
)  # fmt: skip
_HEAD = ("HEAD", "BRAIN", "SKULL", "FACE", "ORBIT", "EAR", "IAC", "SINUS", "PITUITARY", "SELLA", "CRANE", "TETE")
THIN_MM = 3.0
CAREFUL_RATIO = 5.0
_MOST_BITS = jpeg2000.MAX_BITS_STORED

_SOP_CLASS, _SOP_INSTANCE, _MODALITY, _BODY_PART, _THICKNESS = (
    0x00080016,
    0x00080018,
    0x00080060,
    0x00180015,
    0x00180050,
)
_CONCATENATION, _HIGH_BIT, _PADDING, _LOSSY, _RATIO, _METHOD = (
    0x00209161, 0x00280102, 0x00280120, 0x00282110, 0x00282112, 0x00282114,
)  # fmt: skip
_LONGEST = 1024


def facts_of(source: Source, elements: list[Element], transfer_syntax_uid: str) -> Facts:
    """The facts of a parsed data set.

    Raises:
        UnreadableInstance: it ends inside a value.
    """
    top = {element.tag: element for element in reversed(elements)}

    def text(tag: int) -> str:
        return _text(source, top.get(tag))

    image = image_in(source, elements)
    known = [one or 0.0 for one in _thicknesses(source, elements)]
    return Facts(
        sop_class_uid=text(_SOP_CLASS),
        sop_instance_uid=text(_SOP_INSTANCE),
        transfer_syntax_uid=transfer_syntax_uid,
        modality=text(_MODALITY),
        image=image,
        high_bit=_number(source, top.get(_HIGH_BIT)),
        lossy=text(_LOSSY) == "01" or bool(text(_RATIO) or text(_METHOD)),
        embedded_overlay=_embedded_overlay(source, top),
        concatenated=bool(text(_CONCATENATION)),
        body_part=text(_BODY_PART).upper(),
        slice_thickness_mm=min(known, default=0.0) or None,
        padding=_number(source, top.get(_PADDING), signed=bool(image and image.signed)),
    )


def excluded(facts: Facts) -> Reason | None:
    """Why this instance may not be compressed with loss, whatever the settings say; None when it may."""
    image = facts.image
    if image is None:
        return Reason.NO_PIXELS
    grey = image.photometric in ("MONOCHROME1", "MONOCHROME2") and image.samples == 1
    colour = image.photometric == "RGB" and image.samples == 3
    allocated, stored = image.bits_allocated, image.bits_stored
    usual = facts.high_bit == stored - 1 and allocated in (8, 16) and 2 <= stored <= min(allocated, _MOST_BITS)
    tests = {
        Reason.NO_UID: not facts.sop_class_uid or not facts.sop_instance_uid,
        Reason.MODALITY: facts.modality in NEVER,
        Reason.SOP_CLASS: facts.sop_class_uid not in MAY,
        Reason.ALREADY_LOSSY: facts.lossy or facts.transfer_syntax_uid in syntaxes.LOSSY,
        Reason.FLOAT: image.tag != 0x7FE00010,
        Reason.OVERLAY: facts.embedded_overlay,
        Reason.CONCATENATION: facts.concatenated,
        Reason.COLOUR: not grey and not colour,
        Reason.BITS: not usual or (colour and (stored != 8 or image.signed == 1)),
        Reason.TINY: min(image.rows, image.columns) < jpeg2000.LEAST_SIDE,
        Reason.CODEC: not can_decode(facts.transfer_syntax_uid),
    }
    return next((reason for reason, found in tests.items() if found), None)


def asked(gate: Quality, facts: Facts) -> Quality:
    """What is asked of the codec for this image: CT of the head, in slices below 3 mm or of unknown thickness, at 5:1
    at most (German consensus of 2008, `docs/lossy.md`)."""
    thickness = facts.slice_thickness_mm
    careful = thickness is None or thickness < THIN_MM or facts.body_part.startswith(_HEAD)
    if facts.modality == "CT" and careful:
        return gate.model_copy(update={"ratio": min(gate.ratio, CAREFUL_RATIO)})
    return gate


def _embedded_overlay(source: Source, top: dict[int, Element]) -> bool:
    """An overlay plane that has no Overlay Data of its own lies in unused bits of the pixels (PS3.3 C.9.2, retired)."""
    groups = {tag >> 16 for tag in top if 0x6000 <= tag >> 16 <= 0x60FF and not tag & 0x10000 and tag & 0xFFFF}
    for group in groups:
        allocated, position = (_number(source, top.get(group << 16 | element)) for element in (0x0100, 0x0102))
        rows = group << 16 | 0x0010 in top
        data = group << 16 | 0x3000 in top
        if (rows and not data) or allocated not in (None, 1) or position not in (None, 0):
            return True
    return False


def _thicknesses(source: Source, elements: list[Element]) -> Iterator[float | None]:
    for element in elements:
        if element.tag == _THICKNESS:
            try:
                millimetres = float(_text(source, element))
            except ValueError:
                yield None
            else:
                yield millimetres if 0 < millimetres < 1000 else None
        elif element.items is not None and element.tag in (0x52009229, 0x52009230, 0x00289110):
            for item in element.items:
                yield from _thicknesses(source, item)


def _text(source: Source, element: Element | None) -> str:
    if element is None or element.length > _LONGEST or element.undefined:
        return ""
    return source.read(element.value, element.length).decode("latin_1").strip(" \0")


def _number(source: Source, element: Element | None, *, signed: bool = False) -> int | None:
    if element is None or element.length < 2 or element.undefined:
        return None
    raw = source.read(element.value, 2)
    return int.from_bytes(raw, "little" if element.encoding.little else "big", signed=signed)
