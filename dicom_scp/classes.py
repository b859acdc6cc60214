"""What is negotiated: SOP classes and transfer syntaxes (tables 2.1 and 2.2 of sheet 10). Plain UIDs.

Storage classes are pynetdicom's list of the standard, plus the retired ones that old studies hold.
"""

from __future__ import annotations

from enum import StrEnum

from pydicom.uid import UID
from pynetdicom.presentation import AllStoragePresentationContexts

from archive.dicom.syntaxes import DEFLATED_LE, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, JPEG, RLE

VERIFICATION = "1.2.840.10008.1.1"
STORAGE_SERVICE_CLASS = "1.2.840.10008.4.2"

# Syntaxes of commands' data sets, and those into which a stored data set may be turned on the way out.
PLAIN = (EXPLICIT_LE, IMPLICIT_LE)

# Accepted for storage, as received (REQ-DCM-12). pydicom 3.0.2 does not know all of them: here they are only names.
STORAGE_SYNTAXES = frozenset(
    {
        IMPLICIT_LE,
        EXPLICIT_LE,
        DEFLATED_LE,
        EXPLICIT_BE,
        "1.2.840.10008.1.2.1.98",  # encapsulated uncompressed
        RLE,
        "1.2.840.10008.1.2.8.1",  # deflated image frame
        *(JPEG + str(number) for number in range(50, 67)),  # JPEG, with the retired processes
        JPEG + "70",
        JPEG + "80",  # JPEG-LS
        JPEG + "81",
        *(JPEG + str(number) for number in range(90, 94)),  # JPEG 2000, parts 1 and 2
        *(JPEG + str(number) for number in range(100, 109)),  # MPEG-2, H.264, HEVC
        *(f"{JPEG}{number}.1" for number in range(100, 107)),  # their fragmentable forms
        *(JPEG + str(number) for number in range(110, 113)),  # JPEG XL
        *(JPEG + str(number) for number in range(201, 204)),  # HTJ2K
    }
)

_PREFIX = "1.2.840.10008.5.1.4.1.1."
_NEW = {  # in the standard since 2024, should the list be an older one
    "66.7": "Label Map Segmentation Storage",
    "66.8": "Height Map Segmentation Storage",
    "88.76": "Enhanced X-Ray Radiation Dose SR Storage",
}
_RETIRED = {
    "3",  # ultrasound multi-frame
    "5",  # nuclear medicine
    "6",  # ultrasound
    "8",  # standalone overlay
    "9",  # standalone curve
    "9.1",  # waveform, trial
    "10",  # standalone modality LUT
    "11",  # standalone VOI LUT
    "12.3",  # X-ray angiographic bi-plane
    "77.1",  # VL image, trial
    "77.2",  # VL multi-frame image, trial
    "88.1",  # text SR, trial
    "88.2",  # audio SR, trial
    "88.3",  # detail SR, trial
    "88.4",  # comprehensive SR, trial
    "129",  # standalone PET curve
}
STORAGE_CLASSES = frozenset(
    {
        *(str(context.abstract_syntax) for context in AllStoragePresentationContexts),
        *(_PREFIX + suffix for suffix in _NEW.keys() | _RETIRED),
    }
)
# What PS3.6 calls those that pydicom 3.0.2 does not know.
NAMES = {_PREFIX + suffix: name for suffix, name in _NEW.items()} | {
    _PREFIX + "9.100.1": "Waveform Presentation State Storage",
    _PREFIX + "9.100.2": "Waveform Acquisition Presentation State Storage",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
    JPEG + "110": "JPEG XL Lossless",
    JPEG + "111": "JPEG XL JPEG Recompression",
    JPEG + "112": "JPEG XL",
}


class Service(StrEnum):
    """What is done on a presentation context."""

    VERIFICATION = "verification"
    STORAGE = "storage"
    FIND = "find"
    MOVE = "move"
    GET = "get"
    COMMITMENT = "commitment"
    WORKLIST = "worklist"
    MPPS = "mpps"


_ROOTS = {"patient": "1.2.840.10008.5.1.4.1.2.1.", "study": "1.2.840.10008.5.1.4.1.2.2."}
PATIENT_ROOT = frozenset(_ROOTS["patient"] + last for last in "123")

# Single instances by their UID (PS3.4 Annexes Y and Z); the last one without pixels and other bulk data.
COMPOSITE_MOVE = "1.2.840.10008.5.1.4.1.2.4.2"
COMPOSITE_GET = "1.2.840.10008.5.1.4.1.2.4.3"
WITHOUT_BULK_GET = "1.2.840.10008.5.1.4.1.2.5.3"
COMPOSITE = frozenset({COMPOSITE_MOVE, COMPOSITE_GET, WITHOUT_BULK_GET})

QUERY_RETRIEVE: dict[str, Service] = {
    root + last: service
    for root in _ROOTS.values()
    for last, service in (("1", Service.FIND), ("2", Service.MOVE), ("3", Service.GET))
} | {COMPOSITE_MOVE: Service.MOVE, COMPOSITE_GET: Service.GET, WITHOUT_BULK_GET: Service.GET}
COMMITMENT_PUSH = "1.2.840.10008.1.20.1"
MODALITY_WORKLIST_FIND = "1.2.840.10008.5.1.4.31"
MODALITY_PERFORMED_PROCEDURE_STEP = "1.2.840.10008.3.1.2.3.3"
WORKFLOW = {
    COMMITMENT_PUSH: Service.COMMITMENT,
    MODALITY_WORKLIST_FIND: Service.WORKLIST,
    MODALITY_PERFORMED_PROCEDURE_STEP: Service.MPPS,
}


def service_of(abstract_syntax: str, *, announced: str = "", unknown_is_storage: bool = False) -> Service | None:
    """The service of an abstract syntax; None: not one of ours.

    `announced` is the service class that the peer's SOP class common extended negotiation gives (REQ-DCM-07);
    `unknown_is_storage` the switch `dicom.unknown_sop_classes`.
    """
    if abstract_syntax in STORAGE_CLASSES:
        return Service.STORAGE
    if abstract_syntax == VERIFICATION:
        return Service.VERIFICATION
    if abstract_syntax in QUERY_RETRIEVE:
        return QUERY_RETRIEVE[abstract_syntax]
    if abstract_syntax in WORKFLOW:
        return WORKFLOW[abstract_syntax]
    if announced == STORAGE_SERVICE_CLASS or (unknown_is_storage and not _known_otherwise(abstract_syntax)):
        return Service.STORAGE
    return None


def _known_otherwise(abstract_syntax: str) -> bool:
    """Whether the standard gives this UID a meaning: printing, worklists, objects without a patient…"""
    return UID(abstract_syntax).name != abstract_syntax


def choose_syntax(service: Service, proposed: tuple[str, ...]) -> str | None:
    """The transfer syntax to accept out of those proposed; None: none of ours.

    The proposer's first choice, since only it knows what it holds, with one exception: among uncompressed ones
    explicit little endian, which alone keeps the VR of private elements.
    """
    known = STORAGE_SYNTAXES if service is Service.STORAGE else frozenset(PLAIN)
    offered = [syntax for syntax in proposed if syntax in known]
    if not offered:
        return None
    uncompressed = (*PLAIN, EXPLICIT_BE)
    if offered[0] in uncompressed:
        return next(syntax for syntax in uncompressed if syntax in offered)
    return offered[0]
