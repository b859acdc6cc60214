"""Manifests by which a DRIMbox asks for images (key object selections, DRIM-M): what they list (REQ-DRIM-30)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from archive.core import Archive
from archive.errors import NotFound
from archive.outgoing import outgoing
from archive.retrieve import Stored, select

_KEY_OBJECT = "1.2.840.10008.5.1.4.1.1.88.59"
_LEVELS = ("0040A375", "00081115", "00081199")  # evidence: studies, their series, their instances


def only_listed(archive: Archive, stored: list[Stored], manifest_uid: str) -> list[Stored]:
    """Those of these instances that the manifest lists.

    Raises:
        NotFound: no such manifest is kept here, or it lists none of them.
        StorageFailed, UnreadableInstance: it cannot be read.
    """
    found = [one for one in select(archive, instance_uids=[manifest_uid]) if one.sop_class_uid == _KEY_OBJECT]
    if not found:
        raise NotFound("no such manifest")
    listed = set(_instances(outgoing(archive, found[0]).metadata(lambda path: path), _LEVELS))
    allowed = [one for one in stored if one.sop_instance_uid in listed]
    if not allowed:
        raise NotFound("the manifest lists none of this")
    return allowed


def _instances(item: Mapping[str, Any], levels: tuple[str, ...]) -> Iterator[str]:
    if not levels:
        yield from item.get("00081155", {}).get("Value", ())
        return
    for inner in item.get(levels[0], {}).get("Value", ()):
        yield from _instances(inner, levels[1:])
