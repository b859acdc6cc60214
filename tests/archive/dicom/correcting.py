"""Corrections as a test writes them, and what coercion makes of files, read with pydicom."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pydicom
from pydicom.dataset import Dataset
from sqlalchemy import Connection, select

from archive.core import Archive
from archive.dicom.coerce import Coercion, pieces
from archive.dicom.corrections import Changes, changes, said
from archive.dicom.file_meta import FileMeta, data_set_offset, file_head
from archive.dicom.header import read_header
from archive.index.correct import correct_patient, correct_study
from archive.schema import patient, study
from tests.archive.dicom.reading import read

AT = datetime(2026, 3, 1, 8, 30, tzinfo=UTC)
INS = {
    "00100020": {"vr": "LO", "Value": ["180013112345678"]},
    "00100021": {"vr": "LO", "Value": ["ASIP-SANTE-INS-NIR"]},
    "00100022": {"vr": "CS", "Value": ["TEXT"]},
    "00100024": {
        "vr": "SQ",
        "Value": [
            {
                "00400032": {"vr": "UT", "Value": ["1.2.250.1.213.1.4.8"]},
                "00400033": {"vr": "CS", "Value": ["ISO"]},
            }
        ],
    },
}


def pn(text: str) -> dict[str, Any]:
    return {"vr": "PN", "Value": [{"Alphabetic": text}]} if text else {"vr": "PN"}


def element(vr: str, *values: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}


def corrections(attributes: dict[str, Any], *, reason: str = "COERCE", at: datetime = AT) -> str:
    """The text that `archive.index.correct` writes."""
    return orjson.dumps({"at": at, "reason": reason, "attributes": attributes}).decode()


def put(folder: Path, ds: Dataset) -> Path:
    """A file as it is stored."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    path = folder / f"{len(list(folder.iterdir()))}.dcm"
    path.write_bytes(buffer.getvalue())
    return path


def changes_of(path: Path, syntax: str, patient: str, study: str = "") -> Changes | None:
    offset = data_set_offset(str(path))
    with path.open("rb") as file:
        header = read_header(
            file.fileno(),
            offset=offset,
            length=path.stat().st_size - offset,
            transfer_syntax_uid=syntax,
            default_charset="ISO_IR 100",
        )
    return changes(said(header.levels), patient, study)


def coerced(
    path: Path, syntax: str, attributes: dict[str, Any], *, target: str = "", source: str = "CT1", study: str = ""
) -> bytes:
    """The PS3.10 file as it leaves."""
    found = changes_of(path, syntax, corrections(attributes), study)
    assert found is not None
    made = pieces(
        str(path),
        Coercion(found, source, "ISO_IR 100"),
        data_set_offset=data_set_offset(str(path)),
        source_syntax=syntax,
        target_syntax=target or syntax,
    )
    ds = read(path, specific_tags=["SOPClassUID", "SOPInstanceUID"], stop_before_pixels=True)
    return file_head(FileMeta(ds.SOPClassUID, ds.SOPInstanceUID, target or syntax)) + b"".join(made)


def body(file: bytes) -> bytes:
    """The data set of a file that `coerced` made."""
    return file[144 + int.from_bytes(file[140:144], "little") :]


def leaving(folder: Path, ds: Dataset, attributes: dict[str, Any], **how: Any) -> Dataset:
    """A data set as it leaves."""
    return read(coerced(put(folder, ds), str(ds.file_meta.TransferSyntaxUID), attributes, **how))


def correct(archive: Archive, patient_id: str, attributes: dict[str, Any], *, accession: str = "") -> None:
    """Have the RIS say this of a patient, and of all their studies when `accession` is given."""

    def write(conn: Connection) -> None:
        pk = conn.execute(select(patient.c.pk).where(patient.c.patient_id == patient_id)).scalar_one()
        correct_patient(conn, pk, attributes, reason="COERCE", at=AT)
        if accession:
            for one in conn.execute(select(study.c.pk).where(study.c.patient_pk == pk)).scalars().all():
                correct_study(conn, one, {"00080050": element("SH", accession)}, reason="CORRECT", at=AT)

    archive.commit.run(write)
