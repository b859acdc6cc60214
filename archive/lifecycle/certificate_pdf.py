"""A certificate of destruction on paper: French, A4, its fonts inside, the same bytes for the same certificate."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from itertools import groupby
from typing import Any, Final
from xml.sax.saxutils import escape

import orjson

from archive.dicom.dictionary import name_of_uid
from archive.policy import local_time

_MONTHS: Final = (
    "janvier", "février", "mars", "avril", "mai", "juin",
    "juillet", "août", "septembre", "octobre", "novembre", "décembre",
)  # fmt: skip
_PROFILES: Final = {"liberal": "cabinet libéral", "hospital": "établissement de santé"}
_UNITS: Final = ("octets", "Kio", "Mio", "Gio", "Tio")
_INK, _PALE, _LINE = "#1c2733", "#5b6875", "#c9d1d9"
_ROW: Final = 19.0  # points
_WIDTH: Final = 174  # millimetres
_REGULAR, _BOLD = "Vera", "VeraBd"  # Bitstream Vera, free to embed; comes with reportlab

Row = tuple[str, str, str, str, str, str]  # number, UID, digest, kind, lossy, size


def pdf(body: Mapping[str, Any]) -> bytes:
    """The certificate as a PDF. Takes a tenth of a second, and half a second for each thousand instances."""
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.units import mm
    from reportlab.platypus import SimpleDocTemplate

    _register_fonts()
    buffer = io.BytesIO()
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=18 * mm - 6,  # a frame pads by 6 points
        rightMargin=18 * mm - 6,
        topMargin=18 * mm,
        bottomMargin=20 * mm,
        title="Certificat de destruction",
        author=_text(body["site"]["name"]) or "minipacs",
        subject=body["id"],
        lang="fr-FR",
        invariant=1,  # no date of printing: the same certificate gives the same bytes
    )
    document.build(list(_story(body)), canvasmaker=_numbered(_foot(body)))
    return buffer.getvalue()


def _kept(count: int) -> str:
    many = "s" if count > 1 else ""
    return f"{count} compte{many} rendu{many} de dose de rayonnement, conservé{many} plus longtemps que les images"


def digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of the certificate as JSON with sorted keys and no spaces: printed, it ties the paper to the file."""
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _story(body: Mapping[str, Any]) -> Iterator[Any]:
    from reportlab.lib.units import mm
    from reportlab.platypus import PageBreak, Paragraph, Spacer

    styles = _styles()
    site, study, counts, basis, notice, done, note = (
        body[key] for key in ("site", "study", "counts", "legal_basis", "notice", "destruction", "rejection_note")
    )
    yield Paragraph("Certificat de destruction", styles["title"])
    yield Paragraph("Images médicales détruites au terme de leur durée légale de conservation", styles["lead"])
    yield from _block(
        "Établi par",
        [
            ("Site", _join(site["name"], f"FINESS {site['finess']}" if site["finess"] else "", sep=" — ")),
            ("Régime de conservation", _PROFILES.get(site["profile"], site["profile"])),
            ("Archive", _archive(body["archive"])),
            ("Numéro du certificat", body["id"]),
        ],
    )
    classes = (f"{count} × {name_of_uid(uid)}" for uid, count in counts["by_sop_class"].items())
    yield from _block(
        "Ce qui a été détruit",
        [
            ("Patient (identifiant)", study["patient"]),
            ("Examen", study["study_instance_uid"]),
            ("Date de l’examen", _day(study["study_date"]) or "inconnue"),
            ("Numéro d’examen", _join(study["accession_number"], study["study_id"], sep=" / ")),
            ("Intitulé", _join(study["description"], ", ".join(study["modalities"]), sep=" — ")),
            (
                "Contenu",
                _content(counts),
            ),
            ("Nature", "\n".join(classes)),
        ],
    )
    yield from _block(
        "Base légale",
        [
            ("Conservation échue le", _day(basis["keep_until"]) or "sans date"),
            ("Règles appliquées", "\n".join(_reason(one) for one in basis["reasons"]) or "aucune"),
            ("Version des règles", _text(basis["policy_version"])),
        ],
    )
    yield from _block(
        "Préavis et contrôles",
        [
            ("Destruction annoncée le", _moment(notice["announced_at"])),
            ("Destruction prévue le", _day(notice["purge_on"])),
            ("Mises sous conservation", "\n".join(_hold(one) for one in notice["holds"]) or "aucune"),
            ("Approbations", "\n".join(_approval(one) for one in notice["approvals"]) or "aucune n’était requise"),
        ],
    )
    yield from _block(
        "Exécution",
        [
            ("Décidée le", _moment(done["decided_at"])),
            ("Achevée le", _moment(body.get("finished_at")) or "pas encore"),
            ("Par", done["by"]),
            ("Méthode", done["method_text"]),
            ("Note de rejet DICOM", f"{note['sop_instance_uid']}\nSHA-256 {note['digest']}"),
            *(
                ("Note de rejet reçue", f"{one['sop_instance_uid']}\nSHA-256 {one['digest']}")
                for one in body.get("other_notes", ())
            ),
            *(
                [("Restent consultables", _kept(len(body["kept_dose_reports"])))]
                if body.get("kept_dose_reports")
                else ()
            ),
        ],
    )
    yield Spacer(1, 3 * mm)
    yield Paragraph(
        "Restent dans l’archive, comme preuve : ce certificat, la note de rejet (113039, DCM), l’identifiant et "
        "l’empreinte de chaque instance, et le journal d’audit.",
        styles["small"],
    )
    yield Paragraph(f"Empreinte SHA-256 de ce certificat (JSON, clés triées) : {digest(body)}", styles["small"])
    yield PageBreak()
    yield Paragraph("Instances détruites", styles["title"])
    yield Paragraph("Empreinte : SHA-256 des données de l’instance, telles que reçues ou dérivées.", styles["lead"])
    yield from _instances(body["instances"])
    if body["quarantined"]:
        yield Paragraph("Contenus en quarantaine, détruits avec elles", styles["heading"])
        yield _listing([_row(number, one) for number, one in enumerate(body["quarantined"], 1)])


