"""What is known of the studies of another archive outlives the run, on both databases."""

from __future__ import annotations

from datetime import date
from functools import partial

from archive import takeover
from archive.core import Archive
from archive.schema import tombstone
from archive.takeover import Announced, Checked
from tests.builders import ct_slice
from tests.dicom_scp.retrieving import keep

A, B, C = (Announced(f"1.2.{number}", day, 3) for number, day in enumerate(("20240105", "", "20250105")))


def reported(archive: Archive, peer: str, since: date | None = None, until: date | None = None) -> list[Checked]:
    with archive.reading() as conn:
        return list(takeover.report(conn, peer, since=since, until=until))


def test_a_study_keeps_its_state_until_it_is_looked_at_again(archive: Archive) -> None:
    at = archive.real_clock()
    archive.commit.run(partial(takeover.note, peer="OLD", found=[A, B, C], at=at))
    done = Checked(
        "1.2.0", "20240105", "incomplete", 3, listed=3, already_here=1, missing=1, missing_uids=("1.9",), why="x"
    )
    archive.commit.run(partial(takeover.settle, peer="OLD", checked=done, at=at))
    archive.commit.run(partial(takeover.note, peer="OLD", found=[A], at=at))  # the next run finds it again
    archive.commit.run(partial(takeover.note, peer="OTHER", found=[A], at=at))
    everything = reported(archive, "OLD")
    assert [(one.study_instance_uid, one.state) for one in everything] == [
        ("1.2.1", "found"),
        ("1.2.0", "incomplete"),
        ("1.2.2", "found"),
    ]
    assert everything[1] == done
    assert done.pulled == 1
    assert [one.study_instance_uid for one in reported(archive, "OLD", until=date(2024, 12, 31))] == ["1.2.0"]
    assert [one.study_instance_uid for one in reported(archive, "OLD", since=date(2024, 12, 31))] == ["1.2.2"]
    assert [one.state for one in reported(archive, "OTHER")] == ["found"]
    with archive.reading() as conn:
        assert takeover.known(conn, "OLD") == {"1.2.0", "1.2.1", "1.2.2"}
        assert takeover.last(conn, "OLD", "1.2.9") is None


def test_what_is_held_or_was_purged_need_not_come(archive: Archive) -> None:
    (ds,) = keep(archive, ct_slice())
    gone = {
        "sop_instance_uid": "1.5", "sop_class_uid": "1.2", "series_instance_uid": "1.4", "study_instance_uid": "1.3",
        "digest": "0" * 64, "purge_id": "p", "at": archive.clock(),
    }  # fmt: skip
    archive.commit.run(lambda conn: conn.execute(tombstone.insert(), gone))
    with archive.reading() as conn:
        assert takeover.here(conn, [ds.SOPInstanceUID, "1.5", "1.6"]) == {ds.SOPInstanceUID, "1.5"}
        assert takeover.instances_here(conn, ds.StudyInstanceUID) == 1
