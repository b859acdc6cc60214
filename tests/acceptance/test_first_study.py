"""A study arrives, is kept, is found and is given back: real processes, real clients, both databases."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import httpx
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from pynetdicom import AE
from pynetdicom.sop_class import PatientRootQueryRetrieveInformationModelFind as PatientRoot
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as StudyRoot
from sqlalchemy import create_engine, text

from tests.acceptance.clients import CT, DCMTK, MR, OTHER_MR, digests, find, parts_digests, receiver, tool
from tests.builders import ct_slice, new_uid
from tests.conftest import need
from tests.server import Server


@pytest.fixture(scope="module")
def stored(server: Server) -> Server:
    need("storescu", "getscu", "movescu", "storescp", "findscu")
    tool("storescu", "-aec", "MINIPACS", "-aet", "CT1", "127.0.0.1", server.dicom_port, *CT)
    tool("storescu", "-aec", "MINIPACS", "-aet", "MR1", "127.0.0.1", server.dicom_port, *MR)
    return server


@pytest.mark.req("REQ-DCM-01")
def test_echo(server: Server) -> None:
    need("echoscu")
    tool("echoscu", "-aec", "MINIPACS", "127.0.0.1", server.dicom_port)


@pytest.mark.req("REQ-DCM-11", "REQ-DCM-30", "REQ-DCM-31")
def test_a_ct_and_an_mr_are_found_at_every_level(stored: Server) -> None:
    ct, mr = pydicom.dcmread(CT[0]), pydicom.dcmread(MR[0])
    for ds, files in ((ct, CT), (mr, MR)):
        patients = find(stored, PatientRoot, QueryRetrieveLevel="PATIENT", PatientID=ds.PatientID, PatientName="")
        assert [answer.PatientName for answer in patients] == [ds.PatientName]
        studies = find(
            stored,
            StudyRoot,
            QueryRetrieveLevel="STUDY",
            PatientID=ds.PatientID,
            StudyInstanceUID="",
            ModalitiesInStudy=ds.Modality,
            NumberOfStudyRelatedInstances="",
        )
        assert [answer.StudyInstanceUID for answer in studies] == [ds.StudyInstanceUID]
        assert studies[0].NumberOfStudyRelatedInstances == len(files)
        assert studies[0].InstanceAvailability == "ONLINE"
        assert studies[0].RetrieveAETitle == "MINIPACS"
        series = find(
            stored,
            StudyRoot,
            QueryRetrieveLevel="SERIES",
            StudyInstanceUID=ds.StudyInstanceUID,
            SeriesInstanceUID="",
            Modality="",
        )
        assert [(answer.SeriesInstanceUID, answer.Modality) for answer in series] == [
            (ds.SeriesInstanceUID, ds.Modality)
        ]
        images = find(
            stored,
            StudyRoot,
            QueryRetrieveLevel="IMAGE",
            StudyInstanceUID=ds.StudyInstanceUID,
            SeriesInstanceUID=ds.SeriesInstanceUID,
            SOPInstanceUID="",
            InstanceNumber="",
        )
        assert {answer.SOPInstanceUID for answer in images} == set(digests(files))


@pytest.mark.req("REQ-DCM-10", "REQ-DCM-12")
def test_get_brings_back_the_same_bytes(stored: Server, tmp_path: Path) -> None:
    for files in (CT, MR):
        study = pydicom.dcmread(files[0]).StudyInstanceUID
        folder = tmp_path / f"get-{study}"
        folder.mkdir()
        tool(
            *("getscu", "+B", "-S", "-aec", "MINIPACS", "-od", folder, "127.0.0.1", stored.dicom_port),
            *("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}"),
        )
        assert digests(list(folder.iterdir())) == digests(files)


@pytest.mark.req("REQ-DCM-39", "REQ-DCM-40")
def test_move_brings_back_the_same_bytes(stored: Server, tmp_path: Path, move_port: int) -> None:
    for files in (CT, MR):
        study = pydicom.dcmread(files[0]).StudyInstanceUID
        folder = tmp_path / f"move-{study}"
        folder.mkdir()
        with receiver(folder, move_port):
            tool(
                *("movescu", "-S", "-aec", "MINIPACS", "-aem", "STORESCP", "127.0.0.1", stored.dicom_port),
                *("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}"),
            )
        assert digests(list(folder.iterdir())) == digests(files)


@pytest.mark.req("REQ-DCM-39")
def test_an_unknown_destination_is_named(stored: Server) -> None:
    study = pydicom.dcmread(CT[0]).StudyInstanceUID
    done = subprocess.run(
        [
            *("movescu", "-d", "-S", "-aec", "MINIPACS", "-aem", "NOWHERE", "127.0.0.1", str(stored.dicom_port)),
            *("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}"),
        ],
        capture_output=True,
        text=True,
        env=DCMTK,
        timeout=60,
        check=False,
    )
    assert "0xa801" in (done.stdout + done.stderr).lower()


@pytest.mark.req("REQ-DCM-90", "REQ-DCM-91")
def test_wado_brings_back_the_same_bytes(stored: Server) -> None:
    with stored.client("radiologist") as client:
        web = DICOMwebClient(f"{stored.web}/dicom-web", headers={"Authorization": client.headers["Authorization"]})
        for files in (CT, MR):
            ds = pydicom.dcmread(files[0])
            response = client.get(
                f"/dicom-web/studies/{ds.StudyInstanceUID}",
                headers={"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'},
            )
            assert response.status_code == 200
            assert parts_digests(response) == digests(files)
            assert {str(one.SOPInstanceUID) for one in web.retrieve_study(ds.StudyInstanceUID)} == set(digests(files))
            metadata = web.retrieve_series_metadata(ds.StudyInstanceUID, ds.SeriesInstanceUID)
            assert {one["00080018"]["Value"][0] for one in metadata} == set(digests(files))
            frames = web.retrieve_instance_frames(
                ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID, frame_numbers=[1]
            )
            assert frames == [ds.PixelData]


@pytest.mark.req("REQ-DCM-10", "REQ-DCM-94")
def test_a_real_study_that_came_through_stow_is_given_back_the_same(server: Server, tmp_path: Path) -> None:
    need("getscu")
    study = pydicom.dcmread(OTHER_MR[0]).StudyInstanceUID
    parts = [b"--b\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n" for path in OTHER_MR]
    with server.client("technologist") as client:
        answer = client.post(
            f"/dicom-web/studies/{study}",
            headers={"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'},
            content=b"".join(parts) + b"--b--",
        )
        assert answer.status_code == 200, answer.text
        response = client.get(
            f"/dicom-web/studies/{study}",
            headers={"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'},
        )
    assert parts_digests(response) == digests(OTHER_MR)
    tool(
        *("getscu", "+B", "-S", "-aec", "MINIPACS", "-od", tmp_path, "127.0.0.1", server.dicom_port),
        *("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}"),
    )
    assert digests(list(tmp_path.iterdir())) == digests(OTHER_MR)


@pytest.mark.req("REQ-DCM-93", "REQ-DCM-94")
def test_a_study_comes_through_stow_and_is_found_by_qido(server: Server) -> None:
    uids = {"StudyInstanceUID": new_uid(), "SeriesInstanceUID": new_uid()}
    datasets = [ct_slice(number=number, rows=64, columns=64, **uids) for number in range(1, 4)]
    token = server.token("technologist")
    web = DICOMwebClient(f"{server.web}/dicom-web", headers={"Authorization": f"Bearer {token}"})
    web.store_instances(datasets)
    studies = web.search_for_studies(search_filters={"PatientName": "dupont*"})
    assert [one["0020000D"]["Value"] for one in studies] == [[datasets[0].StudyInstanceUID]]
    found = web.search_for_instances(datasets[0].StudyInstanceUID)
    assert {one["00080018"]["Value"][0] for one in found} == {str(ds.SOPInstanceUID) for ds in datasets}
    got = web.retrieve_study(datasets[0].StudyInstanceUID)
    assert {str(ds.SOPInstanceUID) for ds in got} == {str(ds.SOPInstanceUID) for ds in datasets}
    assert {ds.PixelData for ds in got} == {ds.PixelData for ds in datasets}


def audit_rows(server: Server) -> list[dict[str, object]]:
    with server.client("auditor") as client:
        return list(client.get("/api/v1/audit?limit=1000").json()["items"])


@pytest.mark.req("REQ-SEC-20")
def test_every_door_is_audited_denied_ones_too(stored: Server, tmp_path: Path, move_port: int) -> None:
    study = str(pydicom.dcmread(CT[0]).StudyInstanceUID)
    with receiver(tmp_path, move_port):
        tool(
            *("movescu", "-S", "-aec", "MINIPACS", "-aem", "STORESCP", "127.0.0.1", stored.dicom_port),
            *("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}"),
        )
    find(stored, StudyRoot, QueryRetrieveLevel="STUDY", StudyInstanceUID=study)
    tool(
        *("getscu", "+B", "-S", "-aet", "READER", "-aec", "MINIPACS", "-od", tmp_path, "127.0.0.1", stored.dicom_port),
        *("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}"),
    )
    with stored.client("radiologist") as client:
        assert client.get(f"/dicom-web/studies?StudyInstanceUID={study}").status_code == 200
        assert client.get(f"/dicom-web/studies/{study}").status_code == 200
    with stored.client("it_admin") as client:
        assert client.get(f"/dicom-web/studies/{study}").status_code == 403
    assert httpx.get(f"{stored.web}/dicom-web/studies/{study}").status_code == 401
    ae = AE("PYNETDICOM")
    ae.add_requested_context(StudyRoot)
    assert not ae.associate("127.0.0.1", stored.dicom_port, ae_title="WRONG").is_established
    time.sleep(1.2)  # a query's row is committed within a second
    rows = audit_rows(stored)
    seen = {(row["event"], row["action"], row["door"], row["outcome"], row["user"]) for row in rows}

    def someone(event: str, action: str, door: str, *, ok: bool, user: str | None = None) -> bool:
        return any(
            (one[0], one[1], one[2]) == (event, action, door)
            and (one[3] == 0) is ok
            and (user is None or one[4] == user)
            for one in seen
        )

    moved = [row["detail"] for row in rows if row["detail"].get("destination") == "STORESCP"]  # type: ignore[attr-defined]
    assert len(moved) >= 1
    assert someone("110104", "C", "dicom", ok=True, user="CT1")
    assert someone("110104", "C", "dicom", ok=True, user="MR1")
    assert someone("110112", "E", "dicom", ok=True, user="PYNETDICOM")
    assert someone("110104", "R", "dicom", ok=True, user="READER")
    assert someone("110112", "E", "dicomweb", ok=True)
    assert someone("110104", "R", "dicomweb", ok=True)
    refusals = [row for row in rows if row["outcome"] != 0]
    assert {row["door"] for row in refusals} >= {"dicom", "dicomweb"}
    assert len([row for row in refusals if row["door"] == "dicomweb"]) >= 2  # 401 and 403


@pytest.mark.req("REQ-SEC-04")
def test_the_chain_verifies_and_names_one_altered_byte(stored: Server) -> None:
    assert stored.stop() == 0
    done = stored.command("verify-audit", "--json")
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, True)
    engine = create_engine(stored.database_url)
    with engine.begin() as conn:
        pk = conn.execute(text("SELECT max(pk) - 1 FROM audit")).scalar_one()
        conn.execute(text("UPDATE audit SET study = '2' || substr(study, 2) WHERE pk = :pk"), {"pk": pk})
        changed = conn.execute(text("SELECT study FROM audit WHERE pk = :pk"), {"pk": pk}).scalar_one()
        if changed is None:
            conn.execute(text("UPDATE audit SET source = source || '1' WHERE pk = :pk"), {"pk": pk})
    engine.dispose()
    done = stored.command("verify-audit", "--json")
    verdict = json.loads(done.stdout)
    assert (done.returncode, verdict["ok"]) == (1, False)
    assert str(pk) in json.dumps(verdict["row"])
    stored.start()
