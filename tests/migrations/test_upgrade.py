"""The migrations make exactly the schema that the code uses, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

import migrations
from archive.config import Settings
from archive.core import open_archive
from archive.engines import make_engine
from archive.errors import IndexUnavailable
from archive.identity.record import of_json
from archive.identity.searchable import other_names
from archive.schema import METADATA, REVISION


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


def test_the_head_is_the_revision_that_the_archive_asks_for() -> None:
    assert migrations.head() == REVISION


def test_an_upgraded_schema_is_the_one_of_the_tables(database_url: str, engine: Engine) -> None:
    migrations.upgrade(database_url)
    with engine.connect() as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True})
        assert compare_metadata(context, METADATA) == []


def test_an_upgraded_schema_is_written_like_a_fresh_one(database_url: str, engine: Engine) -> None:
    """Names of constraints and collations too, which a comparison of metadata does not see."""
    migrations.upgrade(database_url)
    upgraded = _described(engine)
    with engine.begin() as conn:
        METADATA.drop_all(conn)
        METADATA.create_all(conn)
    fresh = _described(engine)
    upgraded.pop("alembic_version", None)
    fresh.pop("alembic_version", None)
    assert upgraded == fresh


def _described(engine: Engine) -> dict[str, object]:
    inspector = inspect(engine)
    tables: dict[str, object] = {}
    for name in inspector.get_table_names():
        tables[name] = {
            "columns": {
                (column["name"], str(column["type"]), getattr(column["type"], "collation", None), column["nullable"])
                for column in inspector.get_columns(name)
            },
            "indexes": {(i["name"], tuple(i["column_names"]), i["unique"]) for i in inspector.get_indexes(name)},
            "unique": {(u["name"], tuple(u["column_names"])) for u in inspector.get_unique_constraints(name)},
            "foreign": {
                (f["name"], tuple(f["constrained_columns"]), f["referred_table"])
                for f in inspector.get_foreign_keys(name)
            },
            "primary": inspector.get_pk_constraint(name)["name"],
        }
    return tables


def test_text_sorts_bytewise(database_url: str, engine: Engine) -> None:
    """UIDs and folded names are compared and cut by prefix: the order must not depend on the server's language."""
    migrations.upgrade(database_url)
    with engine.begin() as conn:
        for number, name in enumerate(["b", "a", "B", "é", "_"]):
            conn.execute(
                text(
                    "INSERT INTO account (pk, name, password_hash, roles, disabled, created_at)"
                    " VALUES (:pk, :name, '', '[]', 0, '2026-01-05 00:00:00')"
                ),
                {"pk": number, "name": name},
            )
        names = [row.name for row in conn.execute(text("SELECT name FROM account ORDER BY name"))]
    assert names == ["B", "_", "a", "b", "é"]


def test_orders_from_before_the_worklist_are_found_in_it(database_url: str, engine: Engine) -> None:
    from alembic import command

    config = migrations._config()
    with engine.begin() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "0002")
    at = "'2026-01-05 00:00:00'"
    record = (
        '{"dicom": {"Modality": "CT", "ScheduledProcedureStepStartDate": "20260110",'
        ' "ScheduledProcedureStepStartTime": "0830"}}'
    )
    with engine.begin() as conn:
        conn.execute(
            text(
                "INSERT INTO patient (pk, identity_key, patient_id, issuer, patient_name, provisional, attributes,"
                f" created_at) VALUES (1, 'k', 'R1', '', '', 0, '{{}}', {at})"
            )
        )
        conn.execute(
            text(
                "INSERT INTO imaging_order (pk, accession_number, step_id, patient_pk, study_instance_uid,"
                " placer_number, filler_number, status, record, created_at, updated_at)"
                f" VALUES (1, 'A1', '', 1, '1.2', '', '', 'scheduled', :record, {at}, {at})"
            ),
            {"record": record},
        )
    migrations.upgrade(database_url)
    with engine.begin() as conn:
        row = conn.execute(text("SELECT start_date, start_time, modality, station_ae FROM imaging_order")).one()
    assert tuple(row) == ("20260110", "083000.000000", "CT", "")


