"""Which site an exam belongs to: it decides how long the study is kept (sheet 00 §8, rule 1). And what came from others
by a sharing network. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from archive.network import Sharing
from archive.sections import OneSite

_NETWORK = "network:"


def site_of(
    sites: Sequence[OneSite], *, source: str = "", stations: Sequence[str] = (), institutions: Sequence[str] = ()
) -> OneSite:
    """The site of an exam, by the calling AE title of its first instance (`source` is `network:` and that title), else
    by Station Name, else by Institution Name, as its series name them, else the first of `sites`.
    """
    title = source.removeprefix(_NETWORK).strip() if source.startswith(_NETWORK) else ""
    for site in sites if title else ():
        if title in {aet.strip() for aet in site.aets}:
            return site
    for station in stations:
        for site in sites:
            if station and station in site.stations:
                return site
    for institution in institutions:
        for site in sites:
            if institution and institution.casefold() == site.name.casefold():
                return site
    return sites[0]


def is_imported(sharing: Sharing, source: str) -> bool:
    """Whether a DRIMbox brought an instance (REQ-DRIM-08): by its AE title, by STOW-RS with its token, or, after the
    index was made anew, as its file says (`recovered:`)."""
    door, _, name = source.partition(":")
    if door == "web":
        return name in sharing.imports_by
    return door in ("network", "recovered") and name.strip() in sharing.imports_from
