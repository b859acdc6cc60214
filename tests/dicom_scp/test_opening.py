"""Immediate access, measured by the archive itself as for a C-MOVE (REQ-CDC-09)."""

from __future__ import annotations

import pytest

from archive.audit.read import list_rows
from archive.core import Archive
from dicom_scp import opening
from tests.builders import ct_slice, new_uid
from tests.dicom_scp.retrieving import keep


@pytest.mark.req("REQ-CDC-09")
def test_a_series_is_sent_as_for_a_c_move_and_audited_as_nobodys_look(archive: Archive) -> None:
    keep(archive, *(ct_slice(number=number) for number in range(1, 5)))
    prober = opening.prober(archive)
    done = prober.look()
    prober.close()
    assert done is not None
    assert (done.error, done.images) == (None, 4)
    assert done.first_seconds is not None
    assert done.all_seconds is not None
    assert 0 < done.first_seconds <= done.all_seconds
    assert done.sent_bytes > 4 * 16 * 16 * 2
    archive.accesses.close()
    with archive.reading() as conn:
        rows = list_rows(conn, study=new_uid("study"), event="110104", action="R").items
    assert {(row["user"], row["door"]) for row in rows} == {("minipacs", "probe")}
    assert len(rows) == 2, "an opening and a closing row"