def _block(heading: str, rows: Iterable[tuple[str, str]]) -> Iterator[Any]:
    """A heading and its facts; those that are not known are left out."""
    from reportlab.lib.units import mm
    from reportlab.platypus import Paragraph, Table

    styles = _styles()
    cells = [
        [Paragraph(escape(name), styles["name"]), Paragraph(_lines(value), styles["value"])]
        for name, value in rows
        if value
    ]
    yield Paragraph(heading, styles["heading"])
    yield Table(
        cells,
        colWidths=[46 * mm, (_WIDTH - 46) * mm],
        style=[
            ("VALIGN", (0, 0), (-1, -1), "TOP"),
            ("LEFTPADDING", (0, 0), (-1, -1), 0),
            ("TOPPADDING", (0, 0), (-1, -1), 1.6),
            ("BOTTOMPADDING", (0, 0), (-1, -1), 1.6),
            ("LINEBELOW", (0, 0), (-1, -1), 0.3, _LINE),
        ],
    )


def _instances(instances: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Every instance, by series."""
    from reportlab.platypus import Paragraph

    styles = _styles()
    number = 0
    for series_uid, members in groupby(instances, key=lambda one: one["series_instance_uid"]):
        rows = [_row(number + place, one) for place, one in enumerate(members, 1)]
        number += len(rows)
        yield Paragraph(f"Série {escape(series_uid)} — {_count(len(rows), 'instance')}", styles["series"])
        yield _listing(rows)


def _row(number: int, one: Mapping[str, Any]) -> Row:
    kind = _kind(one["sop_class_uid"]) if "sop_class_uid" in one else ""
    lossy = "copie avec pertes" if one.get("derived_from") else ""
    return str(number), one["sop_instance_uid"], one["digest"], kind, lossy, _size(one.get("file_bytes"))


def _listing(rows: Sequence[Row]) -> Any:
    """Rows of two lines that go on from page to page: drawn, for a table lays out its rows again on every page."""
    from reportlab.lib.units import mm
    from reportlab.platypus import Flowable

    class Listing(Flowable):  # type: ignore[misc]
        def __init__(self, rows: Sequence[Row]) -> None:
            super().__init__()
            self.rows = rows

        def wrap(self, width: float, height: float) -> tuple[float, float]:
            return width, _ROW * len(self.rows)

        def split(self, width: float, height: float) -> list[Any]:
            fit = int(height / _ROW)
            return [Listing(self.rows[:fit]), Listing(self.rows[fit:])] if fit else []

        def draw(self) -> None:
            canvas, high = self.canv, _ROW * len(self.rows)
            canvas.setFont(_REGULAR, 6.2)
            canvas.setStrokeColor(_LINE)
            canvas.setLineWidth(0.2)
            tops = [high - _ROW * place for place in range(len(self.rows))]
            canvas.lines([(0, top - _ROW, _WIDTH * mm, top - _ROW) for top in tops])
            canvas.setFillColor(_PALE)
            for top, (number, _, digest, _, lossy, _) in zip(tops, self.rows, strict=True):
                canvas.drawString(0, top - 8, number)
                canvas.drawString(12 * mm, top - 15.5, digest)
                if lossy:
                    canvas.drawString(112 * mm, top - 15.5, lossy)
            canvas.setFillColor(_INK)
            for top, (_, uid, _, kind, _, size) in zip(tops, self.rows, strict=True):
                canvas.drawString(12 * mm, top - 8, uid)
                canvas.drawString(112 * mm, top - 8, kind)
                canvas.drawRightString(_WIDTH * mm, top - 8, size)

    return Listing(rows)


def _kind(sop_class_uid: str) -> str:
    name = name_of_uid(sop_class_uid).removesuffix(" Storage")
    return name if len(name) <= 36 else f"{name[:35]}…"


def _content(counts: Mapping[str, Any]) -> str:
    where = f"{_count(counts['instances'], 'instance')} dans {_count(counts['series'], 'série')}"
    return _join(where, _size(counts["file_bytes"]), sep=", ")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number < 2 else f"{number} {noun}s"


def _foot(body: Mapping[str, Any]) -> str:
    return f"Certificat de destruction {body['id']}"


def _numbered(foot: str) -> Callable[..., Any]:
    """A canvas that knows at the end how many pages there are."""
    from reportlab.lib.units import mm
    from reportlab.pdfgen.canvas import Canvas

    class Numbered(Canvas):  # type: ignore[misc]
        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, **how)
            self._pages: list[dict[str, Any]] = []

        def showPage(self) -> None:
            self._pages.append(dict(self.__dict__))
            self._startPage()

        def save(self) -> None:
            for number, page in enumerate(self._pages, 1):
                self.__dict__.update(page)
                self.setFont(_REGULAR, 7)
                self.setFillColor(_PALE)
                self.drawString(18 * mm, 11 * mm, foot)
                self.drawRightString(192 * mm, 11 * mm, f"page {number} / {len(self._pages)}")
                super().showPage()
            super().save()

    return Numbered


def _register_fonts() -> None:
    import reportlab
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    folder = os.path.join(os.path.dirname(reportlab.__file__), "fonts")
    for name in (_REGULAR, _BOLD):
        if name not in pdfmetrics.getRegisteredFontNames():
            pdfmetrics.registerFont(TTFont(name, os.path.join(folder, f"{name}.ttf")))


def _styles() -> dict[str, Any]:
    from reportlab.lib.styles import ParagraphStyle as Style

    plain = {"textColor": _INK, "splitLongWords": True}
    return {
        "title": Style("title", fontName=_BOLD, fontSize=17, leading=21, **plain),
        "lead": Style("lead", fontName=_REGULAR, fontSize=9, leading=12, textColor=_PALE, spaceAfter=4),
        "heading": Style("heading", fontName=_BOLD, fontSize=10, leading=13, spaceBefore=10, spaceAfter=3, **plain),
        "series": Style("series", fontName=_BOLD, fontSize=7, leading=10, spaceBefore=6, spaceAfter=2, **plain),
        "name": Style("name", fontName=_REGULAR, fontSize=8, leading=10.5, textColor=_PALE),
        "value": Style("value", fontName=_REGULAR, fontSize=8, leading=10.5, **plain),
        "small": Style("small", fontName=_REGULAR, fontSize=7, leading=9.5, textColor=_PALE, spaceBefore=2),
    }


def _lines(value: str) -> str:
    return escape(value).replace("\n", "<br/>")


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _join(*parts: object, sep: str) -> str:
    return sep.join(text for part in parts if (text := _text(part)))


def _archive(archive: Mapping[str, Any]) -> str:
    return f"{archive['manufacturer']} {archive['software_version']}, {archive['ae_title']}"


def _reason(reason: Mapping[str, Any]) -> str:
    return _join(reason.get("text") or reason.get("rule"), reason.get("source"), sep=" — ")


def _hold(hold: Mapping[str, Any]) -> str:
    end = f", levée le {_moment(hold['removed_at'])}" if hold.get("removed_at") else ""
    until = f", jusqu’au {_day(hold['until'])} inclus" if hold.get("until") else ""
    by = _join("par", hold.get("placed_by"), sep=" ")
    return f"« {hold['reason']} », {by}, le {_moment(hold['placed_at'])}{until}{end}"


def _approval(approval: Mapping[str, Any]) -> str:
    return f"{approval['user']}, le {_moment(approval['at'])} : « {approval['reason']} »"


def _day(value: object) -> str:
    """A day in words; what is no day as it is written."""
    written = _text(value)
    try:
        day = date.fromisoformat(written)
    except ValueError:
        return written
    return f"{'1er' if day.day == 1 else day.day} {_MONTHS[day.month - 1]} {day.year}"


def _moment(value: object) -> str:
    if not value:
        return ""
    when = local_time(datetime.fromisoformat(_text(value)))
    return f"{_day(f'{when:%Y-%m-%d}')} à {when:%H:%M} (heure de Paris)"


def _size(count: int | None) -> str:
    if not count:
        return ""
    power = min((count.bit_length() - 1) // 10, len(_UNITS) - 1)
    return f"{count / (1 << 10 * power):.{1 if power else 0}f} {_UNITS[power]}".replace(".", ",")
