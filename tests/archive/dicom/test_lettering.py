"""Words that are burnt into a picture when somebody asks for them (PS3.18 8.3.5.1.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from archive.dicom.lettering import Words, burnt, known, words

pytestmark = pytest.mark.req("REQ-DCM-90")


def element(vr: str, *values: Any) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)}


METADATA = {
    "00080020": element("DA", "20260105"),
    "00080030": element("TM", "233015.5"),
    "00080060": element("CS", "CT"),
    "00081030": element("LO", "Thorax  sans injection"),
    "0008103E": element("LO", "Parenchyme"),
    "00100010": element("PN", {"Alphabetic": "LEFÈVRE^Anaïs^Marie", "Ideographic": "山田"}),
    "00100020": element("LO", "IPP1"),
    "00100030": element("DA", "19800229"),
    "00100040": element("CS", "F"),
    "00180050": element("DS", 1.25),
    "00180060": element("DS", 120),
    "00200011": element("IS", 2),
    "00200013": element("IS", 12),
    "00201041": element("DS", -77.2),
    "00280008": element("IS", 40),
    "00282110": element("CS", "01"),
    "00282112": element("DS", 3, 10.5),
}


def test_the_patient_and_how_the_picture_was_made_are_told_in_french() -> None:
    said = words(METADATA, ("technique", "patient"), frame=3)
    assert said.top == ("LEFÈVRE Anaïs", "N° IPP1", "Née le 29/02/1980 F")
    assert said.bottom == (
        "CT 05/01/2026 23:30",
        "Thorax sans injection",
        "Série 2 – Parenchyme",
        "Image 12 – vue 3/40",
        "120 kV  Épaisseur 1,25 mm  Position -77,2 mm",
        "Compression avec perte 10,5:1",
    )
    assert words(METADATA, ("patient",), frame=1) == Words(top=said.top)
    assert words(METADATA, ("technique",), frame=3) == Words(bottom=said.bottom)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, Words(("Patient inconnu",))),
        ({"00100010": {"vr": "PN"}, "00180060": {"vr": "DS"}}, Words(("Patient inconnu",))),
        (
            {"00100010": element("PN", {"Ideographic": "山田^太郎"}), "00100030": element("DA", "inconnue")},
            Words(("山田 太郎", "Né(e) le inconnue")),
        ),
        ({"00100010": element("UN", None), "00180060": element("DS", "beaucoup")}, Words(("Patient inconnu",))),
    ],
)
def test_what_is_not_known_is_not_told(metadata: dict[str, Any], expected: Words) -> None:
    assert words(metadata, ("patient", "technique"), frame=1) == expected


def test_annotations_that_are_not_done_are_told_apart() -> None:
    assert known(["patient", " technique", "", "institution", "patient"]) == (
        ("patient", "technique"),
        ("institution",),
    )
    assert known([""]) == ((), ())


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_words_stand_at_the_top_and_at_the_bottom_and_can_be_read_on_any_ground(mode: str, grey: int) -> None:
    plain = Image.new("L", (400, 300), grey).convert(mode)
    lettered = np.asarray(burnt(plain, Words(("LEFÈVRE Anaïs",), ("CT 05/01/2026", "Série 2"))))
    rows = np.flatnonzero((lettered != np.asarray(plain)).reshape(300, -1).any(axis=1))
    assert rows.min() < 15 and rows.max() > 285
    assert not ((rows > 30) & (rows < 260)).any()
    assert lettered.min() == 0 and lettered.max() == 255
    assert np.array_equal(np.asarray(burnt(plain, Words())), np.asarray(plain))
    assert (np.asarray(plain) == grey).all()  # the picture that was given stays as it was


def test_each_letter_of_a_french_name_has_a_shape_of_its_own() -> None:
    plain = Image.new("L", (200, 100))
    shapes = {letter: burnt(plain, Words((letter,))).tobytes() for letter in "ÀÂÇÉÈÊËÎÏÔŒÙÛÜŸàâçéèêëîïôœùûüÿ’-°"}
    assert len(set(shapes.values())) == len(shapes)


@pytest.mark.parametrize("size", [(64, 64), (10, 300), (300, 10), (1, 1), (2000, 1500)])
def test_in_a_small_picture_no_line_covers_another(size: tuple[int, int]) -> None:
    """The patient comes first; what has no room is left out."""
    said = words(METADATA, ("patient", "technique"), frame=1)
    both = np.asarray(burnt(Image.new("L", size), said)).astype(int)
    top = np.asarray(burnt(Image.new("L", size), Words(said.top))).astype(int)
    assert both.shape == (size[1], size[0])
    assert (both[top > 0] == top[top > 0]).all()
