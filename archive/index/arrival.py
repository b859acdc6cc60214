"""An instance that has arrived: what its header says of it, and of whom it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from archive.authorities import Authorities, identity_key
from archive.dicom.attributes import Level
from archive.dicom.document import KeyObject
from archive.dicom.dose import Dose
from archive.dicom.header import Header
from archive.dicom.patient_id import cx
from archive.instance import Rejection

_QUALIFIERS, _UNIVERSAL_ID = "00100024", "00400032"


@dataclass(frozen=True, slots=True)
class Said:
    """What a document says besides its header."""

    key_object: KeyObject | None = None
    doses: tuple[Dose, ...] = ()  # figures of a radiation dose report

    @property
    def rejects(self) -> bool:
        """Whether it is a rejection note (IHE IOCM)."""
        return self.key_object is not None and self.key_object.title in set(Rejection)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A file that is durable and named, and what is to be said of it."""

    header: Header
    path: str  # relative to its tier
    absolute_path: str
    file_bytes: int
    data_set_offset: int
    digest: str
    source: str
    authorities: Authorities  # who assigns identifiers
    at: datetime
    roots: Mapping[str, str]  # folders of the tiers, to look at copies that are held
    tier: str = "hot"
    said: Said = Said()
    recovered: bool = False  # not sent at this moment: it was acknowledged once, or is found again

    @property
    def patient_id(self) -> str:
        return str(self.header.keys[Level.PATIENT].get("patient_id") or "")

    @property
    def said_issuer(self) -> str:
        """Who assigned the Patient ID, as the header says and the index spells it; "" when it does not say."""
        named = str(self.header.keys[Level.PATIENT].get("issuer") or "")
        qualifiers = self.header.levels[Level.PATIENT].get(_QUALIFIERS)
        oid = ""
        for item in (qualifiers or {}).get("Value") or ():
            oid = str(next(iter(item.get(_UNIVERSAL_ID, {}).get("Value") or ()), "") or "")
            break
        return self.authorities.issuer(named, oid) if named or oid else ""

    @property
    def issuer(self) -> str:
        """Who assigned the Patient ID, or is assumed to; "" when nobody is."""
        return self.said_issuer or self.authorities.assumed

    @property
    def patient_cx(self) -> str:
        """The patient as an audit row names it."""
        return cx(self.patient_id, self.issuer)

    @property
    def identity_key(self) -> str:
        """What makes two headers the same patient; without an ID, everyone in one study (REQ-DCM-17)."""
        if not self.patient_id:
            return f"study:{self.header.study_instance_uid}"
        return identity_key(self.patient_id, self.issuer)
