"""What a DRIMbox brings here from others (REQ-DRIM-08): told apart, never shared again, and its patient's."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from sqlalchemy import select

from archive.access import PEER_MAY, SYSTEM, Actor, Door
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.dicom.patient_id import cx
from archive.index.arrival import RECOVERED
from archive.index.patients import owner_of
from archive.ingest import adopt, ingest
from archive.network import Sharing
from archive.rebuild import rebuild
from archive.schema import instance
from archive.sites import is_imported
from archive.storage.part10 import Part10
from archive.work_items import Kind, list_items
from tests.api.conftest import on_both_databases
from tests.api.test_manifests import INS, NAMES, OID, WHO, asked, configured, listed, made
from tests.api.test_stow import post
from tests.builders import ct_slice, new_uid, part10
from tests.conftest import new_database
from tests.hl7_listener.saying import ISSUER, pid, say

DRIMBOX = "DRIMBOX"
STUDY = new_uid("theirs")
ELSEWHERE = {"StudyInstanceUID": STUDY, "SeriesInstanceUID": new_uid("of theirs")}
OURS = {"PatientID": "R1", "IssuerOfPatientID": ISSUER, "PatientName": "DUPONT^ANNE"}
BY_INS = {  # as a DRIMbox names them: the number, who gives it, birth name, birth date and sex
    "PatientID": INS,
    "IssuerOfPatientID": "ASIP-SANTE-INS-NIR",
    "PatientName": "DUPONT^ANNE",
    "PatientBirthDate": "19850712",
    "PatientSex": "F",
}


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    sharing = {"imports_from": [DRIMBOX], "imports_by": {"drimbox": DRIMBOX}}
    with open_archive(configured(settings, sharing=sharing), process="test") as opened:
        say(opened, "A28", pid("R1", NAMES, **WHO))
        yield opened


@pytest.fixture
def drimbox(url: str, token: Callable[..., str]) -> Iterator[httpx.Client]:
    """A DRIMbox that uses STOW-RS."""
    headers = {"Authorization": f"Bearer {token(name='drimbox')}"}
    with httpx.Client(base_url=url, headers=headers, timeout=30) as caller:
        yield caller


def bring(archive: Archive, ds: Dataset, *, by: str = DRIMBOX) -> None:
    """Store an image as a peer does with C-STORE."""
    file = Part10(archive.hot, at=archive.clock(), source_ae=by)
    file.feed(part10(ds))
    actor = Actor(user=by, source="127.0.0.1", door=Door.DICOM, may=PEER_MAY["store"])
    ingest(archive, file.finish(), actor=actor)


def leaves(client: httpx.Client, study: str = STUDY) -> tuple[dict[str, Any], Dataset]:
    """A study as a query tells it, and one of its images as it is given."""
    [told] = client.get(f"/dicom-web/studies?StudyInstanceUID={study}").json()
    instances = client.get(f"/dicom-web/studies/{study}/instances").json()
    series, one = (instances[0][key]["Value"][0] for key in ("0020000E", "00080018"))
    answer = client.get(
        f"/dicom-web/studies/{study}/series/{series}/instances/{one}", headers={"Accept": "application/dicom"}
    )
    assert answer.status_code == 200
    return told, pydicom.dcmread(io.BytesIO(answer.content))


def is_of_r1(client: httpx.Client, study: str = STUDY) -> None:
    """It leaves under the local identifier, and says which one it came with."""
    told, ds = leaves(client, study)
    assert told["00100020"]["Value"] == ["R1"]
    assert (ds.PatientID, ds.IssuerOfPatientID) == ("R1", ISSUER)
    [former] = ds.OriginalAttributesSequence[-1].ModifiedAttributesSequence
    assert (former.PatientID, former.IssuerOfPatientID) == (INS, "ASIP-SANTE-INS-NIR")


def waiting(archive: Archive) -> int:
    """How many patients a person is asked about."""
    with archive.reading() as conn:
        return len(list_items(conn, kind=Kind.UNKNOWN_PATIENT))


@on_both_databases
@pytest.mark.req("REQ-DRIM-08")
def test_it_is_told_apart_and_never_shared_again(archive: Archive, client: httpx.Client, drimbox: httpx.Client) -> None:
    """An image that a DRIMbox brought into a study of ours, and studies that are all of others."""
    mine = ct_slice(**OURS)
    study = str(mine.StudyInstanceUID)
    assert post(client, part10(mine)).status_code == 200
    bring(archive, ct_slice(number=2, **OURS))
    assert post(drimbox, part10(ct_slice(number=3, **OURS))).status_code == 200
    for uid in (new_uid("by C-STORE"), new_uid("by STOW")):
        ds = ct_slice(**OURS, StudyInstanceUID=uid, SeriesInstanceUID=new_uid("series", uid))
        if uid == new_uid("by C-STORE"):
            bring(archive, ds)
        else:
            assert post(drimbox, part10(ds)).status_code == 200
        assert client.get(f"/api/v1/studies/{uid}").json()["origin"] == "DRIM"
        assert asked(client, uid).status_code == 404
    assert client.get(f"/api/v1/studies/{study}").json()["instances"] == 3
    assert listed(made(client)) == {mine.SOPInstanceUID}


@pytest.mark.req("REQ-DRIM-08")
def test_who_is_no_drimbox_brings_what_is_ours() -> None:
    told = Sharing(imports_from=(DRIMBOX,), imports_by={"drimbox": DRIMBOX})
    brought = [f"network:{DRIMBOX}", "web:drimbox", f"{RECOVERED}{DRIMBOX}"]
    others = [f"web:{DRIMBOX}", "web:other", "network:CT1", "media:x"]
    assert [one for one in brought + others if is_imported(told, one)] == brought
    assert not is_imported(Sharing(), "web:")
    with pytest.raises(ValueError, match="OTHER is not in imports_from"):
        Sharing(imports_from=(DRIMBOX,), imports_by={"drimbox": "OTHER"})


@on_both_databases
@pytest.mark.req("REQ-DRIM-08", "REQ-DCM-71")
def test_whoever_it_names_by_the_ins_is_the_patient_here(
    archive: Archive, client: httpx.Client, drimbox: httpx.Client
) -> None:
    """By each door, and by the OID of the number as by its issuer's name; the further images too."""
    for number in (1, 2):
        bring(archive, ct_slice(number=number, **ELSEWHERE, **BY_INS))
    is_of_r1(client)
    study = new_uid("by STOW")
    ds = ct_slice(**{**BY_INS, "IssuerOfPatientID": "INS"}, StudyInstanceUID=study, SeriesInstanceUID=new_uid("s"))
    qualifiers = Dataset()
    qualifiers.UniversalEntityID, qualifiers.UniversalEntityIDType = OID, "ISO"
    ds.IssuerOfPatientIDQualifiersSequence = Sequence([qualifiers])
    assert post(drimbox, part10(ds)).json()["00081199"]["Value"]
    told, given = leaves(client, study)
    assert (told["00100020"]["Value"], given.PatientID) == (["R1"], "R1")
    assert waiting(archive) == 0


