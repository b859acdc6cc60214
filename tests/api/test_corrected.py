"""REQ-DCM-70: at every door of DICOMweb an instance leaves as the RIS knows its patient now; what is stored stays."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
)
from sqlalchemy import select as sql_select

from archive.core import Archive
from archive.ingest import Outcome
from archive.retrieve import select
from archive.schema import location
from tests.api.conftest import on_both_databases
from tests.api.test_wado import AS_STORED, address, contents, data_set_of, keep
from tests.archive.dicom.correcting import INS, correct, element, pn
from tests.archive.index.test_merged import merge
from tests.builders import ct_slice, data_set, new_uid

__all__ = ["keep"]  # a fixture

MARTIN = {
    "00100010": pn("MARTIN^Zoé"),
    "00100020": element("LO", "IPP1"),
    "00100030": element("DA", "19700102"),
    "00101002": element("SQ", INS),
}
Keep = Callable[..., Outcome]
STUDY = f"/dicom-web/studies/{new_uid('study')}"


def digests(archive: Archive) -> dict[str, str]:
    """Of the data sets as they lie; they are those that were taken at reception."""
    with archive.reading() as conn:
        rows = conn.execute(sql_select(location.c.path, location.c.data_set_offset, location.c.digest)).all()
    found = {
        row.path: hashlib.sha256(Path(archive.hot.path(row.path)).read_bytes()[row.data_set_offset :]).hexdigest()
        for row in rows
    }
    assert found == {row.path: row.digest for row in rows}
    return found


def looked_at(file: bytes) -> tuple[str, str, str, str, str]:
    """Name, birth date and accession number now; name and birth date before."""
    ds = pydicom.dcmread(io.BytesIO(file))
    former = ds.OriginalAttributesSequence[-1].ModifiedAttributesSequence[0]
    return (
        str(ds.PatientName), ds.PatientBirthDate, ds.AccessionNumber, str(former.PatientName), former.PatientBirthDate
    )  # fmt: skip


NOW = ("MARTIN^Zoé", "19700102", "A2002", "DUPONT^Anne", "19700101")


@on_both_databases
@pytest.mark.req("REQ-DCM-70", "REQ-DCM-71")
def test_study_series_and_instance_leave_corrected(client: httpx.Client, keep: Keep, archive: Archive) -> None:
    slices = [ct_slice(number=number) for number in (1, 2, 3)]
    keep(*slices)
    before = digests(archive)
    correct(archive, "IPP1", MARTIN, accession="A2002")
    for path in (STUDY, f"{STUDY}/series/{slices[0].SeriesInstanceUID}"):
        files = contents(client.get(path, headers={"Accept": AS_STORED}))
        assert [looked_at(file) for file in files] == [NOW] * 3
        assert [pydicom.dcmread(io.BytesIO(file)).PixelData for file in files] == [ds.PixelData for ds in slices]
    alone = client.get(address(slices[1]), headers={"Accept": "application/dicom"})
    assert looked_at(alone.content) == NOW
    assert pydicom.dcmread(io.BytesIO(alone.content)).OtherPatientIDsSequence[0].PatientID == "180013112345678"
    assert digests(archive) == before


@pytest.mark.req("REQ-DCM-70")
@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, JPEGLSLossless],
)
@pytest.mark.parametrize("wished", ["*", ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_corrections_go_with_every_syntax(
    client: httpx.Client, keep: Keep, archive: Archive, syntax: str, wished: str
) -> None:
    ds = ct_slice(rows=32, columns=32, transfer_syntax=ExplicitVRLittleEndian if syntax == JPEGLSLossless else syntax)
    pixels = np.frombuffer(ds.PixelData, "<u2").copy()
    if syntax == JPEGLSLossless:
        ds.compress(syntax, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        ds.PixelData = pixels.astype(">u2").tobytes()
        ds["PixelData"].VR = "OW"
    keep(ds)
    correct(archive, "IPP1", MARTIN, accession="A2002")
    answer = client.get(address(ds), headers={"Accept": f"application/dicom; transfer-syntax={wished}"})
    assert answer.status_code == 200
    assert looked_at(answer.content) == NOW
    back = pydicom.dcmread(io.BytesIO(answer.content))
    given = {"*": ExplicitVRLittleEndian if syntax == ExplicitVRBigEndian else syntax}.get(wished, wished)
    assert answer.headers["content-type"] == f"application/dicom; transfer-syntax={given}"
    assert back.file_meta.TransferSyntaxUID == given
    assert (back.SOPInstanceUID, back.file_meta.MediaStorageSOPInstanceUID) == (ds.SOPInstanceUID,) * 2
    assert np.array_equal(back.pixel_array.ravel(), pixels)


@on_both_databases
@pytest.mark.req("REQ-DCM-70", "REQ-DCM-71")
def test_metadata_and_searches_say_the_same(client: httpx.Client, keep: Keep, archive: Archive) -> None:
    ds = ct_slice()
    keep(ds, ct_slice(number=2))
    correct(archive, "IPP1", MARTIN, accession="A2002")
    for path in (STUDY, f"{STUDY}/series/{ds.SeriesInstanceUID}", address(ds)):
        for told in client.get(f"{path}/metadata").json():
            read = Dataset.from_json(told, lambda *_: b"")
            assert (str(read.PatientName), read.PatientBirthDate, read.AccessionNumber) == NOW[:3]
            [item] = read.OriginalAttributesSequence
            assert item.ModifyingSystem == "MINIPACS"
            former = item.ModifiedAttributesSequence[0]
            assert (str(former.PatientName), former.PatientBirthDate) == NOW[3:]
            assert "OtherPatientIDsSequence" in former
            assert not former.OtherPatientIDsSequence
    [found] = client.get("/dicom-web/studies", params={"PatientName": "MARTIN*"}).json()
    assert (found["00100010"], found["00080050"]["Value"]) == (pn("MARTIN^Zoé"), ["A2002"])
    assert client.get("/dicom-web/studies", params={"PatientName": "DUPONT*"}).status_code == 204
    assert client.get("/dicom-web/studies", params={"AccessionNumber": "A1001"}).status_code == 204
    params = {"includefield": "OtherPatientIDsSequence", "PatientID": "IPP1"}
    [instance] = client.get("/dicom-web/instances", params={**params, "InstanceNumber": "2"}).json()
    assert instance["00101002"]["Value"][0]["00100020"]["Value"] == ["180013112345678"]


@pytest.mark.req("REQ-DCM-70")
def test_pixels_and_bulk_data_are_what_they_were_and_no_other_way_out_tells_what_was_corrected(
    client: httpx.Client, keep: Keep, archive: Archive
) -> None:
    ds = ct_slice()
    ds.add_new(0x00420011, "OB", bytes(range(256)) * 20)
    keep(ds)
    paths = ("/frames/1", "/bulkdata/7FE00010", "/bulkdata/00420011")

    def octets() -> list[bytes]:
        wish = {"Accept": "application/octet-stream"}
        rendered = client.get(address(ds, "/rendered"), headers={"Accept": "image/png"})
        return [client.get(address(ds, path), headers=wish).content for path in paths] + [rendered.content]

    before = octets()
    assert before[:2] == [ds.PixelData] * 2
    assert b"DUPONT" in client.get(address(ds, "/bulkdata/00100010")).content
    correct(archive, "IPP1", MARTIN)
    assert octets() == before
    assert client.get(address(ds, "/bulkdata/00100010")).status_code == 404
    [told] = client.get(address(ds, "/metadata")).json()
    answer = client.get(told["00420011"]["BulkDataURI"], headers={"Accept": "application/octet-stream"})
    assert bytes(range(256)) * 20 in answer.content


@pytest.mark.req("REQ-DCM-70")
def test_what_says_the_same_already_leaves_as_it_lies(client: httpx.Client, keep: Keep, archive: Archive) -> None:
    ds = ct_slice()
    keep(ds)
    same = {"00100010": pn("DUPONT^Anne"), "00100020": element("LO", "IPP1"), "00100021": element("LO", "CABINET")}
    correct(archive, "IPP1", same, accession="A1001")
    [stored] = select(archive, study_uids=[ds.StudyInstanceUID])
    answer = client.get(address(ds), headers={"Accept": "application/dicom; transfer-syntax=*"})
    assert answer.content == Path(stored.path).read_bytes()
    assert data_set_of(answer.content) == data_set(ds)


@on_both_databases
@pytest.mark.req("REQ-DCM-37", "REQ-DCM-70")
def test_the_old_identifier_finds_the_survivor(client: httpx.Client, keep: Keep, archive: Archive) -> None:
    mine = ct_slice(StudyInstanceUID=new_uid("mine"), SeriesInstanceUID=new_uid("mine", "1"), PatientID="OLD")
    keep(ct_slice(PatientID="NEW"), mine)
    merge(archive, "OLD", "NEW")
    for identifier in ("OLD", "NEW"):
        found = client.get("/dicom-web/studies", params={"PatientID": identifier}).json()
        assert len(found) == 2
        assert {one["00100020"]["Value"][0] for one in found} == {"NEW"}
    file = client.get(address(mine), headers={"Accept": "application/dicom"}).content
    after = pydicom.dcmread(io.BytesIO(file))
    assert (after.PatientID, str(after.PatientName)) == ("NEW", "MARTIN^Anne")
    former = after.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
    assert former.PatientID == "OLD"
    assert former["IssuerOfPatientID"].is_empty
    ours = {"IssuerOfPatientID": "ASIP-SANTE-INS-NIR", "PatientID": "180013112345678"}
    by_ins = client.get("/dicom-web/studies", params={f"OtherPatientIDsSequence.{key}": ours[key] for key in ours})
    assert len(by_ins.json()) == 2
