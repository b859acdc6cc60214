"""npm's dicomweb-client, what viewers in JavaScript are built on, in a real browser against a real archive: from the
archive's own pages with the cookie of a session, and from another origin with a token."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from tests.acceptance.clients import CT, data_set_of
from tests.builders import ct_slice, new_uid, part10
from tests.npm import DICOMWEB_CLIENT, need_file
from tests.server import Server, free_port

pytestmark = pytest.mark.req("REQ-DCM-90", "REQ-DCM-91", "REQ-DCM-93", "REQ-DCM-94")

# What the page says back: buffers in base 64, whatever they are held in.
_SCRIPT = """
const plain = value => {
  if (value instanceof ArrayBuffer) {
    return {base64: btoa(Array.from(new Uint8Array(value), one => String.fromCharCode(one)).join(''))};
  }
  if (Array.isArray(value)) return value.map(plain);
  return value;
};
const buffer = text => Uint8Array.from(atob(text), one => one.charCodeAt(0)).buffer;
window.ask = async ({service, headers, method, options}) => {
  const client = new window.DICOMwebClient.api.DICOMwebClient({url: service, headers});
  if (options.datasets) options = {...options, datasets: options.datasets.map(buffer)};
  try {
    return {value: plain(await client[method](options))};
  } catch (error) {
    return {status: error.status, error: String(error)};
  }
};
"""


class _Pages(http.server.BaseHTTPRequestHandler):
    """A web application of somebody else: one empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>viewer</title>")

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@dataclass
class Client:
    """dicomweb-client in a page."""

    page: Page
    service: str
    headers: dict[str, str]

    def ask(self, method: str, **options: Any) -> Any:
        """What one of its methods resolves to, or the status with which it is rejected."""
        asked = {"service": self.service, "headers": self.headers, "method": method, "options": options}
        answer = self.page.evaluate("asked => window.ask(asked)", asked)
        if "value" in answer:
            return _bytes(answer["value"])
        assert answer["status"] is not None, answer  # the client itself failed
        return answer["status"]


def _bytes(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"base64"}:
        return base64.b64decode(value["base64"])
    return [_bytes(one) for one in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """The origin of another web application."""
    port = free_port()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), _Pages)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, elsewhere: str) -> Iterator[Server]:
    running = Server(
        tmp_path_factory.mktemp("server"), environment={"MINIPACS_API__CORS_ORIGINS": json.dumps([elsewhere])}
    )
    running.start()
    yield running
    assert running.stop() == 0
    assert "Traceback" not in running.log.read_text()


def script(context: BrowserContext, config: pytest.Config) -> None:
    """Have each page of a browser know the client: not by its address, which the policy of our pages forbids."""
    context.add_init_script(need_file(DICOMWEB_CLIENT, "build/dicomweb-client.js", config))
    context.add_init_script(_SCRIPT)


@pytest.fixture(params=["session", "token"])
def client(
    request: pytest.FixtureRequest, chromium: Browser, archive: Server, elsewhere: str, pytestconfig: pytest.Config
) -> Iterator[Client]:
    context = chromium.new_context(locale="fr-FR")
    script(context, pytestconfig)
    page = context.new_page()
    headers = {}
    if request.param == "session":
        made = archive.command("user", "add", f"anais{free_port()}", "--role", "radiologist", "--json")
        account = json.loads(made.stdout)
        page.goto(f"{archive.web}/connexion")
        page.get_by_label("Identifiant").fill(account["name"])
        page.get_by_label("Mot de passe").fill(account["password"])
        page.get_by_role("button", name="Se connecter").click()
        page.wait_for_url(f"{archive.web}/")
    else:
        page.goto(elsewhere)
        headers["Authorization"] = f"Bearer {archive.token('service')}"
    yield Client(page, f"{archive.web}/dicom-web", headers)
    context.close()


def packed(*files: bytes) -> list[str]:
    return [base64.b64encode(one).decode() for one in files]


def compressed(ds: Dataset, frames: list[bytes], syntax: str) -> np.ndarray:
    """The values in compressed frames of an instance, as pydicom decodes them."""
    made = ct_slice(rows=ds.Rows, columns=ds.Columns, NumberOfFrames=len(frames), transfer_syntax=syntax)
    made.PixelData = encapsulate(frames)
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    return pydicom.dcmread(BytesIO(part10(made))).pixel_array


def test_a_study_is_stored_found_and_given_back(client: Client) -> None:
    files = [path.read_bytes() for path in CT]
    slices = [pydicom.dcmread(path) for path in CT]
    stored = client.ask("storeInstances", datasets=packed(*files))
    told = json.loads(stored)
    assert len(told["00081199"]["Value"]) == len(CT)
    assert "00081198" not in told  # nothing failed
    study, series = slices[0].StudyInstanceUID, slices[0].SeriesInstanceUID
    place = {"studyInstanceUID": study, "seriesInstanceUID": series}
    (found,) = client.ask("searchForStudies", queryParams={"PatientID": slices[0].PatientID})
    assert found["0020000D"]["Value"] == [study]
    assert [one["0020000E"]["Value"] for one in client.ask("searchForSeries", studyInstanceUID=study)] == [[series]]
    assert len(client.ask("searchForInstances", **place)) == len(CT)
    assert client.ask("searchForStudies", queryParams={"PatientID": "nobody"}) == []
    for metadata in (
        client.ask("retrieveStudyMetadata", studyInstanceUID=study),
        client.ask("retrieveSeriesMetadata", **place),
    ):
        assert {one["00080018"]["Value"][0] for one in metadata} == {str(ds.SOPInstanceUID) for ds in slices}
    # this version takes no media type of instances: they come in Explicit VR LE, which is as they are stored
    expected = sorted(map(data_set_of, files))
    assert sorted(map(data_set_of, client.ask("retrieveStudy", studyInstanceUID=study))) == expected
    assert sorted(map(data_set_of, client.ask("retrieveSeries", **place))) == expected
    one = client.ask("retrieveInstance", **place, sopInstanceUID=slices[0].SOPInstanceUID)
    assert data_set_of(one) == data_set_of(files[0])


