"""The attributes that the index keeps, by level: one table for reception, C-FIND, QIDO-RS and the statement.

Each level's row in the index holds `attributes`: the DICOM JSON (PS3.18 Annex F) of these attributes as received,
in Unicode, which is what queries give back; and, for those with a `column`, the normalised key that SQL matches.
Keys of sheet 10 §3.1 and PS3.4 C.6; required ones are marked.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum


class Level(StrEnum):
    """Query/Retrieve levels, from the root down (PS3.4 C.6.1.1)."""

    PATIENT = "PATIENT"
    STUDY = "STUDY"
    SERIES = "SERIES"
    IMAGE = "IMAGE"


LEVELS: tuple[Level, ...] = tuple(Level)


class Match(Enum):
    """How the `column` of an attribute is normalised, and so how it is matched (PS3.4 C.2.2.2)."""

    NONE = "returned only; matched row by row"
    TEXT = "as it is, without padding"
    NAME = "folded person name: archive.dicom.person_name.fold"
    DATE = "YYYYMMDD; NULL when the value is not a date"
    TIME = "HHMMSS.FFFFFF; NULL when the value is not a time"
    UID = "exact"
    INTEGER = "a number; NULL when it is not one"


@dataclass(frozen=True, slots=True)
class Attribute:
    """One indexed attribute."""

    keyword: str
    tag: int
    vr: str
    level: Level
    column: str | None = None
    match: Match = Match.NONE
    required: bool = False

    @property
    def key(self) -> str:
        """The name in DICOM JSON: eight hexadecimal digits."""
        return f"{self.tag:08X}"


P, ST, SE, IM = Level.PATIENT, Level.STUDY, Level.SERIES, Level.IMAGE
M = Match
ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute("PatientName", 0x00100010, "PN", P, "patient_name", M.NAME, required=True),
    Attribute("PatientID", 0x00100020, "LO", P, "patient_id", M.TEXT, required=True),
    Attribute("IssuerOfPatientID", 0x00100021, "LO", P, "issuer", M.TEXT),
    Attribute("IssuerOfPatientIDQualifiersSequence", 0x00100024, "SQ", P),
    Attribute("PatientBirthDate", 0x00100030, "DA", P, "birth_date", M.DATE),
    Attribute("PatientSex", 0x00100040, "CS", P, "sex", M.TEXT),
    Attribute("OtherPatientIDsSequence", 0x00101002, "SQ", P),
    Attribute("OtherPatientNames", 0x00101001, "PN", P),
    Attribute("PatientComments", 0x00104000, "LT", P),
    Attribute("StudyDate", 0x00080020, "DA", ST, "study_date", M.DATE, required=True),
    Attribute("StudyTime", 0x00080030, "TM", ST, "study_time", M.TIME, required=True),
    Attribute("AccessionNumber", 0x00080050, "SH", ST, "accession_number", M.TEXT, required=True),
    Attribute("IssuerOfAccessionNumberSequence", 0x00080051, "SQ", ST),
    Attribute("StudyID", 0x00200010, "SH", ST, "study_id", M.TEXT, required=True),
    Attribute("StudyInstanceUID", 0x0020000D, "UI", ST, "study_instance_uid", M.UID, required=True),
    Attribute("ReferringPhysicianName", 0x00080090, "PN", ST, "referring_physician_name", M.NAME, required=True),
    Attribute("StudyDescription", 0x00081030, "LO", ST, "study_description", M.TEXT),
    Attribute("ProcedureCodeSequence", 0x00081032, "SQ", ST),
    Attribute("NameOfPhysiciansReadingStudy", 0x00081060, "PN", ST),
    Attribute("AdmittingDiagnosesDescription", 0x00081080, "LO", ST),
    Attribute("PatientAge", 0x00101010, "AS", ST),
    Attribute("PatientSize", 0x00101020, "DS", ST),
    Attribute("PatientWeight", 0x00101030, "DS", ST),
    Attribute("TimezoneOffsetFromUTC", 0x00080201, "SH", ST),
    Attribute("Modality", 0x00080060, "CS", SE, "modality", M.TEXT, required=True),
    Attribute("SeriesNumber", 0x00200011, "IS", SE, "series_number", M.INTEGER, required=True),
    Attribute("SeriesInstanceUID", 0x0020000E, "UI", SE, "series_instance_uid", M.UID, required=True),
    Attribute("SeriesDescription", 0x0008103E, "LO", SE, "series_description", M.TEXT),
    Attribute("BodyPartExamined", 0x00180015, "CS", SE, "body_part_examined", M.TEXT),
    Attribute("SeriesDate", 0x00080021, "DA", SE),
    Attribute("SeriesTime", 0x00080031, "TM", SE),
    Attribute("PerformedProcedureStepStartDate", 0x00400244, "DA", SE, "pps_start_date", M.DATE, required=True),
    Attribute("PerformedProcedureStepStartTime", 0x00400245, "TM", SE, "pps_start_time", M.TIME, required=True),
    Attribute("RequestAttributesSequence", 0x00400275, "SQ", SE, required=True),
    Attribute("StationName", 0x00081010, "SH", SE),
    Attribute("Manufacturer", 0x00080070, "LO", SE),
    Attribute("InstitutionName", 0x00080080, "LO", SE),
    Attribute("Laterality", 0x00200060, "CS", SE),
    Attribute("InstanceNumber", 0x00200013, "IS", IM, "instance_number", M.INTEGER, required=True),
    Attribute("SOPInstanceUID", 0x00080018, "UI", IM, "sop_instance_uid", M.UID, required=True),
    Attribute("SOPClassUID", 0x00080016, "UI", IM, "sop_class_uid", M.UID, required=True),
    Attribute("Rows", 0x00280010, "US", IM),
    Attribute("Columns", 0x00280011, "US", IM),
    Attribute("BitsAllocated", 0x00280100, "US", IM),
    Attribute("NumberOfFrames", 0x00280008, "IS", IM),
    Attribute("ConceptNameCodeSequence", 0x0040A043, "SQ", IM),
    Attribute("ContentTemplateSequence", 0x0040A504, "SQ", IM),
    Attribute("ReferencedRequestSequence", 0x0040A370, "SQ", IM),
    Attribute("AcquisitionDate", 0x00080022, "DA", IM),
    Attribute("ContentDate", 0x00080023, "DA", IM),
    Attribute("ContentTime", 0x00080033, "TM", IM),
    Attribute("ImageType", 0x00080008, "CS", IM),
    Attribute("LossyImageCompression", 0x00282110, "CS", IM),
)

BY_TAG: dict[int, Attribute] = {attribute.tag: attribute for attribute in ATTRIBUTES}
BY_KEYWORD: dict[str, Attribute] = {attribute.keyword: attribute for attribute in ATTRIBUTES}
