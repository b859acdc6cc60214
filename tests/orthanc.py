"""A real Orthanc of Debian, on free ports: another archive."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from pydicom.dataset import Dataset

from tests.acceptance.clients import DCMTK
from tests.builders import part10
from tests.conftest import need
from tests.server import free_port


@dataclass
class Orthanc:
    """Its ports; DICOMweb under `web`, when Debian's plugin is there."""

    dicom_port: int
    url: str
    folder: Path

    @property
    def web(self) -> str:
        return f"{self.url}/dicom-web"

    def keep(self, *objects: Dataset) -> None:
        """Put objects into it without DICOM."""
        with httpx.Client(base_url=self.url, timeout=60) as client:
            for ds in objects:
                assert client.post("/instances", content=part10(ds)).status_code == 200

    def forget(self, study: str) -> None:
        """Remove a study."""
        (found,) = httpx.post(f"{self.url}/tools/lookup", content=study, timeout=60).json()
        assert httpx.delete(f"{self.url}{found['Path']}", timeout=60).status_code == 200


@contextmanager
def orthanc(folder: Path, *, dicom_port: int = 0, find_limit: int = 0, move_to: int = 104) -> Iterator[Orthanc]:
    """Start one, on `dicom_port` or a port that is free; `find_limit` is its LimitFindResults, `move_to` the port of
    MINIPACS, to which it moves."""
    need("Orthanc")
    folder.mkdir()
    found = Orthanc(dicom_port or free_port(), f"http://127.0.0.1:{free_port()}", folder)
    configuration = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "DicomAet": "ORTHANC",
        "DicomPort": found.dicom_port,
        "HttpPort": int(found.url.rpartition(":")[2]),
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowMove": True,
        "DicomCheckCalledAet": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "LimitFindResults": find_limit,
        "LimitFindInstances": find_limit,
        "MaximumStorageCacheSize": 0,  # what is on its disk counts
        "DicomModalities": {"minipacs": ["MINIPACS", "127.0.0.1", move_to]},
        "Plugins": [str(path) for path in Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb*")],
        "DicomWeb": {"Enable": True},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log, env=DCMTK)
    try:
        for _ in range(300):
            try:
                if httpx.get(f"{found.url}/system", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.1)
        else:
            raise RuntimeError((folder / "log").read_text()[-4000:])
        yield found
    finally:
        process.terminate()
        process.wait(30)
