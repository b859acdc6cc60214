"""What a retrieve selects: by every level, and by identifiers that were merged away."""

from __future__ import annotations

import pytest
from sqlalchemy import select as sql_select
from sqlalchemy import update

from archive.core import Archive
from archive.index.correct import move_studies
from archive.retrieve import select
from archive.schema import patient
from tests.archive.lifecycle.studies import send, uid_of


def studies(archive: Archive, patient_id: str, issuer: str | None = None) -> set[str]:
    return {one.study_instance_uid for one in select(archive, patient_id=patient_id, issuer=issuer)}


@pytest.mark.req("REQ-DCM-37", "REQ-DCM-40")
def test_a_patient_id_that_was_merged_away_selects_the_survivor(archive: Archive) -> None:
    send(archive, "loser", "20260105")
    send(archive, "survivor", "20260106")
    send(archive, "stranger", "20260107")
    with archive.engine.begin() as conn:
        rows = conn.execute(sql_select(patient.c.patient_id, patient.c.pk)).all()
        pks = {str(row.patient_id): int(row.pk) for row in rows}
        loser, survivor = pks["P-loser"], pks["P-survivor"]
        move_studies(conn, loser_pk=loser, survivor_pk=survivor)
        merged = update(patient).where(patient.c.pk == loser)
        conn.execute(merged.values(merged_into_pk=survivor, tombstone="merged"))
    both = {uid_of("loser"), uid_of("survivor")}
    assert studies(archive, "P-loser") == both
    assert studies(archive, "P-survivor") == both
    assert studies(archive, "P-stranger") == {uid_of("stranger")}
    assert studies(archive, "P-nobody") == set()


@pytest.mark.req("REQ-DCM-37")
def test_an_issuer_that_is_another_selects_nothing(archive: Archive) -> None:
    send(archive, "one", "20260105", IssuerOfPatientID="CABINET")
    assert studies(archive, "P-one", "CABINET") == {uid_of("one")}
    assert studies(archive, "P-one") == {uid_of("one")}
    assert studies(archive, "P-one", "CLINIQUE") == set()
