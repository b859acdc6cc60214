"""Storage commitment: what is promised is there, was read to its end, and stays."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from archive import commitment
from archive.access import EVERYTHING, Actor, Door
from archive.clock import monotonic
from archive.commitment import Decision, Reference, Verdict, ask, decide, promises, reported
from archive.core import Archive
from archive.errors import NotFound, StorageFailed
from archive.instance import CopyState, State
from archive.lifecycle.guard import Blocker
from archive.lifecycle.purge import purge_study
from archive.schema import audit, commitment_request, instance, job, location
from tests.archive.lifecycle.aging import migrated, noise, received, slices, switched
from tests.archive.lifecycle.studies import at, row_of, send, statements, uid_of
from tests.builders import new_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
PEER = Actor(user="CT1", source="10.0.0.1", door=Door.DICOM, may=EVERYTHING)


def held(archive: Archive, *names: str, slices: int = 1) -> list[Reference]:
    """Images that are stored now, of studies with these names."""
    for name in names:
        for _ in range(slices):
            send(archive, name, "20260105")
    with archive.reading() as conn:
        uids = conn.execute(select(instance.c.sop_instance_uid).order_by(instance.c.pk)).scalars().all()
    return [Reference(CT, uid) for uid in uids]


def request(archive: Archive, *references: Reference, transaction: str = "", peer: str = "CT1") -> int:
    return ask(archive, transaction or new_uid(), references, actor=PEER, ae_title=peer)


def decided(archive: Archive, *references: Reference, **named: str) -> Decision:
    answer = decide(archive, request(archive, *references, **named))
    assert answer is not None
    return answer


def verdicts(decision: Decision) -> dict[str, Verdict]:
    return {one.sop_instance_uid: verdict for one, verdict in decision.failed}


def file_of(archive: Archive, one: Reference) -> Path:
    with archive.reading() as conn:
        path = conn.execute(
            select(location.c.path).join(instance).where(instance.c.sop_instance_uid == one.sop_instance_uid)
        ).scalar_one()
    return Path(archive.hot.path(path))


def told(archive: Archive) -> list[tuple[str, str, int, dict[str, Any]]]:
    """Audit rows of commitments."""
    with archive.reading() as conn:
        rows = conn.execute(select(audit).where(audit.c.event == "110103").order_by(audit.c.pk)).all()
    return [(row.user, row.study or "", row.outcome, json.loads(row.detail)) for row in rows]


@pytest.mark.req("REQ-DCM-50")
def test_a_request_is_a_row_a_job_and_an_audit_row_in_one_transaction(archive: Archive) -> None:
    references = held(archive, "a", slices=2)
    with statements(archive) as said:
        taken = request(archive, *references, transaction="1.2.3")
    assert sum(one.startswith("INSERT INTO") and "commitment_request" in one for one in said) == 1
    with archive.reading() as conn:
        row = conn.execute(select(commitment_request)).one()
        owed = conn.execute(select(job)).one()
    assert (row.pk, row.transaction_uid, row.ae_title, row.failed) == (taken, "1.2.3", "CT1", None)
    assert (owed.kind, json.loads(owed.payload), owed.state) == ("dicom.commitment", {"request": taken}, "due")
    assert told(archive) == [("CT1", "", 0, {"commitment": "asked", "transaction": "1.2.3", "instances": 2})]


@pytest.mark.req("REQ-DCM-50")
@pytest.mark.req("REQ-DCM-51")
def test_good_copies_are_read_and_promised_study_by_study(archive: Archive) -> None:
    references = held(archive, "a", "b", slices=2)
    answer = decided(archive, *references, transaction="1.2.3")
    assert (answer.committed, answer.failed, answer.reported) == (tuple(references), (), False)
    with archive.reading() as conn:
        assert conn.execute(select(func.count()).where(location.c.verified_at.is_(None))).scalar_one() == 0
        found = [promises(conn, uid_of(name)) for name in ("a", "b")]
    assert [[(one.to, one.instances, one.transaction_uid) for one in some] for some in found] == [
        [("CT1", 2, "1.2.3")]
    ] * 2
    detail = {"commitment": "promised", "to": "CT1", "transaction": "1.2.3", "instances": 2}
    assert told(archive)[1:] == [("minipacs", uid, 0, detail) for uid in sorted((uid_of("a"), uid_of("b")))]


@pytest.mark.req("REQ-DCM-50")
@pytest.mark.parametrize("harm", ["altered", "cut", "lost"])
def test_a_copy_that_is_not_what_was_received_is_not_promised(archive: Archive, harm: str) -> None:
    good, bad = held(archive, "a", slices=2)
    file = file_of(archive, bad)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if harm == "lost":
        file.unlink()
    else:
        file.write_bytes(content if harm == "altered" else content[:-1])
    answer = decided(archive, good, bad)
    assert (answer.committed, verdicts(answer)) == ((good,), {bad.sop_instance_uid: Verdict.DAMAGED})
    with archive.reading() as conn:  # as `minipacs verify` would have it
        assert conn.execute(select(location.c.state).order_by(location.c.pk)).scalars().all() == ["ok", "damaged"]
    assert told(archive)[-1][2:] == (4, {
        "commitment": "refused", "to": "CT1", "transaction": answer.transaction_uid, "no good copy": 1,
    })  # fmt: skip


def test_a_second_copy_that_is_good_is_enough(archive: Archive) -> None:
    """The first one is marked, and the promise rests on the other."""
    (one,) = held(archive, "a")
    file = file_of(archive, one)
    cold = Path(archive.cold.path("2026/copy.dcm"))
    cold.parent.mkdir(parents=True)
    cold.write_bytes(file.read_bytes())
    file.write_bytes(b"\0" * file.stat().st_size)

    def second(conn: Any) -> None:
        row = dict(conn.execute(select(location)).one()._mapping)
        conn.execute(location.insert(), {**row, "pk": None, "tier": "cold", "path": "2026/copy.dcm"} | {"pk": 1000})

    archive.commit.run(second)
    assert decided(archive, one).committed == (one,)


@pytest.mark.req("REQ-DCM-50")
def test_what_others_do_not_see_is_no_such_instance(archive: Archive) -> None:
    seen, hidden, purging = held(archive, "a", slices=3)
    never = Reference(CT, new_uid())

    def hide(conn: Any) -> None:
        for one, state in ((hidden, State.HELD), (purging, State.PURGING)):
            conn.execute(
                update(instance).where(instance.c.sop_instance_uid == one.sop_instance_uid).values(state=state)
            )

    archive.commit.run(hide)
    other = Reference("1.2.840.10008.5.1.4.1.1.4", seen.sop_instance_uid)
    answer = decided(archive, never, hidden, purging, other)
    assert [verdict for _, verdict in answer.failed] == [Verdict.UNKNOWN] * 3 + [Verdict.OTHER_CLASS]
    assert answer.committed == ()


@pytest.mark.req("REQ-DCM-50")
def test_a_copy_that_was_read_lately_is_not_read_again(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    at(archive, "2026-01-05T10:00:00+00:00")
    (one,) = held(archive, "a")
    looked: list[str] = []
    damage = type(archive.hot).damage
    monkeypatch.setattr(
        type(archive.hot), "damage", lambda self, name, **rest: looked.append(name) or damage(self, name, **rest)
    )
    for moment, reads in (("2026-01-05T10:00:00", 1), ("2026-01-06T09:00:00", 1), ("2026-01-06T11:00:00", 2)):
        at(archive, f"{moment}+00:00")
        assert decided(archive, one).committed == (one,)
        assert len(looked) == reads
    file_of(archive, one).write_bytes(b"short")  # its length is looked at each time
    assert verdicts(decided(archive, one)) == {one.sop_instance_uid: Verdict.DAMAGED}


@pytest.mark.req("REQ-DCM-50")
def test_a_volume_that_is_away_says_nothing_about_its_images(archive: Archive) -> None:
    (one,) = held(archive, "a")
    taken = request(archive, one)
    away = archive.hot.root.with_name("away")
    archive.hot.root.rename(away)
    with pytest.raises(StorageFailed):
        decide(archive, taken)
    away.rename(archive.hot.root)
    answer = decide(archive, taken)
    assert answer is not None and answer.committed == (one,)


def test_a_promise_is_decided_on_what_stands_when_it_is_made(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only copy is found damaged by somebody else after it was read, and before the decision."""
    (one,) = held(archive, "a")
    read = commitment._read_copies

    def spoiled(*arguments: Any, **named: Any) -> bool:
        done = read(*arguments, **named)
        archive.commit.run(lambda conn: conn.execute(update(location).values(state=CopyState.DAMAGED)))
        return done

    monkeypatch.setattr(commitment, "_read_copies", spoiled)
    assert verdicts(decided(archive, one)) == {one.sop_instance_uid: Verdict.DAMAGED}


