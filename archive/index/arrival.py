"""An instance that has arrived: what its header says of it, and of whom it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from archive.authorities import Authorities, identity_key
from archive.dicom.attributes import Level
from archive.dicom.document import KeyObject
from archive.dicom.dose import Dose
from archive.dicom.header import Header
from archive.dicom.patient_id import cx
from archive.instance import Outcome, Rejection

RECOVERED = "recovered:"  # the `source` of a file that was found; then the AE title in its group 0002
_QUALIFIERS, _UNIVERSAL_ID = "00100024", "00400032"
_SIZE = ("00280010", "00280011")  # Rows, Columns: type 1 of every image (PS3.3 C.7.6.3)


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
class Notify:
    """When peers are to be told of a study, if no more images come: not before `after`, and at `at`. Real time.

    Its row is only written when what it says is before `after`: not for every image.
    """

    after: datetime
    at: datetime


@dataclass(frozen=True)
class Claim:
    """What something says of whom it is: an image by its header, a performed procedure step by its attributes."""

    patient: Mapping[str, Any]  # DICOM JSON of its patient's attributes
    keys: Mapping[str, str | int | None]  # the same as columns of `patient`, normalised
    study_instance_uid: str
    accession_number: str
    source: str
    authorities: Authorities  # who assigns identifiers
    at: datetime
    ins: tuple[str, ...] = ()  # `value^OID` by which whoever shared it names its patient (REQ-DRIM-08)

    @cached_property
    def patient_id(self) -> str:
        return str(self.keys.get("patient_id") or "")

    @cached_property
    def said_issuer(self) -> str:
        """Who assigned the Patient ID, as it says and the index spells it; "" when it does not say."""
        named = str(self.keys.get("issuer") or "")
        qualifiers = self.patient.get(_QUALIFIERS)
        oid = ""
        for item in (qualifiers or {}).get("Value") or ():
            oid = str(next(iter(item.get(_UNIVERSAL_ID, {}).get("Value") or ()), "") or "")
            break
        return self.authorities.issuer(named, oid) if named or oid else ""

    @cached_property
    def issuer(self) -> str:
        """Who assigned the Patient ID, or is assumed to; "" when nobody is."""
        return self.said_issuer or self.authorities.assumed

    @property
    def patient_cx(self) -> str:
        """The patient as an audit row names it."""
        return cx(self.patient_id, self.issuer)

    @property
    def identity_key(self) -> str:
        """What makes two of them the same patient; without an ID, everyone in one study (REQ-DCM-17)."""
        if not self.patient_id:
            return f"study:{self.study_instance_uid}"
        return identity_key(self.patient_id, self.issuer)


@dataclass(frozen=True)
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
    notify: Notify | None = None  # None: no peer is to be told
    ins: tuple[str, ...] = ()  # the INS that its Patient ID may be, of what a sharing network brought

    @property
    def source_ae(self) -> str:
        """Who sent a file that was found, as its group 0002 says; "" when it does not, or it was not found."""
        return self.source.removeprefix(RECOVERED) if self.source.startswith(RECOVERED) else ""

    @cached_property
    def claim(self) -> Claim:
        """Whose it is, by its header."""
        return Claim(
            patient=self.header.levels[Level.PATIENT],
            keys=self.header.keys[Level.PATIENT],
            study_instance_uid=self.header.study_instance_uid,
            accession_number=str(self.header.keys[Level.STUDY].get("accession_number") or ""),
            source=self.source,
            authorities=self.authorities,
            at=self.at,
            ins=self.ins,
        )

    @property
    def patient_cx(self) -> str:
        """The patient as an audit row names it."""
        return self.claim.patient_cx

    @property
    def irregularity(self) -> Outcome | None:
        """The rule of its SOP class that its header breaks, if any: stored all the same (B007)."""
        header = self.header
        if header.truncated:
            return Outcome.TRUNCATED
        if not header.keys[Level.SERIES].get("modality"):
            return Outcome.WITHOUT_MODALITY
        said = header.levels[Level.IMAGE]
        if header.pixel_offset is not None and not all((said.get(key) or {}).get("Value") for key in _SIZE):
            return Outcome.WITHOUT_SIZE
        return None

    @property
    def identity_key(self) -> str:
        """What makes two headers the same patient."""
        return self.claim.identity_key
