"""`kill -9` between the answer to an N-ACTION and its report: what was taken is decided and reported in the end."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage, StorageCommitmentPushModel
from sqlalchemy import create_engine, text

from tests.builders import ct_slice, new_uid
from tests.crash.test_kill import ROUNDS, SEED, edge
from tests.dicom_scp.listening import Listener, listening, request
from tests.server import Server

WELL_KNOWN = "1.2.840.10008.1.20.1.1"


def ask(server: Server, image: Dataset, transaction_uid: str) -> None:
    """Store an image and ask for its commitment, until the answer."""
    ae = AE("CT1")
    ae.add_requested_context(CTImageStorage)
    ae.add_requested_context(StorageCommitmentPushModel)
    assoc = ae.associate("127.0.0.1", server.dicom_port, ae_title="MINIPACS")
    assert assoc.is_established, server.log.read_text()[-2000:]
    assert assoc.send_c_store(image).Status == 0
    wanted = request(transaction_uid, (str(image.SOPClassUID), str(image.SOPInstanceUID)))
    status, _ = assoc.send_n_action(wanted, 1, StorageCommitmentPushModel, WELL_KNOWN)
    assert status.Status == 0


def heard(listener: Listener, wanted: set[str]) -> dict[str, str]:
    """Transaction UID to the instance that was committed, once all that is wanted has come."""
    found: dict[str, str] = {}
    until = time.monotonic() + 60
    while not wanted <= set(found) and time.monotonic() < until:
        type_id, ds = listener.hear(60)
        assert type_id == 1, ds
        found[str(ds.TransactionUID)] = str(ds.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
    return found


@pytest.mark.req("REQ-DCM-50")
def test_a_request_that_was_answered_is_reported_whatever_is_killed(tmp_path: Path, database_url: str) -> None:
    rng = random.Random(SEED)
    asked: dict[str, str] = {}
    with listening("CT1") as listener:
        peers = {"CT1": {"host": "127.0.0.1", "port": listener.port, "may": ["store", "commit"]}}
        server = Server(tmp_path / "server", database_url, {"MINIPACS_DICOM__PEERS": json.dumps(peers)})
        server.folder.mkdir()
        assert server.command("migrate").returncode == 0
        for done in range(min(ROUNDS, 6)):
            image, transaction_uid = ct_slice(rows=64, columns=64), new_uid()
            with edge(server, "dicom"):
                ask(server, image, transaction_uid)
                if done:  # the first is killed at once; a look for jobs is due within half a second
                    time.sleep(rng.uniform(0, 0.8))
            asked[transaction_uid] = str(image.SOPInstanceUID)
        engine = create_engine(database_url)
        with engine.begin() as conn:  # what was begun by those who died is taken over when their lease is over: now
            conn.execute(text("UPDATE job SET lease_until = '2026-01-01 00:00:00' WHERE state = 'leased'"))
            left = conn.execute(text("SELECT count(*) FROM job WHERE state IN ('due', 'leased')")).scalar_one()
            kept = conn.execute(text("SELECT count(*) FROM commitment_request")).scalar_one()
        engine.dispose()
        assert kept == len(asked)
        assert left > 0, "nothing was killed in time: the test proves nothing"
        with edge(server, "dicom"):
            assert heard(listener, set(asked)) == asked
