"""Words burnt into a picture for whoever asks for them: `annotation=patient,technique` (PS3.18 8.3.5.1.1).

What they say is what the metadata say now, corrections included: nobody is shown under a name that was corrected.
French is what people read here. Whom the picture shows stands at its top, how it was made at its bottom.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image as Picture
    from PIL.ImageFont import FreeTypeFont

PATIENT, TECHNIQUE = "patient", "technique"
KINDS = (PATIENT, TECHNIQUE)
_LEAST_PIXELS, _MOST_PIXELS = 9, 40  # of the letters
_LINES = 28  # of letters, in the height of a picture
_ELLIPSIS = "…"
_SEX = {"M": ("H", "Né le"), "F": ("F", "Née le"), "O": ("autre", "Né(e) le")}

Metadata = Mapping[str, Any]  # DICOM JSON


@dataclass(frozen=True, slots=True)
class Words:
    """Lines to be burnt in at the top and at the bottom."""

    top: tuple[str, ...] = ()
    bottom: tuple[str, ...] = ()


def words(metadata: Metadata, kinds: Iterable[str], *, frame: int) -> Words:
    """What is said of a frame, numbered from 1."""
    wanted = set(kinds)
    return Words(
        tuple(_patient(metadata)) if PATIENT in wanted else (),
        tuple(_technique(metadata, frame)) if TECHNIQUE in wanted else (),
    )


def _patient(of: Metadata) -> list[str]:
    """Name, identifier, birth date and sex; who is not known is said to be so."""
    sex, birth = _SEX.get(_text(of, "00100040"), ("", "Né(e) le"))
    name, identifier = _name(of, "00100010") or "Patient inconnu", _text(of, "00100020")
    born = _date(of, "00100030")
    return _told((name, identifier and f"N° {identifier}", " ".join(filter(None, (born and f"{birth} {born}", sex)))))


def _technique(of: Metadata, frame: int) -> list[str]:
    frames = _text(of, "00280008")
    lossy = " ".join(filter(None, ("Compression avec perte", _of_ratio(of)))) if _text(of, "00282110") == "01" else ""
    made = (
        _quantity(of, "00180060", "kV"),
        _quantity(of, "00181151", "mA"),
        _quantity(of, "00180080", "ms", "TR "),
        _quantity(of, "00180081", "ms", "TE "),
        _quantity(of, "00180050", "mm", "Épaisseur "),
        _quantity(of, "00201041", "mm", "Position "),
    )
    series = " – ".join(filter(None, (_text(of, "00200011"), _text(of, "0008103E"))))
    image = " – ".join(
        filter(
            None,
            (
                (number := _text(of, "00200013")) and f"Image {number}",
                f"vue {frame}/{frames}" if frames not in ("", "1") else "",
            ),
        )
    )
    return _told(
        (
            " ".join(filter(None, (_text(of, "00080060"), _date(of, "00080020"), _time(of, "00080030")))),
            _text(of, "00081030"),
            series and f"Série {series}",
            image,
            "  ".join(filter(None, made)),
            lossy,
        )
    )


def _told(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if line]


def _value(of: Metadata, key: str) -> Any:
    """The last value there is: of a ratio, the one of the last compression."""
    values = (of.get(key) or {}).get("Value") or ()
    return values[-1] if values else None


def _text(of: Metadata, key: str) -> str:
    value = _value(of, key)
    return "" if value is None or isinstance(value, Mapping) else " ".join(str(value).split())


def _name(of: Metadata, key: str) -> str:
    """The family name and the given names; of several groups the one that our letters write."""
    value = _value(of, key)
    groups = value if isinstance(value, Mapping) else {"Alphabetic": value}
    name = str(groups.get("Alphabetic") or groups.get("Ideographic") or "")
    family, given, *_ = [" ".join(part.split()) for part in (*name.split("^"), "")]
    return " ".join(filter(None, (family, given)))


def _date(of: Metadata, key: str) -> str:
    text = _text(of, key)
    return f"{text[6:]}/{text[4:6]}/{text[:4]}" if len(text) == 8 and text.isdigit() else text


def _time(of: Metadata, key: str) -> str:
    text = _text(of, key)
    return f"{text[:2]}:{text[2:4]}" if text[:4].isdigit() and len(text) >= 4 else ""


def _quantity(of: Metadata, key: str, unit: str, label: str = "") -> str:
    try:
        return f"{label}{float(_text(of, key)):.5g} {unit}".replace(".", ",")
    except ValueError:
        return ""


def _of_ratio(of: Metadata) -> str:
    try:
        return f"{float(_text(of, '00282112')):.3g}:1".replace(".", ",")
    except ValueError:
        return ""


def burnt(picture: Picture, said: Words) -> Picture:
    """The picture with the words in it: white letters with a black rim, as high as its size allows, each line cut where
    the picture ends. Lines for which there is no room are left out, from the bottom on: none covers another."""
    from PIL import ImageDraw

    drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    pixels = min(_MOST_PIXELS, max(_LEAST_PIXELS, min(picture.size) // _LINES))
    font, margin, step = _font(pixels), pixels // 2, pixels + pixels // 3
    white, black = (255, 0) if picture.mode == "L" else ((255, 255, 255), (0, 0, 0))
    room = max(1, (picture.height - 2 * margin) // step)
    top = said.top[:room]
    bottom = said.bottom[: room - len(top)]
    for lines, start in ((top, margin), (bottom, picture.height - margin - step * len(bottom))):
        for number, line in enumerate(lines):
            text = _cut(line, font, picture.width - 2 * margin)
            rim = max(1, pixels // 12)
            pen.text((margin, start + step * number), text, white, font, stroke_width=rim, stroke_fill=black)
    return drawn


def _font(pixels: int) -> FreeTypeFont:
    """Bitstream Vera, which comes with reportlab: what the certificates are written in, on each system the same."""
    import reportlab
    from PIL import ImageFont

    return ImageFont.truetype(Path(reportlab.__file__).parent / "fonts" / "Vera.ttf", pixels)


def _cut(line: str, font: FreeTypeFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + _ELLIPSIS) > width:
        line = line[:-1]
    return line.rstrip() + _ELLIPSIS


def known(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The kinds of annotation that are asked for, and those of them that are not done here."""
    asked = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    return tuple(name for name in asked if name in KINDS), tuple(name for name in asked if name not in KINDS)
