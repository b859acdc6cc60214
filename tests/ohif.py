"""What OHIF asks of an archive, as it was recorded, and how it is watched in a browser (REQ-CDC-09, FIELD pain 16)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from api import viewer
from archive.config import Settings
from tests import conftest

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

_JSON = "application/dicom+json"
_STUDY = "limit=101&offset=0&fuzzymatching=false&includefield=00081030,00080060,00080090,00100030"
_SERIES = "includefield=00080021,00080031,0008103E,00200011"
# Method, address without UIDs and values, Accept: recorded with OHIF 3.13.2 while it opened a CT and its key images.
RECORDED = (
    ("GET", f"/dicom-web/studies?{_STUDY}&StudyInstanceUID={{study}}", _JSON),
    ("GET", f"/dicom-web/studies?00100020={{patient}}&{_STUDY}", _JSON),  # what else there is of the patient
    ("GET", f"/dicom-web/studies/{{study}}/series?{_SERIES}", _JSON),
    ("GET", "/dicom-web/studies/{study}/series/{series}/metadata", _JSON),
    (
        "GET",
        "/dicom-web/studies/{study}/series/{series}/instances/{instance}/frames/1",
        "multipart/related; type=application/octet-stream; transfer-syntax=*",
    ),
)

# Runs before the page's own scripts: when does the middle of a viewport first show more than an even ground?
_WATCH = """
if (location.protocol.startsWith('http')) localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']));
performance.setResourceTimingBufferSize(5000);
(() => {
  const look = () => {
    for (const canvas of document.querySelectorAll('canvas.cornerstone-canvas')) {
      const context = canvas.width > 64 && canvas.getContext('2d');
      if (!context) continue;
      const { data } = context.getImageData(canvas.width / 4, canvas.height / 4, canvas.width / 2, canvas.height / 2);
      const shades = new Set();
      for (let at = 0; at < data.length; at += 404) shades.add(data[at]);
      if (shades.size > 4) {
        window.firstImageMs ??= performance.now();
        window.shownNow = Array.from(data.filter((_, at) => at % 404 === 0)).join();
      }
    }
    setTimeout(look, 20);
  };
  look();
})();
"""
_ANSWERS = """() => performance.getEntriesByType('resource')
    .filter(one => one.name.includes('/dicom-web/') && one.responseEnd <= window.firstImageMs)
    .map(one => [one.requestStart, one.responseEnd])"""


@dataclass(frozen=True)
class Opening:
    """One opening of a study: from the click to the first image painted; how long of it one waited for our answers."""

    first_image_seconds: float
    answers_seconds: float


def need_viewer() -> viewer.Viewer:
    """The viewer of this environment; without it skip, or under MINIPACS_TEST_STRICT fail."""
    found = viewer.find(Settings().viewer_dir)
    if found is None:
        message = "the viewer is not installed: make viewer"
        (pytest.fail if conftest.STRICT else pytest.skip)(message)
    return found


def watch(context: BrowserContext) -> None:
    """Have every page of a browser note when its first image is painted."""
    context.add_init_script(_WATCH)


def open_study(page: Page, address: str, *, seconds: float = 30) -> Opening:
    """Open a study and wait until its first image is painted."""
    page.goto(address)
    shown(page, seconds=seconds)
    spans = sorted(page.evaluate(_ANSWERS))
    waited, until = 0.0, 0.0
    for start, end in spans:
        waited += max(0.0, end - max(start, until))
        until = max(until, end)
    return Opening(page.evaluate("() => window.firstImageMs") / 1000, waited / 1000)


def shown(page: Page, *, other_than: str = "", seconds: float = 10) -> str:
    """What is painted, as soon as something else is than `other_than`."""
    for _ in range(int(seconds * 20)):
        now: str = page.evaluate("() => window.shownNow") or ""
        if now and now != other_than:
            return now
        page.wait_for_timeout(50)
    raise AssertionError(f"nothing new was painted within {seconds} s: {page.inner_text('body')[:500]}")


def settled(page: Page) -> str:
    """What is painted, once it has been the same for half a second."""
    last, since = shown(page), 0
    while since < 10:
        page.wait_for_timeout(50)
        now = shown(page)
        last, since = now, (since + 1 if now == last else 0)
    return last


def recorded_form(method: str, address: str, accept: str | None) -> tuple[str, str, str | None]:
    """A request as RECORDED writes it: names instead of UIDs and values."""
    address = address.replace("%2C", ",")
    for name, pattern in (
        ("study", r"(?<=/studies/)[\d.]+|(?<=StudyInstanceUID=)[\d.]+"),
        ("series", r"(?<=/series/)[\d.]+"),
        ("instance", r"(?<=/instances/)[\d.]+"),
        ("patient", r"(?<=00100020=)[^&]+"),
    ):
        address = re.sub(pattern, f"{{{name}}}", address)
    return method, address, accept