def test_frames_come_as_octets_and_compressed_without_loss(client: Client) -> None:
    ds = ct_slice(rows=64, columns=64, NumberOfFrames=3, StudyInstanceUID=new_uid(client.page.url, "frames"))
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = new_uid(client.page.url, "frames", "1")
    ds.SeriesInstanceUID = new_uid(client.page.url, "frames", "series")
    values = np.random.default_rng(5).integers(0, 4096, (3, 64, 64), dtype="<u2")
    ds.PixelData = values.tobytes()
    client.ask("storeInstances", datasets=packed(part10(ds)), studyInstanceUID=ds.StudyInstanceUID)
    place = {
        "studyInstanceUID": ds.StudyInstanceUID,
        "seriesInstanceUID": ds.SeriesInstanceUID,
        "sopInstanceUID": ds.SOPInstanceUID,
    }
    octets = [values[2].tobytes(), values[0].tobytes()]
    assert client.ask("retrieveInstanceFrames", **place, frameNumbers=[3, 1]) == octets
    for media_type, syntax in (
        ("image/jls", "1.2.840.10008.1.2.4.80"),
        ("image/jp2", "1.2.840.10008.1.2.4.90"),
        ("image/jpeg", "1.2.840.10008.1.2.4.70"),
        ("image/x-dicom-rle", "1.2.840.10008.1.2.5"),
    ):
        wanted = [{"mediaType": media_type, "transferSyntaxUID": syntax}]
        frames = client.ask("retrieveInstanceFrames", **place, frameNumbers=[1, 3], mediaTypes=wanted)
        assert np.array_equal(compressed(ds, frames, syntax), values[[0, 2]]), media_type
    lossy = [{"mediaType": "image/jpeg", "transferSyntaxUID": "1.2.840.10008.1.2.4.50"}]
    assert client.ask("retrieveInstanceFrames", **place, frameNumbers=[1], mediaTypes=lossy) == 406
    assert client.ask("retrieveInstanceFrames", **place, frameNumbers=[4]) == 404
    (metadata,) = client.ask("retrieveInstanceMetadata", **place)
    uri = metadata["7FE00010"]["BulkDataURI"]
    assert b"".join(client.ask("retrieveBulkData", BulkDataURI=uri)) == values.tobytes()


def test_pictures_come_as_they_are_asked_for(client: Client) -> None:
    ds = pydicom.dcmread(CT[0])
    client.ask("storeInstances", datasets=packed(CT[0].read_bytes()))
    place = {
        "studyInstanceUID": ds.StudyInstanceUID,
        "seriesInstanceUID": ds.SeriesInstanceUID,
        "sopInstanceUID": ds.SOPInstanceUID,
    }
    png = [{"mediaType": "image/png"}]
    for method, more, size in (
        ("retrieveInstanceRendered", {}, (ds.Columns, ds.Rows)),
        ("retrieveInstanceRendered", {"queryParams": {"viewport": "90,90,10,20,-30,60"}}, (45, 90)),
        ("retrieveInstanceRendered", {"queryParams": {"annotation": "patient"}}, (ds.Columns, ds.Rows)),
        ("retrieveInstanceFramesRendered", {"frameNumbers": [1]}, (ds.Columns, ds.Rows)),
        ("retrieveInstanceThumbnail", {"queryParams": {"viewport": "50,50"}}, None),
    ):
        (answer,) = client.ask(method, **place, mediaTypes=png, **more)
        with Image.open(BytesIO(answer)) as picture:
            assert picture.format == "PNG"
            assert picture.size == (size or picture.size), (method, more)
            assert size is not None or max(picture.size) == 50


@pytest.mark.parametrize("listed", [True, False])
def test_a_script_of_another_origin_gets_nothing_without_a_token_or_unless_its_origin_is_listed(
    chromium: Browser, archive: Server, elsewhere: str, pytestconfig: pytest.Config, listed: bool
) -> None:
    context = chromium.new_context()
    script(context, pytestconfig)
    page = context.new_page()
    page.goto(elsewhere if listed else elsewhere.replace("127.0.0.1", "localhost"))
    service, token = f"{archive.web}/dicom-web", {"Authorization": f"Bearer {archive.token('service')}"}
    assert Client(page, service, token).ask("searchForStudies", queryParams={"PatientID": "nobody"}) == (
        [] if listed else 0  # the browser does not even ask
    )
    assert Client(page, service, {}).ask("searchForStudies") == (401 if listed else 0)
    context.close()
