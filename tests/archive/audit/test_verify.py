"""Whatever is done to the audit behind the archive's back is found, and named (REQ-SEC-04)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Update, delete, select, text, update

from archive.access import Actor
from archive.audit.record import Event, record
from archive.audit.verify import Verdict, export, verify, verify_file
from archive.config import Settings
from archive.core import Archive, open_archive
from archive.schema import audit, audit_chain

COLUMNS = [column.name for column in audit.columns if column.name != "pk"]
HEAD_COLUMNS = [column.name for column in audit_chain.columns]
ROWS = 5


def write_rows(archive: Archive, actor: Actor, count: int) -> None:
    for number in range(count):
        archive.commit.run(
            lambda conn, number=number: record(
                conn, actor, Event.QUERY, "E", patient="IPP1^^^HÔPITAL", study="1.2.3", detail={"n": number, "é": "à"}
            )
        )


@pytest.fixture
def three_chains(settings: Settings, actor: Actor) -> Settings:
    """Three processes, one after the other, of five rows each."""
    for process in ("dicom", "api", "import"):
        with open_archive(settings, process=process) as archive:
            write_rows(archive, actor, ROWS)
    return settings


@pytest.fixture
def tampered(three_chains: Settings, tmp_path: Path) -> Callable[..., Verdict]:
    """Run statements behind the archive's back, then verify the database; its export must say the same."""

    def tamper(*statements: object) -> Verdict:
        with open_archive(three_chains, process="verify") as archive:
            with archive.engine.connect().execution_options(minipacs_write=True) as conn:
                for statement in statements:
                    conn.execute(statement)  # type: ignore[call-overload]
                conn.commit()
            with archive.engine.connect() as conn:
                verdict = verify(conn)
            with archive.engine.connect() as conn, (tmp_path / "export.jsonl").open("wb") as file:
                export(conn, file, archive.time)
        exported = verify_file(tmp_path / "export.jsonl")
        assert (exported.ok, exported.row, exported.reason) == (verdict.ok, verdict.row, verdict.reason)
        return verdict

    return tamper


def chains(settings: Settings) -> list[str]:
    """In the order in which they were opened."""
    with open_archive(settings, process="look") as archive, archive.engine.connect() as conn:
        return list(conn.execute(select(audit_chain.c.chain).order_by(audit_chain.c.opened_at)).scalars())


def test_untouched_chains_verify(tampered: Callable[..., Verdict]) -> None:
    assert tampered() == Verdict(ok=True, row=None, reason="", rows=3 * ROWS)


def other_value(column: str, old: object) -> object:
    if column in ("seq", "outcome", "rows"):
        return int(str(old)) + 100
    if column in ("time", "opened_at"):
        from datetime import timedelta

        return old + timedelta(microseconds=1)  # type: ignore[operator]
    if column == "action":
        return "C"
    if column == "follows":
        return json.dumps([*json.loads(str(old)), ["0" * 36, 1, "0" * 64]])
    return None if old and column in ("patient", "study") else ("0" if str(old)[0] != "0" else "1") + str(old)[1:]


@pytest.mark.req("REQ-SEC-04")
def test_any_altered_column_of_any_row_is_named(three_chains: Settings) -> None:
    with open_archive(three_chains, process="verify") as archive:
        rows = list(archive.engine.connect().execute(select(audit)).mappings())
        assert len(rows) == 3 * ROWS
        for row in rows:
            for column in COLUMNS:
                change = {column: other_value(column, row[column])}
                verdict = altered(archive, update(audit).where(audit.c.pk == row["pk"]).values(change))
                where = (column, row["seq"], verdict)
                assert not verdict.ok and verdict.reason and verdict.row is not None, where
                place = (verdict.row.chain, verdict.row.seq)
                assert verdict.row.pk == row["pk"] or place == (row["chain"], row["seq"]), where
        with archive.engine.connect() as conn:
            assert verify(conn).ok


def altered(archive: Archive, change: Update) -> Verdict:
    """What a check says after `change`, which is then undone."""
    with archive.engine.connect().execution_options(minipacs_write=True) as conn:
        conn.execute(change)
        verdict = verify(conn)
        conn.rollback()
    return verdict


@pytest.mark.parametrize("column", HEAD_COLUMNS)
def test_an_altered_head_is_found(three_chains: Settings, tampered: Callable[..., Verdict], column: str) -> None:
    chain = chains(three_chains)[1]
    with open_archive(three_chains, process="look") as archive, archive.engine.connect() as conn:
        head = conn.execute(select(audit_chain).where(audit_chain.c.chain == chain)).mappings().one()

    change = {column: other_value(column, head[column])}
    verdict = tampered(update(audit_chain).where(audit_chain.c.chain == chain).values(change))

    assert not verdict.ok
    assert verdict.row is not None
    assert verdict.row.chain in (chain, change.get("chain"))


@pytest.mark.parametrize("seq", [0, 2])
def test_a_removed_row_is_named(three_chains: Settings, tampered: Callable[..., Verdict], seq: int) -> None:
    chain = chains(three_chains)[0]
    verdict = tampered(delete(audit).where(audit.c.chain == chain, audit.c.seq == seq))
    assert not verdict.ok
    assert verdict.row is not None
    assert (verdict.row.pk, verdict.row.chain, verdict.row.seq) == (None, chain, seq)


