"""How long C-FIND and QIDO-RS take as the index grows: studies generated straight into the database, without files.

    python -m tests.bench.index --studies 5000 1000000 [--database-url postgresql+psycopg://…/empty]

Ten studies to a day, ten patients to a family name: every query has one match or ten, whatever the size of the index.
Times are of the service alone, from identifier or request to encoded answers, without network; the CPU of its thread
beside them, for a machine that others use.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import orjson
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from sqlalchemy import Table
from starlette.requests import Request

from api.qido import studies as studies_resource
from archive.access import EVERYTHING, Actor, Door
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.dicom.person_name import fold
from archive.schema import instance, location, patient, series, study
from archive.schema.prepared import Prepared
from dicom_scp.find import STUDY_ROOT_FIND, find
from dicom_scp.messages import FindRequest
from migrations import upgrade

IMPLICIT = "1.2.840.10008.1.2"
ROOT = "1.2.826.0.1.3680043.8.498.77.9"
FIRST_DAY = date(1750, 1, 1).toordinal()
AT_ONCE = 10_000
KINDS = ("id", "day", "name")
ASKED = (
    *("StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "StudyDescription", "PatientName", "PatientID"),
    *("PatientBirthDate", "StudyInstanceUID", "StudyID", "NumberOfStudyRelatedSeries"),
    "NumberOfStudyRelatedInstances",
)


def day(number: int) -> str:
    return date.fromordinal(FIRST_DAY + number // 10).strftime("%Y%m%d")


def name(number: int) -> str:
    return f"FAMILLE{number // 10:07d}^PRENOM{number % 10}"


def _json(**elements: tuple[str, Any]) -> str:
    return orjson.dumps({key[1:]: {"vr": vr, "Value": [value]} for key, (vr, value) in elements.items()}).decode()


def rows(number: int, at: Any) -> dict[Table, dict[str, Any]]:
    """The rows of a study of one image."""
    pk, uid, person = number + 1, f"{ROOT}.{number}", name(number)
    return {
        patient: {
            "pk": pk, "identity_key": f"id:0::IPP{number}", "patient_id": f"IPP{number}", "issuer": "",
            "patient_name": fold(person), "birth_date": "19700101", "provisional": 0, "created_at": at,
            "attributes": _json(
                _00100010=("PN", {"Alphabetic": person}), _00100020=("LO", f"IPP{number}"),
                _00100030=("DA", "19700101"), _00100040=("CS", "F"),
            ),
        },
        study: {
            "pk": pk, "patient_pk": pk, "study_instance_uid": uid, "study_date": day(number),
            "study_time": f"{number % 24:02d}0000.000000", "accession_number": f"A{number}", "study_id": str(number),
            "referring_physician_name": "", "study_description": "RACHIS", "first_received_at": at,
            "attributes": _json(
                _00080020=("DA", day(number)), _00080030=("TM", f"{number % 24:02d}0000"),
                _00080050=("SH", f"A{number}"), _00081030=("LO", "RACHIS"), _0020000D=("UI", uid),
                _00200010=("SH", str(number)),
            ),
        },
        series: {
            "pk": pk, "study_pk": pk, "series_instance_uid": f"{uid}.1", "modality": "CT", "series_number": 1,
            "attributes": _json(_00080060=("CS", "CT")), "created_at": at,
        },
        instance: {
            "pk": pk, "series_pk": pk, "sop_instance_uid": f"{uid}.1.1", "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
            "instance_number": 1, "state": "stored", "digest": "0" * 64, "source": "network:BENCH",
            "received_at": at, "attributes": _json(_00200013=("IS", 1)),
        },
        location: {
            "pk": pk, "instance_pk": pk, "tier": "hot", "path": f"2026/11/30/1200/{number}.dcm", "state": "ok",
            "transfer_syntax_uid": IMPLICIT, "digest": "0" * 64, "file_bytes": 1000, "data_set_offset": 300,
        },
    }  # fmt: skip


def fill(archive: Archive, first: int, last: int) -> None:
    """The studies from `first` up to, without, `last`."""
    at = archive.clock()
    for start in range(first, last, AT_ONCE):
        batch = [rows(number, at) for number in range(start, min(start + AT_ONCE, last))]

        def write(conn: Any, batch: list[dict[Table, dict[str, Any]]] = batch) -> None:
            for table, values in batch[0].items():
                Prepared(table.insert(), columns=list(values)).run_all(conn, [one[table] for one in batch])

        archive.commit.run(write)
    if archive.engine.dialect.name == "postgresql":
        with archive.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.exec_driver_sql("ANALYZE")


def asked(kind: str, studies: int, count: int) -> Iterator[tuple[str, str]]:
    """Keyword and value of queries, the same for every door."""
    chance = random.Random(f"{kind}{studies}")
    for _ in range(count):
        number = chance.randrange(studies)
        if kind == "id":
            yield "PatientID", f"IPP{number}"
        elif kind == "day":
            yield "StudyDate", day(number)
        else:
            yield "PatientName", name(number).partition("^")[0] + "^*"


def c_find(archive: Archive, keyword: str, value: str) -> Callable[[], int]:
    """A query; called, it gives the number of matches."""
    actor = Actor("BENCH", "127.0.0.1", Door.DICOM, may=EVERYTHING)
    ds = Dataset()
    ds.QueryRetrieveLevel = "STUDY"
    for one in ASKED:
        setattr(ds, one, None)
    setattr(ds, keyword, value)
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = True, True
    write_dataset(buffer, ds)
    request = FindRequest(STUDY_ROOT_FIND, buffer.getvalue(), IMPLICIT, False, False, actor)
    return lambda: len(list(find(request, archive))) - 1


def qido(archive: Archive, keyword: str, value: str) -> Callable[[], int]:
    """The same as an HTTP request that was recognised."""
    actor = Actor("BENCH", "127.0.0.1", Door.DICOMWEB, may=EVERYTHING)
    app = SimpleNamespace(state=SimpleNamespace(archive=archive))
    scope = {
        "type": "http", "app": app, "method": "GET", "scheme": "http", "server": ("127.0.0.1", 80),
        "path": "/dicom-web/studies", "query_string": urlencode({keyword: value, "limit": 100}).encode(),
        "headers": [(b"host", b"127.0.0.1"), (b"accept", b"application/dicom+json")], "state": {"actor": actor},
    }  # fmt: skip
    return lambda: len(orjson.loads(studies_resource(Request(scope)).body))


DOORS: dict[str, Callable[[Archive, str, str], Callable[[], int]]] = {"C-FIND": c_find, "QIDO-RS": qido}


def measure(archive: Archive, door: str, kind: str, studies: int, count: int) -> list[float]:
    """Milliseconds: median and 95th percentile of the time, median of the CPU."""
    expected = 1 if kind == "id" else 10
    seconds: list[float] = []
    cpu: list[float] = []
    for keyword, value in asked(kind, studies, count):
        ask = DOORS[door](archive, keyword, value)
        start, worked = time.perf_counter(), time.thread_time()
        found = ask()
        cpu.append(time.thread_time() - worked)
        seconds.append(time.perf_counter() - start)
        if found != expected:
            raise RuntimeError(f"{found} matches instead of {expected}")
    seconds.sort()
    return [1000 * one for one in (statistics.median(seconds), seconds[int(count * 0.95)], statistics.median(cpu))]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, nargs="+", default=[5000, 1_000_000])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--database-url", default="", help="an empty database; default: SQLite in a temporary folder")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="minipacs-index-") as folder:
        url = options.database_url or f"sqlite:///{folder}/index.sqlite3"
        settings = Settings.model_validate(
            {"data_dir": Path(folder), "database": {"url": url}, "storage": {"reserve_bytes": 0}}
        )
        upgrade(url)
        print("| studies | query | median ms | p95 ms | CPU ms |\n|---:|---|---:|---:|---:|")
        held = 0
        with open_archive(settings, process="bench") as archive:
            for studies in sorted(options.studies):
                fill(archive, held, studies)
                held = studies
                for door, kind in product(DOORS, KINDS):
                    measure(archive, door, kind, studies, 50)  # pages and statements are read once
                    told = " | ".join(f"{one:.3f}" for one in measure(archive, door, kind, studies, options.queries))
                    print(f"| {studies} | {door} {kind} | {told} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
