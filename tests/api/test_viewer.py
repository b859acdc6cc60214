"""`/viewer/`: OHIF in a real browser, what it asks for replayed without one, and the archive that has none."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from api.viewer import LISTING, find
from archive.access import Actor
from archive.config import Settings
from archive.core import Archive
from archive.ingest import ingest
from archive.storage.part10 import Part10
from minipacs import viewer
from tests.api.conftest import PASSWORD
from tests.builders import key_object, new_uid, part10
from tests.ohif import RECORDED, need_viewer, open_study, recorded_form, settled, shown, watch

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

PHANTOM = Path(__file__).parents[1] / "data" / "ct-philips-phantom"
SHOTS = os.environ.get("MINIPACS_TEST_SHOTS")


def take_in(archive: Archive, actor: Actor, *files: bytes) -> None:
    for content in files:
        file = Part10(archive.hot, at=archive.real_clock())
        file.feed(content)
        ingest(archive, file.finish(), actor=actor)


@pytest.fixture
def settings(settings: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    """For a test that asks for `folder` the viewer is there, not where this environment has it."""
    if "folder" not in request.fixturenames:
        return settings
    return settings.model_copy(update={"api": settings.api.model_copy(update={"viewer": tmp_path / "viewer"})})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "viewer"


@pytest.fixture
def phantom(archive: Archive, actor: Actor) -> list[pydicom.Dataset]:
    """A real CT, in the archive; its slices in their order."""
    files = [path.read_bytes() for path in PHANTOM.glob("I*")]
    take_in(archive, actor, *files)
    slices = [pydicom.dcmread(io.BytesIO(content)) for content in files]
    return sorted(slices, key=lambda ds: int(ds.InstanceNumber))


def other_series(phantom: list[pydicom.Dataset]) -> list[bytes]:
    """The same slices again, as another series of the study."""
    files = []
    for number, ds in enumerate(deepcopy(phantom)):
        ds.SeriesInstanceUID, ds.SeriesNumber, ds.SOPInstanceUID = new_uid("other"), 999, new_uid("other", str(number))
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        files.append(part10(ds))
    return files


# -- in a browser -------------------------------------------------------------------------------------------------


@pytest.fixture
def browsing(chromium: Any) -> Iterator[BrowserContext]:
    """A browser that notes when images are painted; a request to elsewhere, or a complaint, fails the test."""
    context: BrowserContext = chromium.new_context(locale="fr-FR", viewport={"width": 1280, "height": 900})
    watch(context)
    complaints: list[str] = []
    context.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    yield context
    context.close()
    assert [one for one in complaints if not re.search("401|Couldn't retrieve", one)] == []


def enter(page: Page, address: str) -> None:
    page.goto(address)
    page.get_by_label("Identifiant").fill("anne")
    page.get_by_label("Mot de passe").fill(PASSWORD)
    page.get_by_role("button", name="Se connecter").click()
    page.wait_for_load_state()


def says(page: Page, text: str) -> None:
    """The page shows a text, or does soon: the viewer writes its labels after it painted."""
    page.get_by_text(text).first.wait_for(timeout=10_000)


def shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"))


@pytest.mark.req("REQ-CDC-09")
def test_a_ct_is_opened_painted_and_scrolled_and_every_request_goes_to_us(
    archive: Archive, url: str, actor: Actor, anne: None, phantom: list[pydicom.Dataset], browsing: BrowserContext
) -> None:
    need_viewer()
    take_in(archive, actor, *other_series(phantom))
    take_in(archive, actor, part10(key_object(phantom[2], phantom[5], title=("113000", "Of Interest"))))
    asked: list[tuple[str, str, str | None]] = []
    browsing.on("request", lambda one: asked.append((one.method, one.url, one.headers.get("accept"))))
    page = browsing.new_page()
    study = phantom[0].StudyInstanceUID
    enter(page, f"{url}/etudes/{study}")
    address = page.get_by_role("link", name="Ouvrir dans la visionneuse").get_attribute("href")
    assert address == f"/viewer/?StudyInstanceUIDs={study}"
    open_study(page, url + address, seconds=30)  # cold, beside other tests; the five seconds are those of tests/bench
    says(page, f"(1/{len(phantom)})")
    first = shown(page)
    shoot(page, "viewer")
    page.mouse.move(760, 470)
    page.mouse.wheel(0, 100)
    assert shown(page, other_than=first) != first
    says(page, f"(2/{len(phantom)})")

    page.goto(f"{url}/etudes/{study}")
    page.get_by_role("link", name="Ouvrir ces images dans la visionneuse").click()
    shown(page, seconds=30)
    says(page, "(1/2)")  # of the two key images
    says(page, "Images clés : Of Interest")
    shoot(page, "viewer-key-images")

    browsing.clear_cookies()  # the session is over, and images are asked for that the browser does not have yet
    page.locator("[data-cy=study-browser-thumbnail]", has_text="S:999").dblclick()
    page.wait_for_url(f"{url}/connexion?**", timeout=20_000)
    page.get_by_label("Identifiant").fill("anne")
    page.get_by_label("Mot de passe").fill(PASSWORD)
    page.get_by_role("button", name="Se connecter").click()
    shown(page, seconds=30)
    says(page, "(1/2)")  # back where one was

    elsewhere = [address for _, address, _ in asked if not address.startswith((f"{url}/", "blob:", "data:"))]
    assert elsewhere == []
    ours = {recorded_form(m, a.removeprefix(url), accept) for m, a, accept in asked if "/dicom-web/" in a}
    # as they are replayed below; previews of the desk's pages besides
    assert {one for one in ours if "/thumbnail" not in one[1]} == set(RECORDED)


@pytest.mark.req("REQ-CDC-09")
def test_what_is_compressed_is_decoded_under_the_policy_of_the_page(
    archive: Archive, url: str, actor: Actor, anne: None, browsing: BrowserContext
) -> None:
    need_viewer()
    (real,) = (pydicom.dcmread(path) for path in [PHANTOM / "I120"])
    series = []
    for syntax in (JPEG2000Lossless, JPEGLSLossless, RLELossless):
        ds = pydicom.dcmread(PHANTOM / "I120")
        ds.compress(syntax, generate_instance_uid=False)
        ds.SeriesInstanceUID, ds.SOPInstanceUID = new_uid(syntax), new_uid("slice", syntax)
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        take_in(archive, actor, part10(ds))
        series.append(ds.SeriesInstanceUID)
    page = browsing.new_page()
    enter(page, url)
    seen = set()
    for one in series:
        open_study(page, f"{url}/viewer/?StudyInstanceUIDs={real.StudyInstanceUID}&initialSeriesInstanceUID={one}")
        seen.add(settled(page))
    assert len(seen) == 1, "the same image, whatever it was compressed with"


# -- without ------------------------------------------------------------------------------------------------------


def values_of(phantom: list[pydicom.Dataset]) -> dict[str, str]:
    ds = phantom[0]
    return {
        "study": ds.StudyInstanceUID,
        "series": ds.SeriesInstanceUID,
        "instance": ds.SOPInstanceUID,
        "patient": ds.PatientID,
    }


@pytest.mark.req("REQ-DCM-90")
def test_what_the_viewer_asks_is_answered_in_the_forms_that_it_reads(
    client: httpx.Client, phantom: list[pydicom.Dataset]
) -> None:
    """The requests of a browser that opens a study, recorded, without the browser."""
    answers = []
    for method, address, accept in RECORDED:
        assert accept is not None
        answers.append(client.request(method, address.format(**values_of(phantom)), headers={"Accept": accept}))
        assert answers[-1].status_code == 200, address
    study, priors, series, metadata, frame = answers
    assert study.json()[0]["00081030"]["Value"] == [phantom[0].StudyDescription]
    assert study.json()[0]["00201208"]["Value"] == [len(phantom)]
    assert [one["0020000D"]["Value"][0] for one in priors.json()] == [phantom[0].StudyInstanceUID]
    assert [one["0020000E"]["Value"][0] for one in series.json()] == [phantom[0].SeriesInstanceUID]
    assert sorted(one["00200013"]["Value"][0] for one in metadata.json()) == [ds.InstanceNumber for ds in phantom]
    head, _, rest = frame.content.partition(b"\r\n\r\n")
    assert b"Content-Type: application/octet-stream" in head
    assert rest.startswith(phantom[0].PixelData)


def test_a_study_says_where_it_opens_only_if_there_is_a_viewer(
    client: httpx.Client, phantom: list[pydicom.Dataset], folder: Path
) -> None:
    study = f"/api/v1/studies/{phantom[0].StudyInstanceUID}"
    assert client.get(study).json()["viewer"] is None
    viewer.make(packed(), folder)
    assert client.get(study).json()["viewer"] == f"/viewer/?StudyInstanceUIDs={phantom[0].StudyInstanceUID}"


def test_without_a_viewer_its_page_says_how_to_add_it_and_needs_no_restart(
    log_in: Callable[[str], httpx.Client], folder: Path, studies: None
) -> None:
    client = log_in("anne")
    study = new_uid("st0")
    for address in ("/viewer/", f"/viewer/?StudyInstanceUIDs={study}", "/viewer/viewer"):
        answer = client.get(address)
        assert answer.status_code == 404
        assert "La visionneuse n’est pas installée" in answer.text
        assert "make viewer" in answer.text
    for page in ("/", f"/etudes/{study}"):
        assert "/viewer/" not in client.get(page).text
    viewer.make(packed(), folder)
    assert client.get("/viewer/").status_code == 200
    assert f'href="/viewer/?StudyInstanceUIDs={study}"' in client.get(f"/etudes/{study}").text
    assert f'href="/viewer/?StudyInstanceUIDs={study}"' in client.get("/").text


def test_the_page_is_for_those_who_see_images_and_remembers_the_study_over_the_log_in(
    stranger: httpx.Client, log_in: Callable[[str], httpx.Client], folder: Path
) -> None:
    viewer.make(packed(), folder)
    answer = stranger.get("/viewer/?StudyInstanceUIDs=1.2.3")
    assert answer.status_code == 303
    form = stranger.get(answer.headers["location"]).text
    assert 'value="/viewer/?StudyInstanceUIDs=1.2.3"' in form
    client = log_in("sophie")  # a secretary finds studies, and sees no image
    assert client.get("/viewer/?StudyInstanceUIDs=1.2.3").status_code == 403
    client.cookies.clear()
    sent = {"name": "sophie", "password": PASSWORD, "suite": "/viewer/?StudyInstanceUIDs=1.2.3"}
    assert client.post("/connexion", data=sent).headers["location"] == "/viewer/?StudyInstanceUIDs=1.2.3"
    sent["suite"] = "/viewer/?StudyInstanceUIDs=1\r\nSet-Cookie: a=b"
    assert client.post("/connexion", data=sent).headers["location"] == "/"


def test_files_are_compressed_kept_for_ever_and_none_but_those_of_the_viewer(
    stranger: httpx.Client, log_in: Callable[[str], httpx.Client], folder: Path
) -> None:
    viewer.make(packed(), folder)
    page = log_in("anne").get("/viewer/")
    assert page.headers["cache-control"] == "no-store"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy.replace("wasm-unsafe-eval", "")
    assert "http" not in policy
    assert "object-src 'self' blob:" in policy, "a report that is a PDF is shown from memory"
    assert page.headers["cross-origin-embedder-policy"] == "require-corp"
    root = f"/viewer/{viewer.RELEASE}"
    assert f'src="{root}/app.bundle.0a.js"' in page.text
    script = stranger.get(f"{root}/app.bundle.0a.js", headers={"Accept-Encoding": "gzip"})
    assert script.headers["content-encoding"] == "gzip"
    assert script.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.text == f'__webpack_require__.p = "{root}/";'
    for unwilling in ("identity", "gzip;q=0"):
        plain = stranger.get(f"{root}/app.bundle.0a.js", headers={"Accept-Encoding": unwilling})
        assert "content-encoding" not in plain.headers
        assert plain.text == script.text
    assert stranger.get(f"{root}/app.bundle.css").text == f"a{{src:url({root}/f.woff2)}}"
    for name in ("sw.js", "google.js", "ort/big.wasm", LISTING, "index.html", "..%2fsecret", "x.js.map"):
        assert stranger.get(f"{root}/{name}").status_code == 404, name
    assert stranger.get("/viewer/ohif-0.0.0-1/app.bundle.0a.js").status_code == 404


def test_another_viewer_in_its_place_needs_no_restart(log_in: Callable[[str], httpx.Client], folder: Path) -> None:
    viewer.make(packed(), folder)
    client = log_in("anne")
    root = f"/viewer/{viewer.RELEASE}"
    assert f"{root}/app.bundle.0a.js" in client.get("/viewer/").text
    viewer.make(packed("1b"), folder)
    assert f"{root}/app.bundle.1b.js" in client.get("/viewer/").text
    assert client.get(f"{root}/app.bundle.1b.js").status_code == 200
    assert client.get(f"{root}/app.bundle.0a.js").status_code == 404
    (folder / "app.bundle.1b.js.gz").unlink()
    for coding, status in (("gzip", 404), ("identity", 200)):
        asked = client.get(f"{root}/app.bundle.1b.js", headers={"Accept-Encoding": coding})
        assert asked.status_code == status


# -- making it ready ----------------------------------------------------------------------------------------------


def packed(build: str = "0a") -> bytes:
    """An archive as npm's registry has it, small."""
    index = f'<script defer src="/app.bundle.{build}.js"></script>'
    files = {
        "index.html": index, f"app.bundle.{build}.js": '__webpack_require__.p = "/";', "sw.js": "", "google.js": "",
        "app.bundle.css": "a{src:url(/f.woff2)}", "f.woff2": "font", "ort/big.wasm": "", "x.js.map": "{}",
        "../../secret": "outside",
    }  # fmt: skip
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content.encode()))
    return buffer.getvalue()


