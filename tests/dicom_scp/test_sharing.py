"""Rejection notes of a study with a manifest, stored at the DRIMbox (IOCM, REQ-DRIM-05), over a real association."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import ValidationError
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from sqlalchemy import select

from archive import jobs, manifests, sharing
from archive.config import Settings
from archive.core import Archive
from archive.rejecting import reject
from archive.schema import sending
from tests.builders import ct_slice, new_uid
from tests.dicom_scp.conftest import running
from tests.dicom_scp.retrieving import keep
from tests.dicom_scp.test_deliver import WHO, ended
from tests.hl7_listener.saying import AUTHORITY, ISSUER, NIR_TEST, pid, say
from tests.hl7_listener.test_omi import NAMES, TRAITS
from tests.server import free_port

KOS = "1.2.840.10008.5.1.4.1.1.88.59"
STUDY = new_uid("shared")


@dataclass
class DrimBox:
    """Accepts Key Object Selections alone, as the listener of the ANS does."""

    port: int = field(default_factory=free_port)
    got: list[Dataset] = field(default_factory=list)

    def _store(self, event: evt.Event) -> int:
        self.got.append(event.dataset)
        return 0x0000

    @contextmanager
    def listening(self) -> Iterator[None]:
        ae = AE("DRIMBOX")
        ae.add_supported_context(KOS, ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
        server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        try:
            yield
        finally:
            server.shutdown()


def told_to(settings: Settings, **sharing: Any) -> Settings:
    return Settings.model_validate(
        {
            **settings.model_dump(),
            "test_mode": True,
            "hl7": {"authorities": [AUTHORITY]},
            "identity": {"ins_oids": [NIR_TEST]},
            "dicom": {**settings.dicom.model_dump(), "peers": {"DRIMBOX": {"host": "127.0.0.1", "port": free_port()}}},
            "sharing": sharing,
        }
    )


def sent(archive: Archive) -> list[int]:
    """The jobs that send notes, once the changes are looked at."""
    while sharing.tell_due(archive):
        pass
    with archive.reading() as conn:
        return list(conn.execute(select(sending.c.job_pk).order_by(sending.c.pk)).scalars())


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
@pytest.mark.req("REQ-DRIM-05", "REQ-HL7-99")
@pytest.mark.parametrize("code", ["113001", "113037", "113038"])
def test_a_rejection_note_is_stored_at_the_drimbox_once(settings: Settings, code: str) -> None:
    box = DrimBox()
    peers = {"DRIMBOX": {"host": "127.0.0.1", "port": box.port}}
    with running(told_to(settings, rejections_to="DRIMBOX"), peers=peers) as server:
        archive = server.archive
        say(archive, "A28", pid("R1", NAMES, **TRAITS))
        who = {"StudyInstanceUID": STUDY, "PatientID": "R1", "IssuerOfPatientID": ISSUER}
        first, second = keep(archive, *(ct_slice(number=number, **who) for number in (1, 2)))
        never = keep(archive, ct_slice(**{**who, "StudyInstanceUID": new_uid("x"), "SeriesInstanceUID": new_uid("y")}))
        manifests.make(archive, STUDY, base_url="https://pacs.example/dicom-web", actor=WHO)
        reject(archive, str(never[0].StudyInstanceUID), code=code, reason="essai", actor=WHO)
        assert sent(archive) == [], "nobody shares this one"
        note = reject(archive, STUDY, code=code, reason="bougé", instances=[first.SOPInstanceUID], actor=WHO)
        [id] = sent(archive)
        assert ended(archive, id).state == "due", "it is away, and told later"
        with box.listening():
            archive.commit.run(lambda conn: jobs.retry(conn, id, at=archive.real_clock()))
            assert ended(archive, id, attempts=2).state == "done"
        assert sent(archive) == [id]
    [got] = box.got
    assert (got.SOPClassUID, got.SOPInstanceUID) == (KOS, note.uid)
    assert got.ConceptNameCodeSequence[0].CodeValue == code
    [study] = got.CurrentRequestedProcedureEvidenceSequence
    [series] = study.ReferencedSeriesSequence
    assert [one.ReferencedSOPInstanceUID for one in series.ReferencedSOPSequence] == [first.SOPInstanceUID]
    assert second.SOPInstanceUID != first.SOPInstanceUID


@pytest.mark.req("REQ-DRIM-05")
def test_notes_go_to_a_peer_that_can_be_called(settings: Settings) -> None:
    with pytest.raises(ValidationError, match=r"sharing\.rejections_to"):
        told_to(settings, rejections_to="NOBODY")
