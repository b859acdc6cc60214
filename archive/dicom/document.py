"""What a key object says of other instances (PS3.3 A.35.4, PS3.16 TID 2010; IHE KIN, IOCM). Pure reading, bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from archive.dicom.charset import SPECIFIC_CHARACTER_SET, terms
from archive.dicom.elements import MAX_NESTING, encoding_of
from archive.dicom.json import JsonReader
from archive.dicom.source import Source
from archive.dicom.tree import top_level, unfold
from archive.errors import UnreadableInstance
from archive.instance import Rejection

# Titles of CID 7010 that select nothing: rejections, and manifests.
NO_SELECTION: Final = frozenset({*Rejection, "113030", "113031"})
MAX_BYTES: Final = 16 << 20  # of a document; some ten thousand references, some thousand irradiation events
_TITLE, _EVIDENCE, _OTHER_EVIDENCE, _CONTENT = 0x0040A043, 0x0040A375, 0x0040A385, 0x0040A730
_TEMPLATE = 0x0040A504
_READ: Final = frozenset({SPECIFIC_CHARACTER_SET, _TITLE, _EVIDENCE, _OTHER_EVIDENCE, _CONTENT, _TEMPLATE})

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reference:
    """One instance that a document names. `frames`: of a multi-frame image, as `1,3`; "" is all of it. `shows`: of a
    presentation state, the image that the document wants seen through it."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    frames: str = ""
    shows: str = ""


@dataclass(frozen=True, slots=True)
class KeyObject:
    """A key object: its title, what its content selects, and everything that it names at all."""

    title: str  # Code Value of the document title, of scheme DCM; "" for a title of another scheme
    selected: tuple[Reference, ...]
    named: tuple[Reference, ...]


def key_object(content: Json, *, study_instance_uid: str) -> KeyObject:
    """A key object from the DICOM JSON of its content (`read_content`).

    What the content names is found in the evidence; what is missing there is taken to be of the document's own study.
    """
    evidence = {one.sop_instance_uid: one for one in _evidence(content)}
    selected: dict[tuple[str, str, str], Reference] = {}
    for named in _named(items_of(content, "0040A730"), 0):
        known = evidence.get(named.sop_instance_uid)
        study = known.study_instance_uid if known else study_instance_uid
        series = known.series_instance_uid if known else ""
        one = Reference(study, series, named.sop_class_uid, named.sop_instance_uid, named.frames, named.shows)
        selected.setdefault((one.sop_instance_uid, one.shows, one.frames), one)
    others = {one.sop_instance_uid: one for one in selected.values() if one.sop_instance_uid not in evidence}
    title = code_of(content, "0040A043")
    return KeyObject(
        title=title[0] if title[1] == "DCM" else "",
        selected=tuple(selected.values()),
        named=(*evidence.values(), *others.values()),
    )


def _evidence(content: Json) -> Iterator[Reference]:
    """Hierarchical SOP Instance References (PS3.3 C.17.2.1)."""
    for tag in (_EVIDENCE, _OTHER_EVIDENCE):
        for of_study in items_of(content, f"{tag:08X}"):
            study = uid_of(of_study, "0020000D")
            for of_series in items_of(of_study, "00081115"):
                series = uid_of(of_series, "0020000E")
                for one in items_of(of_series, "00081199"):
                    if uid := uid_of(one, "00081155"):
                        yield Reference(study, series, uid_of(one, "00081150"), uid)


def _named(content: Sequence[Json], depth: int) -> Iterator[Reference]:
    """What content items name, in their order; a presentation state behind its image (PS3.3 C.18.4)."""
    if depth > MAX_NESTING:
        return
    for item in content:
        for one in items_of(item, "00081199"):
            uid = uid_of(one, "00081155")
            if not uid:
                continue
            frames = ",".join(str(number) for number in values_of(one, "00081160"))
            yield Reference("", "", uid_of(one, "00081150"), uid, frames)
            for view in items_of(one, "00081199"):
                if shown_with := uid_of(view, "00081155"):
                    yield Reference("", "", uid_of(view, "00081150"), shown_with, shows=uid)
        yield from _named(items_of(item, "0040A730"), depth + 1)


def read_content(
    fd: int, *, offset: int, length: int, transfer_syntax_uid: str, default_charset: str, max_bytes: int = MAX_BYTES
) -> Json:
    """Title, template, evidence and content of a document, as DICOM JSON. Sequences that cannot be followed are absent.

    Raises:
        UnreadableInstance: its elements cannot be followed, or it is longer than `max_bytes`.
    """
    if length > max_bytes:
        raise UnreadableInstance(f"a document of more than {max_bytes} bytes is not read")
    encoding = encoding_of(transfer_syntax_uid)
    source = Source(fd, offset=offset, length=length, deflated=encoding.deflated)
    if source.end() > max_bytes:
        raise UnreadableInstance(f"a document of more than {max_bytes} bytes is not read")
    elements = [element for element in top_level(source, encoding) if element.tag in _READ]
    charsets: tuple[str, ...] = ()
    for element in elements:
        unfold(source, element)
        if element.tag == SPECIFIC_CHARACTER_SET:
            charsets = terms(source.read(element.value, element.length))
    reader = JsonReader(source, charsets or (default_charset,), fallback=default_charset)
    return reader.data_set([one for one in elements if one.vr != "SQ" or one.items is not None])


def items_of(data_set: Json, key: str) -> Sequence[Json]:
    """The items of a sequence in DICOM JSON."""
    found = data_set.get(key)
    return [one for one in (found or {}).get("Value", ()) if isinstance(one, Mapping)]


def values_of(data_set: Json, key: str) -> Sequence[Any]:
    """The values of an attribute in DICOM JSON that are not empty."""
    return [one for one in (data_set.get(key) or {}).get("Value", ()) if one is not None]


def text_of(data_set: Json, key: str) -> str:
    """The first value of an attribute as text that a database can keep; "" without one."""
    return next((str(one).replace("\0", "").strip() for one in values_of(data_set, key)), "")


def uid_of(data_set: Json, key: str) -> str:
    """The first value of an attribute as a UID, no longer than one can be (PS3.5 §9)."""
    return text_of(data_set, key)[:64]


def code_of(data_set: Json, key: str) -> tuple[str, str, str]:
    """The first item of a code sequence: value, scheme, meaning; "" for what is missing."""
    one = next(iter(items_of(data_set, key)), {})
    return text_of(one, "00080100"), text_of(one, "00080102"), text_of(one, "00080104")
