"""Another archive is taken over whole, and what is missing is said: against a real Orthanc."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless
from sqlalchemy import select

from archive import takeover
from archive.access import SYSTEM
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.errors import Busy
from archive.retrieve import select as select_images
from archive.schema import instance, location
from archive.takeover import Announced, Checked, Listed
from dicom_scp.ends import ConnectionGone
from dicom_scp.remote import Remote, remote_of, requests_for, value
from dicom_scp.takeover import Takeover, Window, fetching, windows
from minipacs.wado import Wado
from tests.acceptance.clients import data_set_of
from tests.builders import ct_slice, key_object, new_uid
from tests.dicom_scp.retrieving import keep
from tests.orthanc import Orthanc, orthanc


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Shared: each test asks for days of its own."""
    with orthanc(tmp_path_factory.mktemp("other") / "orthanc") as running:
        yield running


@pytest.fixture
def archive(settings: Settings, other: Orthanc) -> Iterator[Archive]:
    with knowing(settings, other) as opened:
        yield opened


def knowing(settings: Settings, other: Orthanc) -> Any:
    values = settings.model_dump()
    values["dicom"] |= {"peers": {"OLD": {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": other.dicom_port}}}
    return open_archive(Settings.model_validate(values), process="test")


@pytest.fixture
def remote(archive: Archive) -> Remote:
    return remote_of(archive, "OLD")


def a_study(name: str, day: str, *, series: int = 2, slices: int = 2, **changes: Any) -> list[Dataset]:
    return [
        ct_slice(
            number=number, StudyDate=day, PatientID=f"IPP-{name}", StudyInstanceUID=new_uid(name),
            SeriesInstanceUID=new_uid(name, str(at)), SOPInstanceUID=new_uid(name, str(at), str(number)), **changes,
        )
        for at in range(series)
        for number in range(1, slices + 1)
    ]  # fmt: skip


def pulled(remote: Remote, day: date, *, last: date | None = None, **options: Any) -> Takeover:
    run = Takeover(remote, options.pop("fetch", fetching(remote, "get")), SYSTEM, **options)
    run.run(day, last or day)
    return run


def reported(archive: Archive, day: date, last: date | None = None) -> list[Checked]:
    with archive.reading() as conn:
        return list(takeover.report(conn, "OLD", since=day, until=last or day))


def held(archive: Archive) -> dict[str, Any]:
    with archive.engine.connect() as conn:
        rows = conn.execute(
            select(instance.c.sop_instance_uid, instance.c.source, instance.c.digest, location.c.transfer_syntax_uid)
            .join_from(instance, location)
            .order_by(instance.c.pk)
        ).all()
    assert len({row.sop_instance_uid for row in rows}) == len(rows), "stored twice"
    return {row.sop_instance_uid: row for row in rows}


def as_kept(other: Orthanc, uid: str) -> str:
    """The digest of the data set that the other archive keeps."""
    (found,) = httpx.post(f"{other.url}/tools/lookup", content=uid, timeout=60).json()
    return hashlib.sha256(data_set_of(httpx.get(f"{other.url}{found['Path']}/file", timeout=60).content)).hexdigest()


@pytest.mark.parametrize("via", ["get", "wado"])
def test_studies_come_as_they_are_kept_with_the_name_of_the_peer(
    remote: Remote, archive: Archive, other: Orthanc, via: str
) -> None:
    day = date(2021, 1, 5 if via == "get" else 6)
    objects = a_study(via, f"{day:%Y%m%d}") + a_study(f"{via}-packed", f"{day:%Y%m%d}", series=1)
    for ds in objects[4:]:
        ds.compress(RLELossless, generate_instance_uid=False)
    other.keep(*objects)
    if via == "get":
        assert pulled(remote, day).warnings == []
    else:
        assert pulled(remote, day, fetch=Wado(remote, other.web)).warnings == []
    assert sorted((one.state, one.listed, one.pulled, one.already_here) for one in reported(archive, day)) == [
        ("complete", 2, 2, 0),
        ("complete", 4, 4, 0),
    ]
    here = held(archive)
    assert sorted(here) == sorted(ds.SOPInstanceUID for ds in objects)
    for ds in objects:
        row = here[ds.SOPInstanceUID]
        assert row.transfer_syntax_uid == ds.file_meta.TransferSyntaxUID
        assert row.source == ("network:ORTHANC" if via == "get" else "web:ORTHANC")
        assert row.digest == as_kept(other, ds.SOPInstanceUID)


def test_what_is_here_is_not_fetched_and_what_comes_there_later_is(
    remote: Remote, archive: Archive, other: Orthanc
) -> None:
    day = date(2021, 2, 1)
    objects = a_study("later", "20210201", series=2, slices=3)
    other.keep(*objects[:5])
    keep(archive, objects[0])
    pulled(remote, day)
    (one,) = reported(archive, day)
    assert (one.state, one.listed, one.already_here, one.pulled, one.missing) == ("complete", 5, 1, 4, 0)
    assert held(archive)[objects[0].SOPInstanceUID].source == "web:tester"

    def never(*_: object) -> str:
        raise AssertionError("there is nothing to fetch")

    pulled(remote, day, fetch=never)
    pulled(remote, day, fetch=never, anew=True)
    other.keep(objects[5])
    asked: list[list[str]] = []

    def once(study_uid: str, listed: list[Listed], missing: list[Listed]) -> str:
        asked.append([item.sop_instance_uid for item in missing])
        return fetching(remote, "get")(study_uid, listed, missing)

    pulled(remote, day, fetch=once)
    assert asked == [[objects[5].SOPInstanceUID]]
    (one,) = reported(archive, day)
    assert (one.state, one.announced, one.listed, one.already_here, one.pulled) == ("complete", 6, 6, 1, 5)


@pytest.mark.req("REQ-IHE-09")
@pytest.mark.parametrize("via", ["get", "wado"])
def test_what_was_rejected_there_is_rejected_here(remote: Remote, archive: Archive, other: Orthanc, via: str) -> None:
    day = date(2021, 2, 10 if via == "get" else 11)
    images = a_study(f"rejected-{via}", f"{day:%Y%m%d}", series=1)
    note = key_object(images[0], title=("113037", "Rejected for Patient Safety Reasons"))
    other.keep(*images, note)
    pulled(remote, day, fetch=fetching(remote, "get") if via == "get" else Wado(remote, other.web))
    (one,) = reported(archive, day)
    assert (one.state, one.pulled, one.why) == ("complete", 3, "")
    given = {found.sop_instance_uid for found in select_images(archive, study_uids=[images[0].StudyInstanceUID])}
    assert given == {images[1].SOPInstanceUID, note.SOPInstanceUID}


def test_an_association_that_breaks_costs_nothing_that_came(remote: Remote, archive: Archive, other: Orthanc) -> None:
    objects = a_study("broken", "20210215", series=1, slices=4)
    other.keep(*objects)
    keep(archive, objects[0])
    get, asked = fetching(remote, "get"), list[int]()

    def breaking(study_uid: str, listed: list[Listed], missing: list[Listed]) -> str:
        asked.append(len(missing))
        if len(asked) == 1:
            get(study_uid, listed, missing[:1])
            raise ConnectionGone("the connection was closed")
        return get(study_uid, listed, missing)

    pulled(remote, date(2021, 2, 15), fetch=breaking)
    assert asked == [3, 2]
    (one,) = reported(archive, date(2021, 2, 15))
    assert (one.state, one.listed, one.already_here, one.pulled, one.missing) == ("complete", 4, 1, 3, 0)


def test_what_the_other_archive_cannot_give_is_missing_with_its_uid(
    remote: Remote, archive: Archive, other: Orthanc
) -> None:
    day = date(2021, 3, 1)
    objects = a_study("lost", "20210301", series=1, slices=3)
    other.keep(*objects)
    (found,) = httpx.post(f"{other.url}/tools/lookup", content=objects[1].SOPInstanceUID, timeout=60).json()
    raw = httpx.get(f"{other.url}{found['Path']}/file", timeout=60).content
    (path,) = [path for path in other.folder.glob("??/??/*") if path.read_bytes() == raw]
    path.unlink()
    pulled(remote, day)
    (one,) = reported(archive, day)
    assert (one.state, one.listed, one.pulled, one.missing) == ("incomplete", 3, 2, 1)
    assert one.missing_uids == (objects[1].SOPInstanceUID,)
    assert one.why
    assert "peer ended with status" in one.why


def test_a_window_whose_answers_are_cut_off_is_split(settings: Settings, tmp_path: Path) -> None:
    with orthanc(tmp_path / "limited", find_limit=3) as other, knowing(settings, other) as archive:
        for number in range(7):
            other.keep(*a_study(f"many{number}", "20220110", series=1, StudyTime=f"1{number}1500"))
        other.keep(*a_study("another day", "20220125", series=1))
        run = pulled(remote_of(archive, "OLD"), date(2022, 1, 1), last=date(2022, 1, 31))
        found = reported(archive, date(2022, 1, 1), date(2022, 1, 31))
        assert [one.state for one in found] == ["complete"] * 8
        assert run.warnings == [
            "20220110: the peer limits its answers; studies of this day without a time may be missing"
        ]
        everything = Takeover(remote_of(archive, "OLD"), fetching(remote_of(archive, "OLD"), "get"), SYSTEM)
        everything.run()
        assert everything.warnings[-1] == "the peer limits its answers: its studies without a date cannot be listed"


def test_a_limit_that_the_peer_does_not_tell_is_told_to_us(remote: Remote, archive: Archive, other: Orthanc) -> None:
    for number in range(3):
        other.keep(*a_study(f"silent{number}", f"2021040{number + 1}", series=1, slices=1))
    windows_asked = []
    asking = Takeover._studies

    def watched(self: Takeover, asked: Any, keys: dict[str, str]) -> Any:
        windows_asked.append(keys["StudyDate"])
        return asking(self, asked, keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Takeover, "_studies", watched)
        pulled(remote, date(2021, 4, 1), last=date(2021, 4, 4), limit=2)
    assert windows_asked == [
        "20210401-20210404", "20210401-20210402", "20210401", "20210402", "20210403-20210404",
    ]  # fmt: skip
    assert len(reported(archive, date(2021, 4, 1), date(2021, 4, 4))) == 3


def test_a_study_of_many_classes_comes_whole(remote: Remote, archive: Archive, other: Orthanc) -> None:
    """More classes than fit on one association in all their syntaxes."""
    prefix = "1.2.840.10008.5.1.4.1.1."
    objects = a_study("classes", "20210501", series=1, slices=9)
    for ds, last in zip(objects, ("2", "4", "1", "1.1", "1.2", "7", "12.1", "6.1", "128"), strict=True):
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = prefix + last
    other.keep(*objects)
    pulled(remote, date(2021, 5, 1))
    (one,) = reported(archive, date(2021, 5, 1))
    assert (one.state, one.pulled, one.why) == ("complete", 9, "")


def test_a_study_without_a_date_comes_with_the_whole_archive(settings: Settings, tmp_path: Path) -> None:
    with orthanc(tmp_path / "undated") as other, knowing(settings, other) as archive:
        other.keep(*a_study("undated", "", series=1), *a_study("old", "19870312", series=1))
        other.keep(*a_study("recent", "20241130", series=1), *a_study("ahead", "20990101", series=1))
        remote = remote_of(archive, "OLD")
        run = Takeover(remote, fetching(remote, "get"), SYSTEM)
        run.run()
        assert run.warnings == []
        with archive.reading() as conn:
            found = list(takeover.report(conn, "OLD", since=None, until=None))
        assert [(one.study_date, one.state) for one in found] == [
            ("", "complete"), ("19870312", "complete"), ("20241130", "complete"), ("20990101", "complete"),
        ]  # fmt: skip


def test_a_peer_that_is_away_ends_the_run(settings: Settings, tmp_path: Path) -> None:
    with orthanc(tmp_path / "away") as other:
        pass
    with knowing(settings, other) as archive, pytest.raises(Busy, match="cannot be reached"):
        pulled(remote_of(archive, "OLD"), date(2021, 1, 1))


def test_windows_cover_every_day_once() -> None:
    today = date(2026, 11, 30)
    all_of_them = [one.keys["StudyDate"] for one in windows(None, None, today=today)]
    assert all_of_them[:3] == ["-19991231", "20000101-20000131", "20000201-20000229"]
    assert all_of_them[-2:] == ["20261001-20261031", "20261101-"]
    some = [one.keys["StudyDate"] for one in windows(date(2026, 1, 20), date(2026, 2, 3), today=today)]
    assert some == ["20260120-20260131", "20260201-20260203"]
    assert [one.keys["StudyDate"] for one in windows(None, date(1999, 5, 1), today=today)] == ["-19990501"]
    left = [Window(None, date(1999, 12, 31))]
    days = 0
    while left:
        one = left.pop()
        halves = one.split(today) if (one.first or date(1900, 1, 1)) != one.last else None
        left += halves or []
        days += 0 if halves else 1
    assert days == (date(1999, 12, 31) - date(1900, 1, 1)).days + 1
    second = Window(date(2026, 1, 1), date(2026, 1, 1), (3661, 3661))
    assert second.keys == {"StudyDate": "20260101", "StudyTime": "010101-010101"}
    assert second.split(today) is None


def test_as_little_as_possible_is_asked_for() -> None:
    listed = [Listed(f"1.{series}.{number}", f"1.{series}", "") for series in (1, 2) for number in range(150)]

    def levels(missing: list[Listed]) -> list[tuple[str, int]]:
        return [
            (value(keys, "QueryRetrieveLevel"), len(keys.get("00080018", {}).get("Value", ())))
            for keys in requests_for("1", listed, missing)
        ]

    assert levels(listed) == [("STUDY", 0)]
    assert levels(listed[150:]) == [("SERIES", 0)]
    assert levels(listed[149:]) == [("IMAGE", 1), ("SERIES", 0)]
    assert levels(listed[:120]) == [("IMAGE", 100), ("IMAGE", 20)]


def test_a_study_that_nobody_has_is_incomplete(remote: Remote, archive: Archive) -> None:
    run = Takeover(remote, fetching(remote, "get"), SYSTEM)
    found = run.study(Announced("1.2.3.4.5", "", None))
    assert found is not None
    assert (found.state, found.why) == ("incomplete", "the peer lists no instance of it")
