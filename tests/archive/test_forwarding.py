"""Rules by which what arrives is sent on: each image once, nothing lost, nothing back to where it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from pydicom.dataset import Dataset
from sqlalchemy import event, select, update

from archive import jobs, sending
from archive.access import EVERYTHING, SYSTEM, Actor, Door
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.dicom.file_meta import FileMeta
from archive.forwarding import Facts, foresee, judge
from archive.ingest import Outcome, adopt, ingest
from archive.instance import State
from archive.rejecting import revoke_note
from archive.schema import instance
from archive.schema import sending as rows
from archive.settling import settle
from archive.work_items import How, list_items
from retention.tick import tick
from tests.archive.lifecycle.studies import at
from tests.builders import ct_slice, data_set, key_object, new_uid

PEERS = {"VIEWER": {"host": "127.0.0.1", "port": 104}, "PACS": {"ae_title": "OTHER", "host": "127.0.0.1", "port": 105}}
STUDY = new_uid("forward")


@contextmanager
def ruled(settings: Settings, *rules: dict[str, Any], **more: Any) -> Iterator[Archive]:
    values = settings.model_dump() | more
    values["dicom"] |= {"peers": PEERS, "forward": rules}
    with open_archive(Settings.model_validate(values), process="test") as archive:
        yield archive


def arrive(archive: Archive, ds: Dataset, *, sender: str = "CT1", forward: bool = True) -> Outcome:
    incoming = archive.hot.receive(
        FileMeta(ds.SOPClassUID, ds.SOPInstanceUID, ds.file_meta.TransferSyntaxUID, sender), at=archive.clock()
    )
    incoming.write(data_set(ds))
    peer = Actor(user=sender, source="127.0.0.1", door=Door.DICOM, may=EVERYTHING)
    return ingest(archive, incoming, actor=peer, scope="a", forward=forward)


def ct(**changes: Any) -> Dataset:
    return ct_slice(**{"StudyInstanceUID": STUDY, "StationName": "SCAN1", **changes})


def owed(archive: Archive) -> list[tuple[str, str]]:
    with archive.reading() as conn:
        found = conn.execute(select(rows.c.rule, rows.c.sop_instance_uid).order_by(rows.c.pk)).all()
    return [(row.rule, row.sop_instance_uid) for row in found]


def quiet(archive: Archive, seconds: float = 3600) -> None:
    """Nothing has come for some time."""
    past = archive.real_clock() - timedelta(seconds=seconds)
    archive.commit.run(lambda conn: conn.execute(update(rows).values(at=past)))


@pytest.mark.parametrize(
    ("when", "sends"),
    [
        ({}, True),
        ({"modalities": ["MR", "CT"]}, True),
        ({"modalities": ["MR"]}, False),
        ({"calling_aets": ["CT1"], "stations": ["SCAN1"]}, True),
        ({"calling_aets": ["CT1"], "stations": ["SCAN2"]}, False),
        ({"sop_classes": ["1.2.840.10008.5.1.4.1.1.2"]}, True),
        ({"sop_classes": ["1.2.840.10008.5.1.4.1.1.4"]}, False),
        ({"study_description": "scanner*"}, True),
        ({"study_description": "Scanner ?horacique"}, True),
        ({"study_description": "scanner"}, False),
        ({"sites": ["north"]}, True),
        ({"sites": ["south"]}, False),
    ],
)
def test_a_rule_takes_what_meets_all_that_it_says(when: dict[str, Any], sends: bool) -> None:
    sites = [{"id": "south"}, {"id": "north", "aets": ["CT1"]}]
    dicom = {"peers": PEERS, "forward": [{"name": "r", "to": "VIEWER", "when": when}]}
    settings = Settings.model_validate({"sites": sites, "dicom": dicom})
    said = Facts("CT1", "CT", "SCAN1", "", "1.2.840.10008.5.1.4.1.1.2", "Scanner thoracique")
    verdict = judge(settings, settings.dicom.forward[0], said)
    assert verdict.sends is sends
    assert verdict.why
    assert "thoracique" not in verdict.why


def test_the_preview_judges_what_is_held_as_its_arrival_was_judged(settings: Settings) -> None:
    rules = (
        {"name": "all", "to": "VIEWER", "when": {"calling_aets": ["CT1"], "modalities": ["CT"]}},
        {"name": "none", "to": "VIEWER", "when": {"stations": ["SCAN2"]}},
    )
    with ruled(settings, *rules) as archive:
        kept = [ct(number=1), ct(number=2)]
        for ds in kept:
            arrive(archive, ds)
        assert owed(archive) == [("all", ds.SOPInstanceUID) for ds in kept]
        with archive.reading() as conn:
            said = list(foresee(conn, archive.settings, study_uid=STUDY))
            later = list(foresee(conn, archive.settings, since=archive.clock() + timedelta(days=1)))
        assert [(one.rule, one.sends, one.instances, one.why) for one in said] == [
            ("all", True, 2, "Modality is CT, calling AE title is CT1"),
            ("none", False, 2, "Station Name is SCAN1"),
        ]
        assert later == []


def test_a_study_goes_once_when_it_is_quiet_and_what_comes_late_too(settings: Settings) -> None:
    with ruled(settings, {"name": "r", "to": "VIEWER", "quiet_seconds": 600}) as archive:
        slices = [ct(number=number) for number in range(1, 4)]
        for ds in slices:
            arrive(archive, ds)
        assert sending.gather(archive) == 0  # it may not be over
        quiet(archive)
        assert sending.gather(archive) == 1
        assert sending.gather(archive) == 0
        arrive(archive, slices[0])  # a resend
        arrive(archive, late := ct(number=9))
        quiet(archive)
        assert sending.gather(archive) == 1
        first, second = (jobs.claim(archive, [sending.KIND], holder="a") for _ in range(2))
        assert first is not None
        assert second is not None
        assert first.payload | {"source": ""} == {
            "peer": "VIEWER", "study": STUDY, "rule": "r", "user": "minipacs", "source": "", "door": "system",
        }  # fmt: skip
        uids = [[one.sop_instance_uid for one in sending.waiting(archive, job)] for job in (first, second)]
        assert uids == [[ds.SOPInstanceUID for ds in slices], [late.SOPInstanceUID]]


def test_nothing_goes_back_to_whoever_sent_it(settings: Settings) -> None:
    with ruled(settings, {"name": "r", "to": "PACS"}) as archive:
        arrive(archive, ct(), sender="OTHER")  # its AE title, not the name of its table
        assert owed(archive) == []
        with archive.reading() as conn:
            (said,) = foresee(conn, archive.settings)
        assert (said.sends, said.why) == (False, "it came from OTHER itself")
        arrive(archive, ct())
        assert len(owed(archive)) == 1


def test_a_crash_before_the_commit_loses_no_sending_and_a_rebuild_begins_none(settings: Settings) -> None:
    with ruled(settings, {"name": "r", "to": "VIEWER", "when": {"calling_aets": ["CT1"]}}) as archive:
        found: list[str] = []
        for ds in (ct(), ct(number=2)):
            meta = FileMeta(ds.SOPClassUID, ds.SOPInstanceUID, ds.file_meta.TransferSyntaxUID, "CT1")
            incoming = archive.hot.receive(meta, at=archive.clock())
            incoming.write(data_set(ds))
            incoming.settle()  # and then power failed
            incoming.close()
            found.append(incoming.final)
        assert adopt(archive, found[0], actor=SYSTEM, forward=True) is Outcome.STORED
        assert len(owed(archive)) == 1
        assert adopt(archive, found[0], actor=SYSTEM, forward=True) is Outcome.STORED
        assert adopt(archive, found[1], actor=SYSTEM) is Outcome.STORED
        assert len(owed(archive)) == 1


def test_what_is_held_back_waits_for_a_person(settings: Settings) -> None:
    with ruled(settings, {"name": "r", "to": "VIEWER", "quiet_seconds": 0}) as archive:
        arrive(archive, ct())
        assert arrive(archive, ct(number=2, PatientID="SOMEBODY")) is Outcome.STORED_HELD
        assert sending.gather(archive) == 1
        assert sending.gather(archive) == 0
        archive.commit.run(lambda conn: conn.execute(update(instance).values(state=State.STORED)))
        assert sending.gather(archive) == 1


def test_what_was_rejected_before_it_left_stays_until_that_is_revoked_or_it_is_purged(
    settings: Settings, actor: Actor
) -> None:
    rule = {"name": "r", "to": "VIEWER", "quiet_seconds": 0, "when": {"modalities": ["CT"]}}
    with ruled(settings, rule) as archive:
        at(archive, "2026-01-05")
        first, strange = ct(), ct(number=2, PatientID="SOMEBODY")
        arrive(archive, first)
        assert arrive(archive, strange) is Outcome.STORED_HELD
        note = key_object(first, strange, title=("113001", "Rejected for Quality Reasons"))
        arrive(archive, note)
        assert sending.gather(archive) == 0
        revoke_note(archive, note.SOPInstanceUID, reason="judged again", actor=actor)
        assert sending.gather(archive) == 1
        with archive.reading() as conn:
            (item,) = list_items(conn, kind="identity_conflict", state="open")
        settle(archive, item["id"], how=How.REJECT, reason="wrong patient", actor=actor)
        for day in ("2031-01-06", "2031-02-10"):
            at(archive, day)
            tick(archive)
        assert [uid for _, uid in owed(archive)] == [first.SOPInstanceUID]
        assert sending.gather(archive) == 0


def test_what_was_fetched_and_what_a_rule_that_is_off_would_send_stay(settings: Settings) -> None:
    rules = ({"name": "on", "to": "VIEWER"}, {"name": "off", "to": "VIEWER", "enabled": False})
    with ruled(settings, *rules) as archive:
        arrive(archive, ct(), forward=False)
        assert owed(archive) == []
        arrive(archive, ct(number=2))
        assert [rule for rule, _ in owed(archive)] == ["on"]


def test_without_rules_arriving_asks_the_database_nothing_more(settings: Settings) -> None:
    def statements(*rules: dict[str, Any]) -> list[str]:
        with ruled(settings, *rules) as archive:
            said: list[str] = []
            arrive(archive, ct(number=1))
            event.listen(archive.engine, "before_cursor_execute", lambda *args: said.append(args[2]))
            arrive(archive, ct(number=2))
            return said

    without, with_rule = statements(), statements({"name": "r", "to": "VIEWER"})
    assert not any("sending" in one for one in without)
    assert sum("sending" in one for one in with_rule) == 1


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"name": "r", "to": "NOBODY"}], "a peer without host and port"),
        ([{"name": "r", "to": "VIEWER"}] * 2, "a name of its own"),
        ([{"name": "r", "to": "VIEWER", "when": {"sites": ["moon"]}}], "a site that does not exist: moon"),
    ],
)
def test_a_rule_that_cannot_be_followed_stops_the_start(
    settings: Settings, rules: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValidationError, match=message), ruled(settings, *rules):
        pass


def test_two_processes_gather_a_study_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with ruled(settings, {"name": "r", "to": "VIEWER", "quiet_seconds": 0}) as archive:
        arrive(archive, ct())
        gathered: Callable[..., bool] = sending._gathered
        both: list[bool] = []

        def twice(*args: Any, **kwargs: Any) -> bool:
            both.extend(gathered(*args, **kwargs) for _ in range(2))
            return both[0]

        monkeypatch.setattr(sending, "_gathered", twice)
        assert sending.gather(archive) == 1
        assert both == [True, False]
        with archive.reading() as conn:
            assert len(jobs.list_jobs(conn, limit=10)) == 1
