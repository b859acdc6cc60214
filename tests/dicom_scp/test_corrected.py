"""REQ-DCM-70: C-FIND, C-GET and C-MOVE give what the RIS knows now, to real clients too; what is stored stays."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    CTImageStorage,
    PatientRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelFind,
)
from sqlalchemy import func, select

from archive.config import Settings
from archive.core import open_archive
from archive.dicom.elements import encoding_of
from archive.schema import quarantined
from dicom_scp.dimse import Field
from dicom_scp.status import Status
from tests.archive.dicom.correcting import INS, correct, element, pn
from tests.archive.index.test_merged import merge
from tests.archive.lifecycle.aging import path_of
from tests.builders import ct_slice, data_set, new_uid
from tests.conftest import KINDS, need, new_database
from tests.dicom_scp.conftest import Running, running
from tests.dicom_scp.retrieving import BIG_ENDIAN, DEFLATED, GETTER, Getter, counts, identifier, keep
from tests.dicom_scp.test_move import Destination
from tests.dicom_scp.wire import EXPLICIT, IMPLICIT

MARTIN = {
    "00100010": pn("MARTIN^Zoé"),
    "00100020": element("LO", "IPP1"),
    "00100030": element("DA", "19700102"),
    "00101002": element("SQ", INS),
}


@pytest.fixture(params=KINDS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    template = request.getfixturevalue(f"migrated_{request.param}")
    with new_database(request.param, tmp_path, request, template=template) as url:
        yield Settings.model_validate(
            {"data_dir": tmp_path / "data", "database": {"url": url}, "storage": {"reserve_bytes": 0}}
        )


def decoded(data: bytes, syntax: str = EXPLICIT) -> Dataset:
    encoding = encoding_of(syntax)
    return read_dataset(BytesIO(data), encoding.implicit, encoding.little)


def is_corrected(ds: Dataset) -> bool:
    former = ds.OriginalAttributesSequence[-1].ModifiedAttributesSequence[0]
    return (str(ds.PatientName), ds.PatientBirthDate, str(former.PatientName), former.PatientBirthDate) == (
        "MARTIN^Zoé", "19700102", "DUPONT^Anne", "19700101"
    )  # fmt: skip


@pytest.mark.req("REQ-DCM-70", "REQ-DCM-71")
def test_c_get_sends_what_is_known_now(server: Running) -> None:
    slices = keep(server.archive, *(ct_slice(rows=90, columns=91, number=number) for number in (1, 2, 3)))
    correct(server.archive, "IPP1", MARTIN)
    with Getter(server) as peer:
        peer.associate(GETTER)
        came, responses = peer.get(identifier())
        assert peer.echoes()
    assert responses[-1].Status == 0
    assert all(is_corrected(decoded(data)) for data in came.values())
    assert {uid: decoded(data).PixelData for uid, data in came.items()} == {
        ds.SOPInstanceUID: ds.PixelData for ds in slices
    }


@pytest.mark.req("REQ-DCM-70")
def test_a_file_that_was_cut_short_is_not_sent_corrected_as_if_it_were_whole(server: Running) -> None:
    whole, cut = keep(server.archive, ct_slice(number=1), ct_slice(number=2))
    correct(server.archive, "IPP1", MARTIN)
    path = path_of(server.archive, cut.SOPInstanceUID)
    os.truncate(path, path.stat().st_size - 100)
    with Getter(server) as peer:
        peer.associate(GETTER)
        came, responses = peer.get(identifier())
    assert came.keys() == {whole.SOPInstanceUID}
    assert (responses[-1].Status, counts(responses[-1])) == (Status.WARNING, (None, 1, 1, 0))


@pytest.mark.req("REQ-DCM-70")
def test_what_says_the_same_already_goes_as_it_lies(server: Running) -> None:
    slices = keep(server.archive, ct_slice(number=1), ct_slice(number=2))
    correct(server.archive, "IPP1", {"00100010": pn("DUPONT^Anne^"), "00100021": element("LO", "CABINET")})
    with Getter(server) as peer:
        peer.associate(GETTER)
        came, _ = peer.get(identifier())
    assert came == {ds.SOPInstanceUID: data_set(ds) for ds in slices}


@pytest.mark.req("REQ-DCM-70")
@pytest.mark.parametrize("stored", [EXPLICIT, IMPLICIT, DEFLATED, BIG_ENDIAN])
@pytest.mark.parametrize("taken", [(EXPLICIT,), (IMPLICIT,)])
def test_c_move_sends_what_is_known_now_in_what_the_peer_takes(
    settings: Settings, stored: str, taken: tuple[str, ...]
) -> None:
    target = Destination(syntaxes=taken)
    peers = {"DEST": {"host": "127.0.0.1", "port": target.port}}
    try:
        with running(settings, peers=peers, accept_unknown_callers=True) as server:
            [ds] = keep(server.archive, ct_slice(transfer_syntax=stored, PixelData=None, Rows=None, Columns=None))
            correct(server.archive, "IPP1", MARTIN)
            with Getter(server) as peer:
                peer.associate(GETTER)
                peer.ask(9, Field.C_MOVE_RQ, identifier(), destination="DEST")
                _, responses = peer.collect()
            assert responses[-1].Status == 0
            [(syntax, data)] = target.came.values()
            assert syntax in taken
            assert is_corrected(decoded(data, syntax))
            assert server.stored_uids() == [ds.SOPInstanceUID]
    finally:
        target.close()


@pytest.mark.req("REQ-DCM-70")
@pytest.mark.parametrize("stored", [DEFLATED, BIG_ENDIAN])
def test_pynetdicom_takes_corrections_in_odd_syntaxes(settings: Settings, stored: str) -> None:
    """Rebuilt in their own: deflated anew, big endian in big endian."""
    with running(settings) as server:
        keep(server.archive, ct_slice(transfer_syntax=stored, PixelData=None, Rows=None, Columns=None))
        correct(server.archive, "IPP1", MARTIN)
        came: list[tuple[str, Dataset]] = []

        def store(event: evt.Event) -> int:
            came.append((event.context.transfer_syntax, event.dataset))
            return 0

        ae = AE("GETTER")
        ae.add_requested_context(PatientRootQueryRetrieveInformationModelGet)
        ae.add_requested_context(CTImageStorage, stored)
        assoc = ae.associate(
            "127.0.0.1",
            server.port,
            ae_title="MINIPACS",
            ext_neg=[build_role(CTImageStorage, scp_role=True)],
            evt_handlers=[(evt.EVT_C_STORE, store)],
        )
        keys = Dataset()
        keys.QueryRetrieveLevel, keys.PatientID = "PATIENT", "IPP1"
        last = list(assoc.send_c_get(keys, PatientRootQueryRetrieveInformationModelGet))[-1]
        assoc.release()
        assert last[0].Status == 0
        [(syntax, ds)] = came
        assert syntax == stored
        assert is_corrected(ds)


@pytest.mark.req("REQ-DCM-37", "REQ-DCM-70")
def test_dcmtk_finds_and_gets_the_survivor_by_the_old_identifier(settings: Settings, tmp_path: Path) -> None:
    need("findscu", "getscu")
    with running(settings) as server:
        mine = ct_slice(StudyInstanceUID=new_uid("mine"), SeriesInstanceUID=new_uid("mine", "1"), PatientID="OLD")
        keep(server.archive, ct_slice(PatientID="NEW"), mine)
        merge(server.archive, "OLD", "NEW")
        folder = tmp_path / "came"
        folder.mkdir()
        place = ["-aec", "MINIPACS", "127.0.0.1", str(server.port)]
        keys = ["-k", "QueryRetrieveLevel=PATIENT", "-k", "PatientID=OLD"]
        subprocess.run(["getscu", "-P", *place, *keys, "-od", str(folder)], check=True, capture_output=True)
        files = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
        assert len(files) == 2
        assert {(ds.PatientID, str(ds.PatientName)) for ds in files} == {("NEW", "MARTIN^Anne")}
        [moved] = [ds for ds in files if ds.StudyInstanceUID == mine.StudyInstanceUID]
        former = moved.OriginalAttributesSequence[0].ModifiedAttributesSequence[0]
        assert (former.PatientID, str(former.PatientName)) == ("OLD", "DUPONT^Anne")
        answers = tmp_path / "answers"
        answers.mkdir()
        keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", "PatientID=OLD", "-k", "PatientName", "-k", "StudyInstanceUID"]
        subprocess.run(["findscu", "-P", *place, *keys, "-X", "-od", str(answers)], check=True, capture_output=True)
        found = [pydicom.dcmread(path, force=True) for path in answers.iterdir()]
        assert {(ds.PatientID, str(ds.PatientName)) for ds in found} == {("NEW", "MARTIN^Anne")}
        assert len(found) == 2


@pytest.mark.req("REQ-DCM-37", "REQ-DCM-70")
def test_c_find_says_what_c_get_sends_and_finds_by_the_national_identity(server: Running) -> None:
    keep(server.archive, ct_slice())
    correct(server.archive, "IPP1", MARTIN, accession="A2002")
    ae = AE("FINDER")
    ae.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    assoc = ae.associate("127.0.0.1", server.port, ae_title="MINIPACS")
    item = Dataset()
    item.PatientID, item.IssuerOfPatientID = "180013112345678", "ASIP-SANTE-INS-NIR"
    keys = Dataset()
    keys.SpecificCharacterSet = "ISO_IR 100"
    keys.QueryRetrieveLevel = "STUDY"
    keys.OtherPatientIDsSequence = [item]
    keys.PatientName = keys.PatientID = keys.PatientBirthDate = keys.AccessionNumber = ""
    found = [ds for status, ds in assoc.send_c_find(keys, StudyRootQueryRetrieveInformationModelFind) if ds]
    item.PatientID = "180013112345679"
    other = [ds for status, ds in assoc.send_c_find(keys, StudyRootQueryRetrieveInformationModelFind) if ds]
    assoc.release()
    assert other == []
    [ds] = found
    assert (str(ds.PatientName), ds.PatientBirthDate, ds.AccessionNumber) == ("MARTIN^Zoé", "19700102", "A2002")
    assert ds.OtherPatientIDsSequence[0].PatientID == "180013112345678"


@pytest.mark.req("REQ-DCM-15", "REQ-DCM-70")
def test_what_was_got_corrected_can_be_sent_back(settings: Settings, tmp_path: Path) -> None:
    """A workstation that archives what it was shown: the same image, nothing new."""
    need("storescu")
    with running(settings) as server:
        keep(server.archive, ct_slice())
        correct(server.archive, "IPP1", MARTIN)
        with Getter(server) as peer:
            peer.associate(GETTER)
            came, _ = peer.get(identifier())
        [data] = came.values()
        ds = decoded(data)
        ds.file_meta = ct_slice(SOPInstanceUID=ds.SOPInstanceUID).file_meta
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
        (tmp_path / "back.dcm").write_bytes(buffer.getvalue())
        done = subprocess.run(
            ["storescu", "-v", "-aec", "MINIPACS", "127.0.0.1", str(server.port), str(tmp_path / "back.dcm")],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert "Received Store Response (Success)" in done.stdout + done.stderr
        assert server.stored_uids() == [ds.SOPInstanceUID]
        with Getter(server) as peer:
            peer.associate(GETTER)
            assert peer.get(identifier())[0] == came
    with open_archive(settings, process="test") as archive, archive.reading() as conn:
        assert conn.execute(select(func.count()).select_from(quarantined)).scalar_one() == 0