def test_a_removed_tail_is_named(three_chains: Settings, tampered: Callable[..., Verdict]) -> None:
    chain = chains(three_chains)[2]
    verdict = tampered(delete(audit).where(audit.c.chain == chain, audit.c.seq >= 3))
    assert not verdict.ok
    assert verdict.row is not None
    assert (verdict.row.chain, verdict.row.seq) == (chain, 3)


def test_a_tail_removed_with_its_head_moved_back_is_missed_by_the_next_chain(
    three_chains: Settings, tampered: Callable[..., Verdict]
) -> None:
    chain = chains(three_chains)[0]
    third = select(audit.c.hash).where(audit.c.chain == chain, audit.c.seq == 2).scalar_subquery()
    verdict = tampered(
        update(audit_chain).where(audit_chain.c.chain == chain).values(rows=3, head=third),
        delete(audit).where(audit.c.chain == chain, audit.c.seq >= 3),
    )
    assert not verdict.ok
    assert verdict.row is not None
    assert (verdict.row.chain, verdict.row.seq) == (chain, 3)


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ((audit,), "all rows of the chain are missing"),
        ((audit_chain,), "no head"),
        ((audit, audit_chain), "the chain is missing"),
    ],
)
def test_a_removed_chain_is_named(
    three_chains: Settings, tampered: Callable[..., Verdict], tables: tuple[object, ...], reason: str
) -> None:
    chain = chains(three_chains)[0]
    verdict = tampered(*(delete(table).where(table.c.chain == chain) for table in tables))  # type: ignore
    assert not verdict.ok
    assert reason in verdict.reason
    assert verdict.row is not None and verdict.row.chain == chain


def test_a_row_altered_with_its_own_hash_is_betrayed_by_the_next(
    three_chains: Settings, tampered: Callable[..., Verdict]
) -> None:
    from archive.audit.chain import row_hash, time_text

    chain = chains(three_chains)[1]
    with open_archive(three_chains, process="look") as archive, archive.engine.connect() as conn:
        row = dict(conn.execute(select(audit).where(audit.c.chain == chain, audit.c.seq == 2)).mappings().one())
    forged = {**row, "user": "somebody else", "time": time_text(row["time"])}
    verdict = tampered(update(audit).where(audit.c.pk == row["pk"]).values(user="somebody else", hash=row_hash(forged)))
    assert not verdict.ok
    assert verdict.row is not None and verdict.row.pk == row["pk"]


def test_an_added_row_is_found(three_chains: Settings, tampered: Callable[..., Verdict]) -> None:
    chain = chains(three_chains)[1]
    with open_archive(three_chains, process="look") as archive, archive.engine.connect() as conn:
        row = dict(conn.execute(select(audit).where(audit.c.chain == chain, audit.c.seq == ROWS - 1)).mappings().one())
    from archive.audit.chain import row_hash, time_text

    row.pop("pk")
    added = {**row, "seq": ROWS, "previous": row["hash"], "user": "nobody"}
    added["hash"] = row_hash({**added, "time": time_text(row["time"])})
    verdict = tampered(audit.insert().values(added))
    assert not verdict.ok
    assert verdict.row is not None and (verdict.row.chain, verdict.row.seq) == (chain, ROWS)


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "change",
    [
        "\"user\" = CAST(x'ff' AS TEXT)",
        "\"time\" = 'yesterday'",
        "outcome = 'none'",
        "detail = x'00ff'",
        "outcome = 0.5",
    ],
)
def test_a_value_that_cannot_be_read_is_a_finding(tampered: Callable[..., Verdict], change: str) -> None:
    verdict = tampered(text(f"UPDATE audit SET {change} WHERE pk = 7"))
    assert not verdict.ok
    assert verdict.row is not None and verdict.row.pk == 7


@pytest.mark.parametrize("settings", ["postgresql"], indirect=True)
def test_a_time_beyond_all_times_is_a_finding(tampered: Callable[..., Verdict]) -> None:
    verdict = tampered(text("UPDATE audit SET time = 'infinity' WHERE pk = 7"))
    assert not verdict.ok
    assert verdict.row is not None and verdict.row.pk == 7


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
class TestExport:
    @pytest.fixture
    def exported(self, three_chains: Settings, tmp_path: Path) -> Path:
        path = tmp_path / "audit.jsonl"
        with (
            open_archive(three_chains, process="export") as archive,
            archive.engine.connect() as conn,
            path.open("wb") as file,
        ):
            assert export(conn, file, archive.time) == 3 * ROWS
        return path

    def test_verifies_alone(self, exported: Path) -> None:
        assert verify_file(exported) == Verdict(ok=True, row=None, reason="", rows=3 * ROWS)

    def test_any_altered_byte_is_found(self, exported: Path) -> None:
        data = exported.read_bytes()
        for at in range(0, len(data), 37):
            exported.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            assert not verify_file(exported).ok, at

    def test_any_removed_line_is_found(self, exported: Path) -> None:
        lines = exported.read_bytes().splitlines(keepends=True)
        for at in range(len(lines)):
            exported.write_bytes(b"".join(lines[:at] + lines[at + 1 :]))
            assert not verify_file(exported).ok, at

    @pytest.mark.parametrize("content", [b"", b"\n", b"null\n", b'{"format":"minipacs audit 1"}\n{"chain":[]}\n'])
    def test_another_file_is_no_export(self, exported: Path, content: bytes) -> None:
        exported.write_bytes(content)
        assert not verify_file(exported).ok
