"""Asking the supplier of demographics from the API and the desk: shown to a person, kept nowhere (REQ-HL7-93)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from archive.config import Settings
from archive.core import Archive, open_archive
from archive.work_items import list_items
from tests.archive.lifecycle.aging import receive
from tests.builders import ct_slice
from tests.hl7_listener.saying import ISSUER, pid, row, say, with_ris
from tests.hl7_listener.test_serve import listening
from tests.server import free_port


@pytest.fixture
def archive(settings: Settings) -> Iterator[Archive]:
    """One that asks its own supplier, through an HL7 process."""
    port = free_port()
    told = with_ris(settings, supplier={"host": "127.0.0.1", "port": port, "seconds": 2})
    with open_archive(told, process="test") as opened, listening(opened, port=port):
        say(opened, "A28", pid("R1", "DUPONT^Anne^^^^^L", p7="19700203", p8="F", p11="^^Rennes^^^^H"))
        yield opened


@pytest.mark.req("REQ-HL7-93")
def test_the_api_tells_whom_the_supplier_finds(archive: Archive, client: httpx.Client) -> None:
    answer = client.post("/api/v1/patients/look-up", json={"family": "dup*", "birth_date": "1970"})
    assert answer.status_code == 200, answer.text
    [found] = answer.json()["items"]
    assert (found["identifiers"], found["here"]) == ([{"value": "R1", "issuer": ISSUER, "type": "PI"}], "known")
    assert client.post("/api/v1/patients/look-up", json={}).status_code == 400
    assert client.post("/api/v1/patients/look-up", json={"birth_date": "02/03/1970"}).status_code == 400


@pytest.mark.req("REQ-HL7-93")
def test_somebody_at_the_desk_asks_who_an_unknown_patient_is(
    archive: Archive, log_in: Callable[[str], httpx.Client]
) -> None:
    receive(archive, ct_slice(PatientID="X9", PatientName="DUPONT^Anne"))
    with archive.reading() as conn:
        [item] = list_items(conn, kind="unknown_patient", state="open")
    before = row(archive, "R1").version
    sophie = log_in("sophie")
    assert f'href="/identite?dossier={item["id"]}"' in sophie.get("/travail").text
    form = sophie.get(f"/identite?dossier={item['id']}").text
    assert 'value="DUPONT"' in form
    assert 'value="Anne"' in form
    page = sophie.post("/identite", data={"nom": "DUPONT", "prenom": "Anne"}).text
    assert "DUPONT Anne" in page
    assert "03/02/1970" in page
    assert "Rennes" in page
    assert "connu" in page
    assert "Indiquez un nom" in sophie.post("/identite", data={}).text
    assert "ne connaît personne" in sophie.post("/identite", data={"nom": "ZZZZ"}).text
    assert row(archive, "R1").version == before
    with archive.reading() as conn:
        assert list_items(conn, kind="unknown_patient", state="open"), "nothing is settled by looking"


def test_without_a_supplier_the_desk_offers_nothing(
    settings: Settings, archive: Archive, log_in: Callable[[str], httpx.Client]
) -> None:
    object.__setattr__(archive, "settings", settings)
    receive(archive, ct_slice(PatientID="X9"))
    anne = log_in("anne")
    assert "/identite" not in anne.get("/travail").text
    assert anne.get("/identite").status_code == 404
