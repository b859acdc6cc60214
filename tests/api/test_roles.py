"""Every role at every address: the table of sheet 60 §5, written here as the sheet has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic, sleep

import httpx
import pytest

from archive import accounts, jobs
from archive.access import SYSTEM as ACTS
from archive.access import Actor, Role
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.identity.record import Ins, Record, to_json
from archive.ingest import ingest
from archive.rejecting import reject
from archive.schema import patient, purge
from archive.sections import Supplier
from archive.storage.part10 import Part10
from tests.api.conftest import PASSWORD, on_both_databases, serving
from tests.api.test_auth import OPEN, every_address, rows
from tests.api.test_hl7 import fill
from tests.builders import ct_slice, part10

# ● of the sheet; ◐ is not granted before scopes exist
FIND = {"radiologist", "technologist", "secretary", "identity_officer", "quality", "service"}
SEE = {"radiologist", "technologist", "service"}
STORE = {"radiologist", "technologist", "secretary", "service"}
SETTLE = {"radiologist", "identity_officer"}
AUDIT = {"auditor", "service"}
SYSTEM = {"radiologist", "secretary", "it_admin", "auditor", "quality", "service"}
TESTBED = {"it_admin", "service"}
RETENTION = {"radiologist", "quality"}
PURGES = {"radiologist", "it_admin", "auditor", "quality", "service"}
HOLD = {"radiologist", "quality"}
REJECT = {"radiologist", "quality"}
REVIEW = {*REJECT, "service"}
FORESEE = {*HOLD, "service"}  # which may read every resource of /api/v1

EXPORT = {"radiologist", "technologist", "secretary"}  # sending away is export media
ADMINISTER = {"it_admin"}
LOOK = EXPORT | ADMINISTER | SYSTEM  # at peers and jobs

STUDY = "/dicom-web/studies/1.2.3"
SERIES = f"{STUDY}/series/1.2.3"
INSTANCE = f"{SERIES}/instances/1.2.3"
FRAME = f"{INSTANCE}/frames/{{frame}}"
PAGE = "/etudes/1.2.3"
TABLE = {
    "GET /dicom-web/studies": FIND,
    "GET /dicom-web/series": FIND,
    "GET /dicom-web/instances": FIND,
    f"GET {STUDY}/series": FIND,
    f"GET {STUDY}/instances": FIND,
    f"GET {SERIES}/instances": FIND,
    **{f"GET {path}{end}": SEE for path in (STUDY, SERIES, INSTANCE) for end in ("", "/metadata")},
    f"GET {INSTANCE}/bulkdata/7FE00010": SEE,
    f"GET {INSTANCE}/frames/1": SEE,
    **{f"GET {path}/rendered": SEE for path in (STUDY, SERIES, INSTANCE, FRAME)},
    **{f"GET {path}/thumbnail": SEE for path in (STUDY, SERIES, INSTANCE, FRAME)},
    "GET /wado": SEE,
    **{f"DELETE {path}": REJECT for path in (STUDY, SERIES, INSTANCE)},
    "POST /dicom-web/studies": STORE,
    f"POST {STUDY}": STORE,
    "GET /api/v1/studies": FIND,
    "GET /api/v1/studies/1.2.3": FIND,
    "GET /api/v1/changes": FIND,
    "GET /api/v1/work-items": FIND,
    "POST /api/v1/work-items/{item}/settle": SETTLE,
    "GET /api/v1/patients": FIND,
    "GET /api/v1/patients/{patient}/history": FIND,
    "POST /api/v1/patients/look-up": FIND,
    "GET /identite": FIND,
    "POST /identite": FIND,
    "GET /api/v1/orders": FIND,
    "GET /api/v1/visits": FIND,
    "GET /api/v1/audit": AUDIT,
    "GET /fhir/Patient": FIND,
    "POST /fhir/Patient/_search": FIND,
    "GET /fhir/Patient/{patient}": FIND,
    "GET /fhir/ImagingStudy": FIND,
    "POST /fhir/ImagingStudy/_search": FIND,
    "GET /fhir/ImagingStudy/1.2.3": FIND,
    "GET /fhir/AuditEvent": AUDIT,
    "POST /fhir/AuditEvent/_search": AUDIT,
    "GET /fhir/AuditEvent/{entry}": AUDIT,
    "GET /api/v1/system": SYSTEM,
    "GET /api/v1/probes": SYSTEM,
    "GET /api/v1/peers": LOOK,
    "POST /api/v1/peers/{name}/send": EXPORT,
    "POST /api/v1/peers/{name}/echo": ADMINISTER,
    "GET /api/v1/jobs": LOOK,
    "GET /api/v1/jobs/{job}": LOOK,
    **{f"POST /api/v1/jobs/{{job}}/{act}": ADMINISTER for act in ("retry", "cancel")},
    "GET /api/v1/hl7/messages": SYSTEM,
    "GET /api/v1/hl7/messages/{message}/raw": FIND,
    "PUT /api/v1/testbed/clock": TESTBED,
    **{f"POST /api/v1/retention/{act}": RETENTION for act in ("run", "approve", "resume")},
    **{f"GET /api/v1/retention/purges{end}": PURGES for end in ("", "/{purge}", "/{purge}/certificate")},
    "GET /api/v1/holds": FORESEE,
    "POST /api/v1/holds": HOLD,
    "DELETE /api/v1/holds/{id}": HOLD,
    "GET /api/v1/retention/preview": FORESEE,
    "GET /api/v1/studies/1.2.3/key-images": FIND,
    "GET /api/v1/studies/1.2.3/manifest": SEE,
    "GET /api/v1/studies/1.2.3/dose": FIND,
    "GET /api/v1/dose": FIND,
    "POST /api/v1/studies/1.2.3/reject": REJECT,
    "GET /api/v1/studies/1.2.3/rejections": REVIEW,
    "GET /api/v1/rejections/{note}": REVIEW,
    "DELETE /api/v1/rejections/{note}": REJECT,
    f"POST {PAGE}/rejet": REJECT,
    f"POST {PAGE}/rejets/{{note}}/fin": REJECT,
    "GET /travail": FIND,
    "POST /travail/{item}": SETTLE,
    "GET /conservation": FORESEE,
    "POST /conservation/reprise": RETENTION,
    "POST /conservation/mises/{hold}/fin": HOLD,
    f"POST {PAGE}/conservation": HOLD,
    f"POST {PAGE}/accord": RETENTION,
    f"POST {PAGE}/envoi": EXPORT,
    **{f"GET /viewer{end}": SEE for end in ("", "/", "/open", "/{mode:str}")},
    f"GET {PAGE}": FIND,
    f"GET {PAGE}/series/1.2.3": SEE,
    f"GET {PAGE}/images/1.2.3": SEE,
}
ASKED = {  # what has to be said
    "/api/v1/patients": "?identifier=IPP1",
    "/api/v1/orders": "?accession=A1001",
    "/api/v1/visits": "?number=VN1",
    "/fhir/Patient": "?identifier=IPP1",
    "/wado": "?requestType=WADO&studyUID=<study>&seriesUID=<series>&objectUID=<instances>",
}
ANYBODY = {  # who is known; or how one becomes so
    "GET /",
    "GET /api/openapi.json",
    "GET /api/v1/testbed/clock",
    "GET /fhir/metadata",
    "POST /deconnexion",
    *(f"{method} /api/v1/session" for method in ("GET", "POST", "DELETE")),
    *(f"{method} {path}" for path in OPEN for method in ("GET", "POST")),
}


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    """In test mode: then the clock of the test bed is an address too. With somebody to ask who patients are."""
    asked = settings.hl7.model_copy(update={"supplier": Supplier(host="127.0.0.1", port=9)})
    told = settings.model_copy(update={"test_mode": True, "hl7": asked})
    with open_archive(told, process="test") as opened:
        yield opened


def test_the_table_names_every_address(archive: Archive) -> None:
    addresses = [(method, path) for method, path in every_address(archive) if method != "OPTIONS"]
    assert {f"{method} {path}" for method, path in addresses} - ANYBODY == TABLE.keys()


@pytest.mark.req("REQ-SEC-23")
def test_each_role_may_what_the_sheet_says_and_each_refusal_is_written_down(
    archive: Archive, url: str, token: Callable[..., str]
) -> None:
    for role in Role:
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token(role, name=role)}"}) as client:
            for address, roles in TABLE.items():
                method, _, path = address.partition(" ")
                body: object = {} if method == "PUT" else None
                status = client.request(
                    method, path.replace("{frame}", "1").replace("{message}", "1"), json=body
                ).status_code
                assert status != 500, (role, address)
                assert (status != 403) == (role in roles), (role, address, status)
        refusals = [row for row in rows(archive, user=str(role), limit=1000) if row["outcome"] == 8]
        assert len(refusals) == sum(role not in roles for roles in TABLE.values()), role


@pytest.mark.req("REQ-SEC-23")
def test_the_session_of_a_person_opens_no_more_than_a_token(archive: Archive, actor: Actor) -> None:
    accounts.add_account(archive, "paule", [Role.SECRETARY], PASSWORD, actor=actor)
    with serving(archive) as url, httpx.Client(base_url=url) as client:
        login = client.post("/api/v1/session", json={"name": "paule", "password": PASSWORD})
        assert login.status_code == 200
        for address, roles in TABLE.items():
            method, _, path = address.partition(" ")
            if method == "GET":
                status = client.get(path.replace("{frame}", "1").replace("{message}", "1")).status_code
                assert (status != 403) == ("secretary" in roles), (address, status)


@on_both_databases
@pytest.mark.req("REQ-SEC-20")
def test_each_access_that_succeeds_is_in_the_audit(archive: Archive, url: str, token: Callable[..., str]) -> None:
    fill(archive, 1)
    purge_id, note = give_purge(archive), give_note(archive)
    job = archive.commit.run(lambda conn: jobs.put(conn, "dicom.echo", {}, at=archive.real_clock()))
    ds = ct_slice()
    uids = {"study": ds.StudyInstanceUID, "series": ds.SeriesInstanceUID, "instances": ds.SOPInstanceUID}
    with httpx.Client(base_url=url) as client:
        for number, address in enumerate(["POST /dicom-web/studies", *TABLE]):
            method, _, path = address.partition(" ")
            if (method != "GET" and number) or path.startswith("/viewer"):
                continue  # the viewer's page tells nothing: what it asks for is DICOMweb
            path = (
                path.replace("/studies/1.2.3", f"/studies/{uids['study']}")
                .replace("{frame}", "1")
                .replace("{message}", "1")
                .replace("{purge}", purge_id)
                .replace("{job}", str(job))
                .replace("{note}", note)
            )
            path = path.replace("/etudes/1.2.3", f"/etudes/{uids['study']}")
            path = path.replace("/series/1.2.3", f"/series/{uids['series']}")
            path = path.replace("/instances/1.2.3", f"/instances/{uids['instances']}")
            path = path.replace("/images/1.2.3", f"/images/{uids['instances']}")
            path = path.replace("/ImagingStudy/1.2.3", f"/ImagingStudy/{uids['study']}").replace("{entry}", "1")
            path = path.replace("{patient}", "1") + ASKED.get(path, "")
            if path.endswith("/manifest"):
                give_ins(archive)
            for level, uid in uids.items():
                path = path.replace(f"<{level}>", uid)
            user = f"robot {number}"
            headers = {"Authorization": f"Bearer {token('service', name=user)}", "Content-Type": "application/dicom"}
            answer = client.request(method, path, headers=headers, content=part10(ds) if method == "POST" else None)
            assert answer.status_code == 200, (address, answer.text)
            # tell nothing of anybody
            if address not in ("GET /api/v1/system", "GET /api/v1/probes", "GET /api/v1/peers", "GET /identite"):
                assert written(archive, user), address


def give_ins(archive: Archive) -> None:
    """A national identity for everybody."""
    said = to_json(Record(ins=Ins("285073599990118", "1.2.250.1.213.1.4.10")))
    archive.commit.run(lambda conn: conn.execute(patient.update().values(record=said)))


def give_purge(archive: Archive) -> str:
    """The row of a purge; its id."""
    values = {
        "id": "p1", "study_instance_uid": "1.2.3", "patient": "IPP1", "state": "done", "begun_at": archive.clock(),
        "certificate": "{}", "note_uid": "1.2.4", "note_path": "evidence/1.dcm", "note_digest": "0" * 64,
    }  # fmt: skip
    archive.commit.run(lambda conn: conn.execute(purge.insert(), values))
    return "p1"


def give_note(archive: Archive) -> str:
    """A note that rejects an image; its UID."""
    file = Part10(archive.hot, at=archive.real_clock())
    file.feed(part10(ct_slice(StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.1")))
    ingest(archive, file.finish(), actor=ACTS)
    return reject(archive, "1.2.9", code="113001", reason="bougé", actor=ACTS).uid


def written(archive: Archive, user: str) -> bool:
    """Whether a row of this user's success is there within a second (law 4)."""
    until = monotonic() + 1.5
    while monotonic() < until:
        if any(row["outcome"] == 0 for row in rows(archive, user=user)):
            return True
        sleep(0.05)
    return False