def test_patients_from_before_are_found_by_every_name_and_identifier(database_url: str, engine: Engine) -> None:
    from alembic import command

    config = migrations._config()
    with engine.begin() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "0007")
    record = (
        '{"names": {"L": {"family": "LE GOFF", "given": "ANNE-MARIE", "given_list": "ANNE-MARIE LOUISE"},'
        ' "D": {"family": "KERVÉADOU"}}, "identifiers": [{"value": "H77", "issuer": "HOPITAL", "type": "PI"},'
        ' {"value": "199", "issuer": "1.2.250.1.213.1.4.8", "type": "NH"}]}'
    )
    with engine.begin() as conn:
        for pk, known in ((1, record), (2, None)):
            conn.execute(
                text(
                    "INSERT INTO patient (pk, identity_key, patient_id, issuer, patient_name, provisional, attributes,"
                    " created_at, record) VALUES (:pk, :key, 'R1', '', '', 0, '{}', '2026-01-05 00:00:00', :record)"
                ),
                {"pk": pk, "key": f"k{pk}", "record": known},
            )
    migrations.upgrade(database_url)
    with engine.begin() as conn:
        names = conn.execute(text("SELECT other_names FROM patient ORDER BY pk")).scalars().all()
        identifiers = conn.execute(text("SELECT patient_pk, value, issuer FROM patient_identifier")).all()
        assert [*map(tuple, identifiers)] == [(1, "H77", "HOPITAL")]
        assert names == [other_names(of_json(record)), None]
        assert names[0] == "kerveadou\\le goff^louise"


def test_upgrading_twice_changes_nothing(database_url: str, engine: Engine) -> None:
    migrations.upgrade(database_url)
    before = _described(engine)
    migrations.upgrade(database_url)
    assert _described(engine) == before
    assert migrations.current(database_url) == REVISION


def test_two_upgrades_at_once_make_one_schema(database_url: str) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            migrations.upgrade(database_url)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert migrations.current(database_url) == REVISION


def test_the_downgrade_goes_back_to_nothing(database_url: str, engine: Engine) -> None:
    from alembic import command

    migrations.upgrade(database_url)
    config = migrations._config()
    with engine.begin() as conn:
        config.attributes["connection"] = conn
        command.downgrade(config, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]


def test_an_empty_database_has_no_revision(database_url: str) -> None:
    assert migrations.current(database_url) is None


def test_a_newer_schema_is_refused_and_left_alone(database_url: str, engine: Engine) -> None:
    migrations.upgrade(database_url)
    with engine.begin() as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(IndexUnavailable, match="newer"):
        migrations.upgrade(database_url)
    assert migrations.current(database_url) == "9999"


@pytest.mark.parametrize(("version", "said"), [("9999", "9999"), ("0000", "0000")])
def test_an_archive_does_not_open_on_another_schema_and_says_what_to_run(
    settings: Settings, version: str, said: str
) -> None:
    engine = make_engine(settings.database_url)
    with engine.begin() as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})
    engine.dispose()
    with (
        pytest.raises(IndexUnavailable, match=f"(?s){said}.*minipacs migrate"),
        open_archive(settings, process="test"),
    ):
        pass


def test_an_archive_does_not_open_on_an_empty_database(database_url: str, tmp_path: object) -> None:
    settings = Settings.model_validate({"data_dir": tmp_path, "database": {"url": database_url}})
    with pytest.raises(IndexUnavailable, match="minipacs migrate"), open_archive(settings, process="test"):
        pass


def test_a_locked_postgresql_is_refused_in_time(
    postgres_server: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "locked_for_migration"
    monkeypatch.setattr(migrations, "LOCK_SECONDS", 1)
    with psycopg.connect(postgres_server, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")
    url = postgres_server.replace("/postgres?", f"/{name}?")
    try:
        with psycopg.connect(url) as other:
            other.execute("SELECT pg_advisory_xact_lock(%s)", [migrations._ADVISORY_LOCK])
            with pytest.raises(IndexUnavailable, match="locked"):
                migrations.upgrade(url.replace("postgresql://", "postgresql+psycopg://"))
    finally:
        with psycopg.connect(postgres_server, autocommit=True) as conn:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_database_that_is_not_there_is_said(tmp_path: object) -> None:
    with pytest.raises(IndexUnavailable, match="reached"):
        migrations.upgrade("postgresql+psycopg://nobody@127.0.0.1:1/none?connect_timeout=2")
