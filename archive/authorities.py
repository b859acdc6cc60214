"""Who assigned an identifier: every spelling of an authority as one (REQ-HL7-P1). Pure.

DICOM names it in Issuer of Patient ID (0010,0021), HL7 in CX-4 as namespace, OID or both. The index keeps one spelling,
the issuer: the namespace of the configured authority, else what was received.
"""

from __future__ import annotations

from collections.abc import Iterable

from archive.config import Settings
from archive.sections import Authority


class Authorities:
    """The configured authorities, the practice's own first."""

    def __init__(self, configured: Iterable[Authority], *, default_issuer: str = "") -> None:
        self._all = tuple(configured)
        self._by_oid: dict[str, Authority] = {}
        self._by_name: dict[str, Authority] = {}
        for one in reversed(self._all):
            for spelling in (*one.aliases, one.oid):
                if spelling:
                    self._by_oid[spelling] = one
            for spelling in (*one.aliases, one.finess, one.namespace):
                if spelling:
                    self._by_name[spelling.casefold()] = one
        self._by_sender = {sender: one for one in reversed(self._all) for sender in one.default_for}
        self._default_issuer = default_issuer

    def find(self, namespace: str = "", universal_id: str = "") -> Authority | None:
        """The authority that is meant: by its universal ID where that is known, else by its namespace."""
        if universal_id in self._by_oid:
            return self._by_oid[universal_id]
        named = self._by_name.get(namespace.casefold())
        # both have a universal ID and they differ: somebody else with the same name
        return None if named is not None and universal_id and named.oid else named

    def issuer(self, namespace: str = "", universal_id: str = "") -> str:
        """The one spelling that the index keeps; "" when nothing is named."""
        known = self.find(namespace, universal_id)
        return known.namespace if known is not None else namespace or universal_id

    def default_of(self, sender: str) -> Authority | None:
        """The authority of identifiers that a sender (`MSH-3|MSH-4`) leaves without one."""
        return self._by_sender.get(sender)

    @property
    def assumed(self) -> str:
        """The issuer of IDs in images that name none: `dicom.default_issuer`, else the one trusted authority."""
        if self._default_issuer:
            return self.issuer(self._default_issuer)
        trusted = [one for one in self._all if one.trusted]
        return trusted[0].namespace if len(trusted) == 1 else ""

    def oid_of(self, issuer: str) -> str:
        """The OID of an issuer, "" when it has none."""
        known = self.find(issuer)
        return known.oid if known is not None else ""


def authorities_of(settings: Settings) -> Authorities:
    """Those of these settings."""
    return Authorities(settings.hl7.authorities, default_issuer=settings.dicom.default_issuer)


def identity_key(patient_id: str, issuer: str) -> str:
    """What makes two identifiers the same: the length says where the issuer ends, whatever characters either holds."""
    return f"id:{len(issuer)}:{issuer}:{patient_id}"