@pytest.mark.req("REQ-DCM-50")
def test_a_transaction_uid_in_use_fails_as_a_whole(archive: Archive) -> None:
    first, second = held(archive, "a", slices=2)
    assert decided(archive, first, transaction="1.2.3").failed == ()
    others = [decided(archive, second, transaction="1.2.3"), decided(archive, first, transaction="1.2.3", peer="CT2")]
    assert [list(verdicts(one).values()) for one in others] == [[Verdict.DUPLICATE]] * 2


def test_the_same_request_again_is_the_same_transaction_until_it_is_reported(archive: Archive) -> None:
    """A peer that lost the answer to its N-ACTION says it again."""
    (one,) = held(archive, "a")
    taken = request(archive, one, transaction="1.2.3")
    assert request(archive, one, transaction="1.2.3") == taken
    with archive.reading() as conn:
        assert conn.execute(select(func.count()).select_from(job)).scalar_one() == 1
    answer = decide(archive, taken)
    assert answer is not None and not answer.reported
    reported(archive, taken)
    again = decide(archive, taken)
    assert again is not None and again.reported
    with pytest.raises(NotFound):
        decide(archive, taken + 1000)
    assert request(archive, one, transaction="1.2.3") != taken  # asked once more: answered once more
    assert decided(archive, one, transaction="1.2.3").committed == (one,)


