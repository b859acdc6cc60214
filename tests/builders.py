"""DICOM objects made for tests: small, valid, and different from each other where a test needs it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

PREFIX = "1.2.826.0.1.3680043.10.1683.99."


def new_uid(*entropy: str) -> str:
    """A UID; the same one for the same words."""
    return str(generate_uid(prefix=PREFIX, entropy_srcs=list(entropy) or None))


def ct_slice(
    *, rows: int = 16, columns: int = 16, number: int = 1, transfer_syntax: str = ExplicitVRLittleEndian, **changes: Any
) -> Dataset:
    """A CT image with file meta. `changes` are keywords to set, or to delete with None."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = new_uid()
    ds.StudyDate = "20260105"
    ds.StudyTime = "101500"
    ds.AccessionNumber = "A1001"
    ds.Modality = "CT"
    ds.Manufacturer = "minipacs tests"
    ds.ReferringPhysicianName = "LEFÈVRE^Anaïs"
    ds.StudyDescription = "Scanner thoracique"
    ds.SeriesDescription = "Axial"
    ds.PatientName = "DUPONT^Anne"
    ds.PatientID = "IPP1"
    ds.PatientBirthDate = "19700101"
    ds.PatientSex = "F"
    ds.StudyInstanceUID = new_uid("study")
    ds.SeriesInstanceUID = new_uid("series")
    ds.StudyID = "S1"
    ds.SeriesNumber = 1
    ds.InstanceNumber = number
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = rows, columns
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = np.random.default_rng(number).integers(0, 4096, (rows, columns), dtype="<u2").tobytes()

    for keyword, value in changes.items():
        if value is None:
            if keyword in ds:
                delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", "")
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "")
    ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(transfer_syntax)
    return ds


def part10(ds: Dataset) -> bytes:
    """The PS3.10 file of a data set."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def data_set(ds: Dataset) -> bytes:
    """The data set's bytes alone, in its transfer syntax, group 0002 excluded."""
    buffer = io.BytesIO(part10(ds))
    meta_length = pydicom.dcmread(buffer, stop_before_pixels=True).file_meta.FileMetaInformationGroupLength
    return buffer.getvalue()[132 + 12 + meta_length :]
