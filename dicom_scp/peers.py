"""Peers that we open associations to, by their AE title."""

from __future__ import annotations

from archive.core import Archive
from archive.errors import NotFound
from archive.sections import Peer


def peer_of(archive: Archive, ae_title: str) -> Peer:
    """The peer that is called by this AE title. Raises NotFound: the settings know none, or not where it is."""
    peer = archive.settings.dicom.callers().get(ae_title)
    if peer is None or peer.host is None or peer.port is None:
        raise NotFound(f"dicom.peers has no address for {ae_title}")
    return peer
