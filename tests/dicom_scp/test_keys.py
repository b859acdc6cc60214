"""Table 3.1 of sheet 10, key by key: given back, and matched where it is a matching key (REQ-DCM-30)."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import Dataset

from archive.access import Actor
from archive.core import Archive
from dicom_scp.find import PATIENT_ROOT_FIND
from dicom_scp.messages import Answer
from dicom_scp.status import Status
from tests.archive.index.filling import fill
from tests.builders import ct_slice, new_uid
from tests.dicom_scp.test_find import asked, found, identifier

STUDY_UID, SERIES_UID, INSTANCE_UID = (new_uid("keys", level) for level in ("study", "series", "instance"))


def items(**values: Any) -> list[Dataset]:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return [item]


# keyword: what the object holds, what matches it, what does not (None: it is no matching key).
Row = tuple[Any, Any, Any]
PATIENT: dict[str, Row] = {
    "PatientName": ("LEFÈVRE^Anaïs", "lefevre^*", "MARTIN^*"),
    "PatientID": ("IPP7", "IPP7", "IPP8"),
    "IssuerOfPatientID": ("CABINET", "CABINET", "HOPITAL"),
    "IssuerOfPatientIDQualifiersSequence": (
        items(UniversalEntityID="1.2.250.1", UniversalEntityIDType="ISO"),
        items(UniversalEntityID="1.2.250.1"),
        items(UniversalEntityID="1.2.250.2"),
    ),
    "PatientBirthDate": ("19700102", "19700101-19700103", "19710101-"),
    "PatientSex": ("F", "F", "M"),
    "OtherPatientIDsSequence": (
        items(PatientID="OLD", IssuerOfPatientID="HOPITAL"),
        items(PatientID="OLD", IssuerOfPatientID="HOPITAL"),
        items(PatientID="OLD", IssuerOfPatientID="CABINET"),
    ),
    "OtherPatientNames": ("LE FÈVRE^Anna", "le fevre^*", "MARTIN*"),
    "PatientComments": ("Allergie à l'iode", "Allergie*", "Rien*"),
    "NumberOfPatientRelatedStudies": (1, None, None),
    "NumberOfPatientRelatedSeries": (1, None, None),
    "NumberOfPatientRelatedInstances": (1, None, None),
}
STUDY: dict[str, Row] = {
    "StudyDate": ("20260105", "20260101-20260131", "20260201-"),
    "StudyTime": ("223000", "2230", "1000-1800"),
    "AccessionNumber": ("ACC7", "ACC?", "ACC8"),
    "IssuerOfAccessionNumberSequence": (
        items(LocalNamespaceEntityID="RIS"),
        items(LocalNamespaceEntityID="RIS"),
        items(LocalNamespaceEntityID="AUTRE"),
    ),
    "StudyID": ("S7", "S*", "T*"),
    "StudyInstanceUID": (STUDY_UID, ["1.2.3", STUDY_UID], "1.2.3"),
    "ModalitiesInStudy": ("CT", "C*", "MR"),
    "SOPClassesInStudy": (ct_slice().SOPClassUID, str(ct_slice().SOPClassUID), "1.2.840.10008.5.1.4.1.1.4"),
    "ReferringPhysicianName": ("MARTIN^Luc", "martin*", "DURAND*"),
    "NumberOfStudyRelatedSeries": (1, None, None),
    "NumberOfStudyRelatedInstances": (1, None, None),
    "StudyDescription": ("Scanner thoracique", "Scanner*", "IRM*"),
    "ProcedureCodeSequence": (
        items(CodeValue="ZBQK002", CodingSchemeDesignator="CCAM"),
        items(CodeValue="ZBQK002"),
        items(CodeValue="ZZLP025"),
    ),
    "NameOfPhysiciansReadingStudy": ("DURAND^Zoé", "durand^zoe", "MARTIN*"),
    "AdmittingDiagnosesDescription": ("Toux", "Tou?", "Fièvre"),
    "PatientAge": ("056Y", "056Y", "057Y"),
    "PatientSize": ("1.72", "1.720", "1.8"),
    "PatientWeight": ("72.5", "72.50", "80"),
}
SERIES: dict[str, Row] = {
    "Modality": ("CT", "C*", "MR"),
    "SeriesNumber": (4, "4", "5"),
    "SeriesInstanceUID": (SERIES_UID, SERIES_UID, "1.2.3"),
    "NumberOfSeriesRelatedInstances": (1, None, None),
    "SeriesDescription": ("Axial", "Ax*", "Cor*"),
    "BodyPartExamined": ("CHEST", "CHEST", "HEAD"),
    "PerformedProcedureStepStartDate": ("20260105", "-20260105", "20260106-"),
    "PerformedProcedureStepStartTime": ("222500", "2220-2230", "2231-"),
    "RequestAttributesSequence": (
        items(ScheduledProcedureStepID="SPS7", RequestedProcedureID="RP7"),
        items(ScheduledProcedureStepID="SPS7", RequestedProcedureID="RP*"),
        items(ScheduledProcedureStepID="SPS7", RequestedProcedureID="RP8"),
    ),
    "StationName": ("CT1", "CT*", "MR*"),
    "Manufacturer": ("MINIPACS TESTS", "MINIPACS*", "AUTRE"),
    "InstitutionName": ("Cabinet", "Cabinet", "cabinet"),
}
INSTANCE: dict[str, Row] = {
    "InstanceNumber": (9, "9", "8"),
    "SOPInstanceUID": (INSTANCE_UID, INSTANCE_UID, "1.2.3"),
    "SOPClassUID": (ct_slice().SOPClassUID, str(ct_slice().SOPClassUID), "1.2.840.10008.5.1.4.1.1.4"),
    "Rows": (16, 16, 17),
    "Columns": (16, 16, 17),
    "BitsAllocated": (16, 16, 8),
    "NumberOfFrames": (1, "1", "2"),
    "ConceptNameCodeSequence": (
        items(CodeValue="113030", CodingSchemeDesignator="DCM"),
        items(CodeValue="113030", CodingSchemeDesignator="DCM"),
        items(CodeValue="113000"),
    ),
    "ContentTemplateSequence": (
        items(TemplateIdentifier="2010"),
        items(TemplateIdentifier="2010"),
        items(TemplateIdentifier="1"),
    ),
    "ContentDate": ("20260106", "20260106", "20260105"),
    "ContentTime": ("083000", "0830", "0900-"),
    "ReferencedRequestSequence": (
        items(AccessionNumber="ACC7", RequestedProcedureID="RP7"),
        items(RequestedProcedureID="RP7"),
        items(RequestedProcedureID="RP8"),
    ),
    "AvailableTransferSyntaxUID": ("1.2.840.10008.1.2.1", None, None),
    "AlternateRepresentationSequence": ([], None, None),
}  # fmt: skip
LEVELS = {"PATIENT": PATIENT, "STUDY": STUDY, "SERIES": SERIES, "IMAGE": INSTANCE}
COMPUTED = {"ModalitiesInStudy", "SOPClassesInStudy", "AvailableTransferSyntaxUID", "AlternateRepresentationSequence"}


def the_object() -> Dataset:
    held = {keyword: row[0] for level in LEVELS.values() for keyword, row in level.items()}
    return ct_slice(
        **{keyword: value for keyword, value in held.items() if keyword not in COMPUTED and "Related" not in keyword}
    )


def ask(archive: Archive, actor: Actor, level: str, keyword: str, value: Any) -> list[Answer]:
    """In the Patient Root, where every level is; relational, so that a key may stand without those above it."""
    keys = {"PatientID": "IPP7"} | {keyword: value}
    return asked(archive, actor, identifier(level, **keys), PATIENT_ROOT_FIND, relational=True)


def given(answer: Dataset, keyword: str, held: Any) -> bool:
    """Whether an answer has what is held; of a sequence, what was asked of its items."""
    if isinstance(held, list):
        return len(answer[keyword].value) == len(held) and all(
            element.value in ("", held[0][element.tag].value) for item in answer[keyword].value for element in item
        )
    return bool(str(answer[keyword].value) == str(held) or answer[keyword].value == held)


@pytest.mark.req("REQ-DCM-30", "REQ-DCM-44")
@pytest.mark.parametrize("level", LEVELS)
def test_every_key_of_the_table_is_given_back_and_matched_at_its_level_and_below(
    archive: Archive, actor: Actor, level: str
) -> None:
    fill(archive, actor, the_object(), ct_slice(PatientID="Z", StudyInstanceUID=new_uid("z"), SeriesInstanceUID="1.2"))
    wrong: list[str] = []
    for above in list(LEVELS)[: list(LEVELS).index(level) + 1]:
        for keyword, (held, matching, failing) in LEVELS[above].items():
            answers = ask(archive, actor, level, keyword, matching)
            if [answer.status for answer in answers] != [Status.PENDING, Status.SUCCESS]:
                wrong.append(f"{keyword}: {[hex(answer.status) for answer in answers]}")
            elif not given(found(answers)[0], keyword, held):
                wrong.append(f"{keyword}: not given back as it is held")
            if failing is not None and found(ask(archive, actor, level, keyword, failing)):
                wrong.append(f"{keyword}: matches what it is not")
            everything = ask(archive, actor, level, keyword, None)  # universal
            if keyword != "PatientID" and len(everything) != 2:
                wrong.append(f"{keyword}: an empty key selects")
    assert wrong == []


@pytest.mark.req("REQ-DCM-30")
def test_what_is_no_matching_key_is_given_back_and_said_when_it_was_to_match(archive: Archive, actor: Actor) -> None:
    fill(archive, actor, the_object())
    for level, rows in LEVELS.items():
        for keyword, (_, matching, _) in rows.items():
            if matching is None and keyword != "AlternateRepresentationSequence":
                answers = ask(archive, actor, level, keyword, "7")
                assert [answer.status for answer in answers] == [Status.PENDING_WITHOUT_KEYS, Status.SUCCESS], keyword
