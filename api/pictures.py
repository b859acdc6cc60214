"""What the pages show of a study: its series, and which of their instances are pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace

from api.french import MODALITIES
from api.studies import text
from archive.dicom.syntaxes import VIDEO
from archive.studies import Instance, Series, Study

PREVIEW_PIXELS = 320
_ROWS, _FRAMES, _NUMBER, _LOSSY = 0x00280010, 0x00280008, 0x00200013, 0x00282110
_MODALITY, _SERIES_NUMBER, _DESCRIPTION, _BODY_PART = 0x00080060, 0x00200011, 0x0008103E, 0x00180015


@dataclass(frozen=True, slots=True)
class Picture:
    """An instance that can be shown."""

    uid: str
    number: str
    frames: int
    lossy: bool
    address: str

    @property
    def src(self) -> str:
        """A small picture of it: its middle frame."""
        size = f"viewport={PREVIEW_PIXELS},{PREVIEW_PIXELS}"
        if self.frames > 1:
            return f"{self.address}/frames/{(self.frames + 1) // 2}/thumbnail?{size}"
        return f"{self.address}/thumbnail?{size}"

    def frame_src(self, frame: int) -> str:
        """One of its frames in full size."""
        return f"{self.address}/frames/{frame}/rendered" if self.frames > 1 else f"{self.address}/rendered"


@dataclass(frozen=True, slots=True)
class SeriesView:
    """One series on a page."""

    uid: str
    modality: str
    number: int | None
    description: str
    body_part: str
    count: int
    pictures: bool
    kinds: tuple[str, ...]
    samples: tuple[Picture, ...]

    @classmethod
    def of(cls, study: Study, part: Series, *, samples: int | None) -> SeriesView:
        """`samples`: how many pictures to show, spread over the series; None: all."""
        pictures = pictures_of(study, part)
        modality = text(part.attributes, _MODALITY)
        number = text(part.attributes, _SERIES_NUMBER)
        return cls(
            uid=part.series_instance_uid,
            modality=modality,
            number=int(number) if number.lstrip("-").isdigit() else None,
            description=text(part.attributes, _DESCRIPTION),
            body_part=text(part.attributes, _BODY_PART),
            count=len(pictures) or len(part.instances),
            pictures=bool(pictures),
            kinds=(MODALITIES.get(modality, modality or "type inconnu"),),
            samples=tuple(pictures if samples is None else _spread(pictures, samples)),
        )

    def showing(self, samples: tuple[Picture, ...]) -> SeriesView:
        """The same series with other pictures."""
        return replace(self, samples=samples)


def series_of(study: Study, *, samples: int | None) -> list[SeriesView]:
    """The series of a study, in their order."""
    return [SeriesView.of(study, part, samples=samples) for part in study.series]


def pictures_of(study: Study, part: Series) -> list[Picture]:
    """The instances of a series that can be shown, in their order."""
    base = f"/dicom-web/studies/{study.study_instance_uid}/series/{part.series_instance_uid}/instances"
    return [_picture(one, base) for one in part.instances if _is_picture(one)]


def _is_picture(one: Instance) -> bool:
    video = any(copy.transfer_syntax_uid in VIDEO for copy in one.copies)
    return bool(text(one.attributes, _ROWS)) and not video


def _picture(one: Instance, base: str) -> Picture:
    frames = text(one.attributes, _FRAMES)
    return Picture(
        uid=one.sop_instance_uid,
        number=text(one.attributes, _NUMBER),
        frames=max(int(frames), 1) if frames.isdigit() else 1,
        lossy=text(one.attributes, _LOSSY) == "01",
        address=f"{base}/{one.sop_instance_uid}",
    )


def _spread(pictures: list[Picture], count: int) -> list[Picture]:
    if len(pictures) <= count:
        return pictures
    return [pictures[(2 * at + 1) * len(pictures) // (2 * count)] for at in range(count)]
