"""Every file of the developers' data set goes in, is explained, and comes back as it was.

The folder is named by MINIPACS_TEST_DATA (it is not part of the product); without it these tests say that they are
skipped, or fail under MINIPACS_TEST_STRICT.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian as BIG
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, build_role, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelGet as StudyGet

from archive.errors import UnreadableInstance
from archive.storage.part10 import read_meta
from tests.acceptance.test_first_study import parts_digests
from tests.conftest import STRICT
from tests.server import Server


@pytest.fixture
def data() -> Path:
    folder = Path(os.environ.get("MINIPACS_TEST_DATA", "/nonexistent")) / "data"
    if not folder.is_dir():
        message = "MINIPACS_TEST_DATA does not name a folder with data/"
        if STRICT and "MINIPACS_TEST_DATA" in os.environ:
            pytest.fail(message)
        pytest.skip(message)
    return folder


def instances(folder: Path) -> Iterator[tuple[Path, bytes, str, str, str]]:
    """Each file that is DICOM at first sight: path, data set, SOP class, SOP instance, syntax."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        raw = path.read_bytes()
        try:
            meta, start = read_meta(raw)
        except UnreadableInstance:
            continue
        yield path, raw[start:], meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid


def get_study(server: Server, study: str, contexts: set[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """C-GET a study, each class in each syntax in a context of its own: UID to (syntax, digest)."""
    found: dict[str, tuple[str, str]] = {}

    def keep(event: evt.Event) -> int:
        raw = event.request.DataSet.getvalue()
        found[str(event.request.AffectedSOPInstanceUID)] = (
            str(event.context.transfer_syntax),
            hashlib.sha256(raw).hexdigest(),
        )
        return 0x0000

    ae = AE("WHOLE")
    ae.requested_contexts = [build_context(StudyGet)] + [build_context(one, syntax) for one, syntax in sorted(contexts)]
    roles = [build_role(one, scp_role=True) for one in sorted({one for one, _ in contexts})]
    assoc = ae.associate(
        "127.0.0.1", server.dicom_port, ae_title="MINIPACS", ext_neg=roles, evt_handlers=[(evt.EVT_C_STORE, keep)]
    )
    assert assoc.is_established
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = study
    try:
        final = [status for status, _ in assoc.send_c_get(query, StudyGet)][-1]
    finally:
        assoc.release()
    assert final.Status == 0x0000, (study, final)
    return found


def _little(data_set: bytes) -> bytes:
    """A big endian data set as Explicit VR Little Endian, by pydicom."""
    ds = pydicom.dcmread(io.BytesIO(_head(BIG) + data_set))
    for element in ds.iterall():
        del element  # each is decoded, so that it is encoded anew
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if "PixelData" in ds and ds.BitsAllocated == 16:
        ds.PixelData = np.frombuffer(ds.PixelData, ">u2").astype("<u2").tobytes()
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds, implicit_vr=False, little_endian=True, force_encoding=True)
    raw = out.getvalue()
    return raw[144 + int.from_bytes(raw[140:144], "little") :] if raw[128:132] == b"DICM" else raw


def _head(syntax: str) -> bytes:
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    element = b"\x02\x00\x10\x00UI" + len(value).to_bytes(2, "little") + value
    return bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00" + len(element).to_bytes(4, "little") + element


@pytest.mark.req("REQ-DCM-10", "REQ-DCM-11", "REQ-DCM-12", "REQ-DCM-42", "REQ-DCM-91")
def test_everything_goes_in_and_comes_back(data: Path, server: Server) -> None:
    notes = sorted((data / "made").glob("kos_iocm_*"))
    others = sorted(path for path in data.rglob("*") if path.is_file() and path not in notes)
    done = server.command("import", "--json", *map(str, others))
    summary = json.loads(done.stdout)
    left = [entry for name in ("quarantined", "refused", "ignored") for entry in summary[name]]
    counted = summary["stored"] + summary["already_stored"] + summary["held"] + len(left)
    assert counted == len(others)
    assert all(entry["reason"] for entry in left)
    assert done.returncode == (1 if summary["quarantined"] or summary["refused"] else 0)
    assert summary["stored"] > 330

    away = {*(entry["path"] for entry in left), *map(str, notes)}
    candidates: dict[str, list[tuple[bytes, str, str]]] = defaultdict(list)
    studies: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for path, data_set, sop_class, uid, syntax in instances(data):
        if str(path) in away:
            continue
        ds = pydicom.dcmread(io.BytesIO(_head(syntax) + data_set), stop_before_pixels=True, force=True)
        candidates[uid].append((data_set, sop_class, syntax))
        studies[str(ds.StudyInstanceUID)].add((sop_class, syntax))
    back: dict[str, tuple[str, str]] = {}
    for study, contexts in studies.items():
        wanted = {(one, ExplicitVRLittleEndian if syntax == BIG else syntax) for one, syntax in contexts}
        back |= get_study(server, study, wanted)
    held = len(candidates) - len(back)
    assert held == summary["held"], sorted(set(candidates) - set(back))
    with server.client("radiologist") as client:
        web: dict[str, str] = {}
        for study in studies:
            response = client.get(
                f"/dicom-web/studies/{study}",
                headers={"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'},
            )
            assert response.status_code == 200
            web |= parts_digests(response)
    assert set(web) == set(back)
    for uid, (_, digest) in back.items():
        assert web[uid] == digest  # both doors give the same bytes
        as_sent = {hashlib.sha256(raw).hexdigest() for raw, _, syntax in candidates[uid] if syntax != BIG}
        turned = {hashlib.sha256(_little(raw)).hexdigest() for raw, _, syntax in candidates[uid] if syntax == BIG}
        assert digest in as_sent | turned, uid

    last = json.loads(server.command("import", "--json", *map(str, notes)).stdout)
    assert (last["stored"], last["refused"], last["quarantined"]) == (3, [], [])
    for note in map(pydicom.dcmread, notes):  # sheet 30 §9: what they name is given back no more
        (evidence,) = note.CurrentRequestedProcedureEvidenceSequence
        named = {
            one.ReferencedSOPInstanceUID
            for part in evidence.ReferencedSeriesSequence
            for one in part.ReferencedSOPSequence
        }
        assert named & set(back)
        assert not named & set(get_study(server, note.StudyInstanceUID, studies[note.StudyInstanceUID]))


def test_a_second_import_changes_nothing(data: Path, server: Server) -> None:
    folder = str(data / "mr-series-siemens")
    first = json.loads(server.command("import", "--json", folder).stdout)
    second = json.loads(server.command("import", "--json", folder).stdout)
    assert (first["stored"] + first["already_stored"], second["stored"], second["already_stored"]) == (8, 0, 8)