def test_what_is_served_is_unpacked_and_nothing_leaves_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "share" / "viewer"
    viewer.make(packed(), folder)
    assert {path.name for path in folder.iterdir()} == {
        "app.bundle.0a.js", "app.bundle.0a.js.gz", "app.bundle.css", "app.bundle.css.gz", "f.woff2", LISTING,
    }  # fmt: skip
    assert gzip.decompress((folder / "app.bundle.css.gz").read_bytes()) == (folder / "app.bundle.css").read_bytes()
    assert [path.name for path in folder.parent.iterdir()] == ["viewer"]
    found = find(folder)
    assert found is not None
    assert (found.version, found.script) == (viewer.VERSION, "app.bundle.0a.js")


def test_another_archive_than_the_chosen_one_is_refused_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "viewer", tmp_path / "app.tgz"
    file.write_bytes(packed())
    assert viewer.main(["--to", str(folder), "--from", str(file)]) == 3
    assert viewer.INTEGRITY in capsys.readouterr().err
    assert not folder.exists()


def test_without_network_the_command_says_so_and_what_is_there_stays(tmp_path: Path) -> None:
    folder = tmp_path / "viewer"
    folder.mkdir()
    (folder / LISTING).write_text(json.dumps({"release": "ohif-older"}))
    words = ["--to", str(folder), "--registry", "http://127.0.0.1:9"]
    done = subprocess.run(
        [sys.executable, "-m", "minipacs.viewer", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3
    assert "could not be installed" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((folder / LISTING).read_text())["release"] == "ohif-older"
    viewer.make(packed(), folder)
    assert viewer.main([*words]) == 0, "there already: nothing is fetched"