@pytest.mark.req("REQ-DRIM-08")
def test_it_is_known_again_from_its_file(archive: Archive, client: httpx.Client) -> None:
    """Power failed before the COMMIT, or the index is made anew: the AE title stands in the file, whatever it named."""
    file = Part10(archive.hot, at=archive.clock(), source_ae="ELSEWHERE", brought_by=DRIMBOX)
    ds = ct_slice(**ELSEWHERE, **BY_INS)
    ds.file_meta.SourceApplicationEntityTitle = "THEIRS"
    file.feed(part10(ds))
    incoming = file.finish()
    incoming.settle()
    adopt(archive, incoming.final, actor=SYSTEM)
    is_of_r1(client)
    assert client.get(f"/api/v1/studies/{STUDY}").json()["origin"] == "DRIM"


@pytest.mark.req("REQ-DRIM-08", "REQ-DCM-71")
def test_an_index_that_is_made_anew_says_the_same(
    archive: Archive, actor: Actor, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bring(archive, ct_slice(**ELSEWHERE, **BY_INS))
    archive.close()
    (other := tmp_path / "other").mkdir()
    with new_database("sqlite", other, request, template=request.getfixturevalue("migrated_sqlite")) as url:
        settings = archive.settings.model_copy(
            update={"database": archive.settings.database.model_copy(update={"url": url})}
        )
        with open_archive(settings, process="rebuild") as again:
            assert rebuild(again, actor=actor).stored == 1
            with again.reading() as conn:
                assert owner_of(conn, STUDY) == cx("R1", ISSUER)
                assert [
                    is_imported(settings.sharing, one) for one in conn.execute(select(instance.c.source)).scalars()
                ] == [True]
            assert waiting(again) == 0


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("CT1", {}),  # a modality that has an INS as Patient ID: the RIS has to say whose
        (DRIMBOX, {"PatientBirthDate": "19850713"}),
        (DRIMBOX, {"PatientBirthDate": ""}),
        (DRIMBOX, {"PatientSex": "M"}),
        (DRIMBOX, {"PatientID": f"{INS[:-1]}9"}),  # its key is wrong
        (DRIMBOX, {"IssuerOfPatientID": "ASIP-SANTE-INS-NIA"}),
        (DRIMBOX, {"IssuerOfPatientID": "THEIR HOSPITAL"}),
    ],
)
@pytest.mark.req("REQ-DRIM-08", "REQ-DCM-17")
def test_in_doubt_it_waits_for_a_person(archive: Archive, client: httpx.Client, by: str, said: dict[str, str]) -> None:
    bring(archive, ct_slice(**ELSEWHERE, **{**BY_INS, **said}), by=by)
    told, ds = leaves(client)
    assert ds.PatientID == told["00100020"]["Value"][0] == {**BY_INS, **said}["PatientID"]
    assert waiting(archive) == 1
