"""`export`: a medium that anybody can read, with what was said since; nothing half-done stands under its name."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.fileset import FileSet
from sqlalchemy import select

from archive import exporting
from archive.access import Action, Actor
from archive.core import Archive
from archive.errors import InvalidRequest, NotAllowed, NotFound, StorageFailed
from archive.exporting import export
from archive.index.correct import correct_patient
from archive.media import import_paths
from archive.schema import audit, patient
from tests.builders import ct_slice, new_uid, part10

EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture
def study(archive: Archive, actor: Actor, tmp_path: Path) -> str:
    """Two series of three images and one, with accents in the name."""
    uid, folder = new_uid(), tmp_path / "source"
    folder.mkdir()
    for number, series in enumerate([*[new_uid()] * 3, new_uid()], start=1):
        ds = ct_slice(number=number, StudyInstanceUID=uid, SeriesInstanceUID=series, PatientID="P1")
        (folder / f"{number}.dcm").write_bytes(part10(ds))
    assert import_paths(archive, [folder], actor=actor).stored == 4
    return uid


def images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "DICOMDIR")


@pytest.mark.req("REQ-DCM-56")
def test_a_medium_has_a_dicomdir_and_every_image_as_it_leaves(
    archive: Archive, actor: Actor, study: str, tmp_path: Path
) -> None:
    with archive.engine.connect() as conn:
        (pk,) = conn.execute(select(patient.c.pk)).scalars()
    said = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "DUPONT^Zoé"}]}}
    archive.commit.run(lambda conn: correct_patient(conn, pk, said, reason="CORRECT", at=archive.clock()))
    steps: list[tuple[int, int]] = []
    done = export(archive, [study], tmp_path / "cd", actor=actor, progress=lambda *step: steps.append(step))
    assert (done.instances, done.left_out, steps[-1]) == (4, [], (4, 4))
    files = FileSet(tmp_path / "cd" / "DICOMDIR")
    assert len(files) == 4
    assert {str(one.PatientName) for one in files} == {"DUPONT^Zoé"}
    for one in files:
        ds = dcmread(one.path)
        assert (ds.StudyInstanceUID, ds.SOPInstanceUID, str(ds.PatientName)) == (
            study,
            one.SOPInstanceUID,
            "DUPONT^Zoé",
        )
        assert ds.file_meta.TransferSyntaxUID == EXPLICIT == one.ReferencedTransferSyntaxUIDInFile
        assert len(ds.PixelData) == ds.Rows * ds.Columns * 2
    assert sum(path.stat().st_size for path in images(tmp_path / "cd")) == done.bytes
    for name in (part for path in images(tmp_path / "cd") for part in path.relative_to(tmp_path / "cd").parts):
        assert len(name) <= 8, "a file ID (PS3.10 8.2)"
        assert name.replace("_", "").isalnum()
        assert name == name.upper()
    if shutil.which("dcmdump"):  # DCMTK reads the same
        dumped = subprocess.run(["dcmdump", tmp_path / "cd" / "DICOMDIR"], capture_output=True, check=True).stdout
        assert dumped.count(b"[IMAGE]") == 4


@pytest.mark.req("REQ-DCM-56")
def test_what_was_exported_can_be_imported_and_is_already_there(
    archive: Archive, actor: Actor, study: str, tmp_path: Path
) -> None:
    export(archive, [study], tmp_path / "study.zip", actor=actor, as_zip=True)
    with zipfile.ZipFile(tmp_path / "study.zip") as bundle:
        assert bundle.testzip() is None
        assert "DICOMDIR" in bundle.namelist()
    again = import_paths(archive, [tmp_path / "study.zip"], actor=actor)
    assert (again.stored, again.already_stored, again.clean) == (0, 4, True)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.req("REQ-DCM-56", "REQ-SEC-23")
def test_an_export_is_audited_once_for_each_study(archive: Archive, actor: Actor, study: str, tmp_path: Path) -> None:
    export(archive, [study], tmp_path / "cd", actor=actor)
    archive.accesses.close()
    with archive.engine.connect() as conn:
        rows = conn.execute(select(audit).where(audit.c.event == "110106").order_by(audit.c.pk)).all()
    assert [(row.action, row.study, row.user) for row in rows] == [("R", study, actor.user)] * 2
    assert '"destination":"media"' in rows[0].detail
    assert '"instances":4' in rows[1].detail


@pytest.mark.req("REQ-DCM-56")
def test_who_may_not_and_what_is_not_there_leave_no_folder(
    archive: Archive, actor: Actor, study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "cd"
    with pytest.raises(NotAllowed):
        export(archive, [study], to, actor=replace(actor, may=actor.may - {Action.EXPORT}))
    with pytest.raises(NotFound):
        export(archive, [study, "1.2.3"], to, actor=actor)
    with pytest.raises(InvalidRequest):
        export(archive, [], to, actor=actor)
    for path in archive.hot.root.rglob("*.dcm"):
        path.unlink()
        break
    with pytest.raises(StorageFailed):
        export(archive, [study], to, actor=actor)
    assert not to.exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    to.mkdir()
    (to / "mine").touch()
    with pytest.raises(InvalidRequest, match="exists already"):
        export(archive, [study], to, actor=actor)

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "_copied", full)
    with pytest.raises(StorageFailed):
        export(archive, [study], tmp_path / "other", actor=actor)
    assert not (tmp_path / "other").exists()
    archive.accesses.close()
    with archive.engine.connect() as conn:
        rows = conn.execute(select(audit).where(audit.c.event == "110106", audit.c.outcome > 0)).all()
    assert '"instances":0' in rows[-1].detail, "what never stood anywhere did not leave"


def only_series(archive: Archive, actor: Actor, folder: Path, **attributes: object) -> str:
    ds = ct_slice(StudyInstanceUID=new_uid(), SeriesInstanceUID=new_uid(), **attributes)
    (folder / f"{ds.SOPInstanceUID}.dcm").write_bytes(part10(ds))
    assert import_paths(archive, [folder / f"{ds.SOPInstanceUID}.dcm"], actor=actor).clean
    return str(ds.StudyInstanceUID)


@pytest.mark.req("REQ-DCM-56")
def test_patients_are_told_apart_also_without_an_identifier(archive: Archive, actor: Actor, tmp_path: Path) -> None:
    names = ("DUPONT^ANNE", "MARTIN^JEAN")
    uids = [only_series(archive, actor, tmp_path, PatientID="", PatientName=name) for name in names]
    export(archive, uids, tmp_path / "cd", actor=actor)
    files = FileSet(tmp_path / "cd" / "DICOMDIR")
    assert {(str(one.PatientName), dcmread(one.path).StudyInstanceUID) for one in files} == set(
        zip(names, uids, strict=True)
    )
    assert len({str(one.PatientID) for one in files}) == 2
    same = [only_series(archive, actor, tmp_path, PatientID="7", IssuerOfPatientID=of) for of in ("A", "B")]
    with pytest.raises(InvalidRequest, match="apart"):
        export(archive, same, tmp_path / "other", actor=actor)
    assert not (tmp_path / "other").exists()


@pytest.mark.req("REQ-DCM-56")
def test_an_empty_medium_is_written_to_its_root(archive: Archive, actor: Actor, study: str, tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "key")
    export(archive, [study], tmp_path / "link", actor=actor)
    assert len(FileSet(tmp_path / "key" / "DICOMDIR")) == 4
    assert sorted(path.name for path in (tmp_path / "key").iterdir()) == ["DICOMDIR", "PT000000"]


@pytest.mark.req("REQ-DCM-56")
def test_what_a_header_lacks_is_said_in_the_dicomdir_alone(archive: Archive, actor: Actor, tmp_path: Path) -> None:
    ds = ct_slice(number=1)
    for keyword in ("PatientID", "StudyDate", "StudyTime", "StudyID", "SeriesNumber", "InstanceNumber"):
        if keyword in ds:
            delattr(ds, keyword)
    (tmp_path / "bare.dcm").write_bytes(part10(ds))
    import_paths(archive, [tmp_path / "bare.dcm"], actor=actor)
    done = export(archive, [ds.StudyInstanceUID], tmp_path / "cd", actor=actor)
    assert (done.instances, done.left_out) == (1, [])
    (one,) = FileSet(tmp_path / "cd" / "DICOMDIR")
    assert dcmread(one.path) == ds


@pytest.mark.req("REQ-DCM-56")
def test_an_object_without_a_place_in_a_dicomdir_is_named(archive: Archive, actor: Actor, tmp_path: Path) -> None:
    good = ct_slice(number=1, PatientID="P2")
    report = ct_slice(number=2, PatientID="P2", StudyInstanceUID=good.StudyInstanceUID, SeriesInstanceUID=new_uid())
    report.SOPClassUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.11", "SR"
    del report.PixelData  # nor what a record of a report has to say: flags, title
    for number, ds in enumerate((good, report)):
        (tmp_path / f"{number}.dcm").write_bytes(part10(ds))
    assert import_paths(archive, [tmp_path / "0.dcm", tmp_path / "1.dcm"], actor=actor).clean
    done = export(archive, [good.StudyInstanceUID], tmp_path / "cd", actor=actor)
    assert done.instances == 1
    ((uid, why),) = done.left_out
    assert uid == report.SOPInstanceUID
    assert "DICOMDIR" in why
