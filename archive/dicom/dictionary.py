"""The data dictionary (PS3.6), as pydicom has it.

pydicom is loaded when the first element is looked up: it takes 40 MB and half a second, and a process that meets no
image (the listener for HL7, the retention that has nothing to do) never needs it.
"""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=4096)
def public_vr(tag: int) -> str:
    """The VR of a standard element; UN when the dictionary does not know it. May be ambiguous, as "US or SS"."""
    if tag & 0xFFFF == 0:
        return "UL"
    from pydicom.datadict import dictionary_VR

    try:
        return str(dictionary_VR(tag))
    except KeyError:
        return "UN"


@lru_cache(maxsize=4096)
def private_vr(tag: int, creator: str) -> str:
    """The VR of a private element by its creator; UN when nobody told."""
    from pydicom.datadict import private_dictionary_VR

    try:
        return str(private_dictionary_VR(tag, creator)) if creator else "UN"
    except KeyError:
        return "UN"


@lru_cache(maxsize=4096)
def holds_several(tag: int) -> bool:
    """Whether a standard element may have more than one value (its VM, PS3.6 §6)."""
    from pydicom.datadict import dictionary_VM

    try:
        return dictionary_VM(tag) != "1"
    except KeyError:
        return False


def tag_of(keyword: str) -> int | None:
    """The tag of a standard element; None: no such keyword."""
    from pydicom.datadict import tag_for_keyword

    return tag_for_keyword(keyword)


def keyword_of(tag: int) -> str:
    """The keyword of a standard element; "" when the dictionary does not know it."""
    from pydicom.datadict import keyword_for_tag

    return keyword_for_tag(tag)


def name_of_uid(uid: str) -> str:
    """What PS3.6 calls a registered UID; the UID itself when it is not registered."""
    from pydicom.uid import UID

    return UID(uid).name
