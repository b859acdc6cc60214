"""Every storage class of the standard, every transfer syntax as received; and several workers on one port."""

from __future__ import annotations

import hashlib
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless
from pynetdicom import AE
from pynetdicom.presentation import AllStoragePresentationContexts, build_context

from dicom_scp.classes import STORAGE_CLASSES, STORAGE_SYNTAXES
from tests.acceptance.test_bad_input import store_raw
from tests.acceptance.test_first_study import DCMTK, StudyRoot, find
from tests.acceptance.test_whole_data import get_study
from tests.builders import ct_slice, data_set, new_uid, part10
from tests.conftest import need
from tests.server import Server

DEFLATED, BIG_ENDIAN, IMPLICIT, EXPLICIT = (
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
)
NOT_ENCAPSULATED = {DEFLATED, BIG_ENDIAN, IMPLICIT, EXPLICIT}
PRIVATE = "1.2.826.0.1.3680043.10.1683.77.1"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("classes"))
    running.start()
    yield running
    assert running.stop() == 0


@pytest.mark.req("REQ-DCM-11")
def test_one_object_of_each_storage_class(one: Server) -> None:
    """Table 2.1 of the sheet, the whole list of the standard, and what the libraries lack."""
    named = {str(context.abstract_syntax) for context in AllStoragePresentationContexts}
    named |= {f"1.2.840.10008.5.1.4.1.1.{suffix}" for suffix in ("66.7", "66.8", "2", "2.1", "88.67", "104.1", "481.9")}
    assert named <= STORAGE_CLASSES
    classes = sorted(STORAGE_CLASSES)
    sent: dict[str, str] = {}
    for start in range(0, len(classes), 120):
        ae = AE("CLASSES")
        ae.requested_contexts = [build_context(sop_class, EXPLICIT) for sop_class in classes[start : start + 120]]
        assoc = ae.associate("127.0.0.1", one.dicom_port, ae_title="MINIPACS")
        assert assoc.is_established
        for sop_class in classes[start : start + 120]:
            ds = ct_slice(SOPClassUID=sop_class, StudyInstanceUID=new_uid("classes"), SeriesInstanceUID=new_uid("all"))
            assert assoc.send_c_store(ds).Status == 0x0000, sop_class
            sent[str(ds.SOPInstanceUID)] = sop_class
        assoc.release()
    found = find(
        one,
        StudyRoot,
        QueryRetrieveLevel="IMAGE",
        StudyInstanceUID=new_uid("classes"),
        SeriesInstanceUID=new_uid("all"),
        SOPInstanceUID="",
        SOPClassUID="",
    )
    assert {str(answer.SOPInstanceUID): str(answer.SOPClassUID) for answer in found} == sent


@pytest.mark.req("REQ-DCM-12")
@pytest.mark.parametrize("syntax", sorted(STORAGE_SYNTAXES))
def test_each_syntax_comes_back_as_it_came(one: Server, syntax: str) -> None:
    ds = ct_slice(StudyInstanceUID=new_uid("syntax", syntax), SeriesInstanceUID=new_uid("series", syntax))
    if syntax in NOT_ENCAPSULATED:
        ds.file_meta.TransferSyntaxUID = syntax
        raw = data_set(ct_slice(**_uids(ds), transfer_syntax=syntax))
        assert syntax != DEFLATED or zlib.decompress(raw, -15)
    else:
        ds.PixelData = encapsulate([b"\xff\xd8 some codestream \xff\xd9 "])
        ds["PixelData"].VR = "OB"
        ds.file_meta.TransferSyntaxUID = RLELossless  # any encapsulated one: the bytes of the data set are the same
        raw = data_set(ds)
        assert raw.endswith(b"\xfe\xff\xdd\xe0\x00\x00\x00\x00")
    uid, sop_class = str(ds.SOPInstanceUID), str(ds.SOPClassUID)
    assert store_raw(one, sop_class, uid, syntax, raw) == 0x0000
    served = EXPLICIT if syntax == BIG_ENDIAN else syntax
    got = get_study(one, str(ds.StudyInstanceUID), {(sop_class, served)})
    assert got[uid][0] == served
    if syntax != BIG_ENDIAN:  # retired: never sent, its object leaves as little endian
        assert got[uid][1] == hashlib.sha256(raw).hexdigest()


def _uids(ds: object) -> dict[str, str]:
    return {name: str(getattr(ds, name)) for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")}


def test_an_unknown_class_is_taken_only_when_the_switch_is_on(one: Server, tmp_path: Path) -> None:
    uid = new_uid()
    raw = data_set(ct_slice(SOPClassUID=PRIVATE, SOPInstanceUID=uid))
    assert store_raw(one, PRIVATE, uid, EXPLICIT, raw) is None
    open_to_all = Server(tmp_path / "server", environment={"MINIPACS_DICOM__UNKNOWN_SOP_CLASSES": "true"})
    open_to_all.start()
    try:
        assert store_raw(open_to_all, PRIVATE, uid, EXPLICIT, raw) == 0x0000
    finally:
        assert open_to_all.stop() == 0


@pytest.mark.req("REQ-FACE-03")
def test_several_workers_share_the_port_and_the_index(tmp_path: Path, database_url: str) -> None:
    need("storescu")
    server = Server(tmp_path / "server", database_url, {"MINIPACS_DICOM__WORKERS": "3", "MINIPACS_API__WORKERS": "2"})
    server.start()
    try:
        folders = []
        for sender in range(6):
            folder = tmp_path / f"sender{sender}"
            folder.mkdir()
            folders.append(folder)
            for number in range(12):
                (folder / f"{number}.dcm").write_bytes(part10(ct_slice(rows=64, columns=64, number=number)))
        senders = [
            subprocess.Popen(
                ["storescu", "-aec", "MINIPACS", "127.0.0.1", str(server.dicom_port), "+sd", str(folder)], env=DCMTK
            )
            for folder in folders
        ]
        assert [sender.wait(60) for sender in senders] == [0] * 6
        studies = find(server, StudyRoot, QueryRetrieveLevel="STUDY", NumberOfStudyRelatedInstances="", PatientID="")
        assert [int(study.NumberOfStudyRelatedInstances) for study in studies] == [72]
        log = server.log.read_text()
        assert "locked" not in log
        assert "Traceback" not in log
        assert server.command("verify-audit").returncode == 0
    finally:
        assert server.stop() == 0