def test_a_decision_that_takes_too_long_is_left_to_the_job(archive: Archive) -> None:
    taken = request(archive, *held(archive, "a", slices=2))
    assert decide(archive, taken, until=monotonic()) is None
    assert decide(archive, taken, until=monotonic() + 60) is not None


def test_requests_are_forgotten_after_a_month_and_promises_never(archive: Archive) -> None:
    (one,) = held(archive, "a")
    decided(archive, one)
    past = archive.real_clock() - commitment.KEPT - timedelta(days=1)
    archive.commit.run(lambda conn: conn.execute(update(commitment_request).values(asked_at=past)))
    newer = [request(archive, one) for _ in range(2)]
    with archive.reading() as conn:
        assert list(conn.execute(select(commitment_request.c.pk)).scalars()) == newer
        assert len(promises(conn, uid_of("a"))) == 1


@pytest.mark.req("REQ-DCM-50")
def test_ten_thousand_instances_are_decided_in_few_statements(archive: Archive) -> None:
    references = [*held(archive, "a", slices=3), *(Reference(CT, f"1.2.3.{number}") for number in range(9_997))]
    taken = request(archive, *references)
    with statements(archive) as said:
        answer = decide(archive, taken)
    assert answer is not None
    assert (len(answer.committed), len(answer.failed)) == (3, 9_997)
    assert len(said) < 60  # twenty pages to read, twenty to decide


@pytest.mark.req("REQ-DCM-50")
def test_an_original_that_was_replaced_is_not_promised_and_its_lossy_copy_is(archive: Archive) -> None:
    """Only the lossy copy is left: whoever would remove his own must know (sheet 10 §7)."""
    images = received(archive, *slices(1), noise())
    references = [Reference(CT, str(ds.SOPInstanceUID)) for ds in images]
    assert decided(archive, *references).failed == ()  # while they are there
    migrated(archive)
    switched(archive)
    with archive.reading() as conn:
        copy = conn.execute(select(instance.c.sop_instance_uid).where(instance.c.derived_from_pk.is_not(None))).scalar()
    answer = decided(archive, *references, Reference(CT, str(copy)))
    assert verdicts(answer) == {references[0].sop_instance_uid: Verdict.UNKNOWN}
    assert [one.sop_instance_uid for one in answer.committed] == [references[1].sop_instance_uid, copy]


@pytest.mark.req("REQ-DCM-51")
def test_a_promised_study_is_not_removed_before_its_day(archive: Archive) -> None:
    at(archive, "2026-01-05")
    (one,) = held(archive, "a")
    assert decided(archive, one).committed == (one,)
    for day in ("2026-01-06", "2028-06-01", "2031-01-01"):
        at(archive, day)
        assert purge_study(archive, row_of(archive, "a").pk) is Blocker.CHANGED
    assert file_of(archive, one).exists()
    at(archive, "2026-01-05")
    assert decided(archive, one).committed == (one,)
