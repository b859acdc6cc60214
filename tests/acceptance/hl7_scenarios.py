"""Runs HL7 scenarios (sheet 20 §11) against a real `minipacs serve`.

    .venv/bin/python tests/acceptance/hl7_scenarios.py DIR [ID…]

DIR holds `manifest.json` (format `hl7-scenarios/1`) and the messages it names. Each scenario gets an empty archive with
the manifest's `config`. Everything is seen from outside: MLLP, DIMSE, `/api/v1`. An assertion that cannot be checked
counts as failed. Exit code 0 when every scenario passed.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.presentation import build_role
from pynetdicom.sop_class import (
    CTImageStorage,
    PatientRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)

from tests.builders import ct_slice
from tests.server import Server

FIND = {"STUDY": StudyRootQueryRetrieveInformationModelFind, "PATIENT": PatientRootQueryRetrieveInformationModelFind}
CLASSES = {"CT": CTImageStorage}
LOOK_UPS = {  # what an assertion is about: where it is asked, and by which parameters
    "patient": ("patients", {"id": "identifier", "authority": "authority"}),
    "order": ("orders", {"accession": "accession"}),
    "visit": ("visits", {"number": "number"}),
    "report": ("reports", {"accession": "accession"}),
}


class Failed(Exception):
    """An assertion does not hold, or cannot be checked."""


def environment(config: dict[str, Any]) -> dict[str, str]:
    """Our settings for a manifest's `config` (sheet 60 §3)."""
    known = {
        "test_mode": "MINIPACS_TEST_MODE",
        "accept_ins_oids": "MINIPACS_IDENTITY__INS_OIDS",
        "default_charset": "MINIPACS_HL7__DEFAULT_CHARSET",
        "processing_ids": "MINIPACS_HL7__PROCESSING_IDS",
        "authorities": "MINIPACS_HL7__AUTHORITIES",
        "accession_fallback": "MINIPACS_HL7__ACCESSION_FALLBACK",
        "ack_mode": "MINIPACS_HL7__ACK_MODE",
        "online_years": "MINIPACS_RETENTION__IMMEDIATE_YEARS",
    }
    return {known[key]: value if isinstance(value, str) else json.dumps(value) for key, value in config.items()}


def exchange(port: int, message: bytes, *, seconds: float = 60) -> bytes:
    """Send one message in an MLLP frame on a connection of its own; the answer without its frame."""
    with socket.create_connection(("127.0.0.1", port), seconds) as sock:
        sock.sendall(b"\x0b" + message + b"\x1c\r")
        received = bytearray()
        while not received.endswith(b"\x1c\r"):
            piece = sock.recv(1 << 16)
            if not piece:
                raise Failed(f"the connection was closed after {len(received)} bytes of an answer")
            received += piece
    return bytes(received).strip(b"\x0b\x1c\r\n")


@dataclass
class Ack:
    """What an acknowledgement says."""

    code: str
    control_id: str
    errors: list[tuple[str, str]]  # code and location, as `PID^1^3`

    @classmethod
    def read(cls, raw: bytes) -> Ack:
        segments = [line.split("|") for line in raw.decode("utf-8", "replace").split("\r") if line]
        by_name: dict[str, list[list[str]]] = {}
        for segment in segments:
            by_name.setdefault(segment[0], []).append(segment)
        if segments[0][0] != "MSH" or "MSA" not in by_name:
            raise Failed("the answer is no acknowledgement")
        errors = []
        for error in by_name.get("ERR", []):
            if len(error) > 3:
                errors.append((error[3].split("^")[0], error[2]))
            elif len(error) > 1:  # up to 2.4: ERR-1, the code in its fourth component
                parts = error[1].split("^")
                errors.append((parts[3].split("&")[0], "^".join(parts[:3])))
        msa = by_name["MSA"][0]
        return cls(msa[1], msa[2] if len(msa) > 2 else "", errors)


@dataclass
class Run:
    """One scenario on one archive."""

    folder: Path
    scenarios: dict[str, dict[str, Any]]
    server: Server
    client: httpx.Client
    answer: bytes = b""  # to the last message; empty: there was none to look at

    def play(self, name: str) -> None:
        for number, step in enumerate(self.scenarios[name]["steps"], 1):
            try:
                self.step(step)
            except Failed as error:
                raise Failed(f"{name}, step {number}: {error}") from error

    def step(self, step: dict[str, Any]) -> None:
        unknown = step.keys() - {
            *("send", "ack", "err", "optional", "expect", "run", "store", "status", "cfind", "matches"),
            *("retrieve", "attributes"),
        }
        if unknown:
            raise Failed(f"cannot be checked: {', '.join(sorted(unknown))}")
        if "run" in step:
            self.play(step["run"])
        if "send" in step:
            self.send(step)
        if "store" in step:
            self.store(step)
        if "cfind" in step:
            self.cfind(step)
        if "retrieve" in step:
            self.retrieve(step)
        for assertion in step.get("expect", ()):
            self.expect(assertion)

    def send(self, step: dict[str, Any]) -> None:
        message = (self.folder / step["send"]).read_bytes()
        raw = self.answer = exchange(self.server.hl7_port, message)
        if not isinstance(step["ack"], str):
            raise Failed("cannot be checked: several acknowledgements")
        ack = Ack.read(raw)
        control_id = message.split(b"\r")[0].split(message[3:4])[9].decode("ascii", "replace")
        if ack.control_id != control_id:
            raise Failed(f"{step['send']}: MSA-2 is {ack.control_id!r}, MSH-10 was {control_id!r}")
        if step.get("optional") and ack.code == "AR" and ack.errors[0][0] in ("200", "201"):
            self.answer = b""
            return  # this archive says that it does not do it
        if ack.code != step["ack"]:
            raise Failed(f"{step['send']}: {ack.code} {ack.errors}, expected {step['ack']}")
        wanted = step.get("err")
        if wanted is not None:
            code, location = ack.errors[0] if ack.errors else ("", "")
            if code != wanted["code"] or not location.startswith(wanted["location"]):
                raise Failed(f"{step['send']}: ERR {code} at {location}, expected {wanted}")

    def expect(self, assertion: dict[str, Any]) -> None:
        subject = next((name for name in LOOK_UPS if name in assertion), None)
        if subject is not None:
            address, names = LOOK_UPS[subject]
            found = self.get(address, **{names[key]: value for key, value in assertion[subject].items()})
            compare(found, assertion["is"], subject)
        elif "response" in assertion:
            if self.answer:
                compare(response(self.answer), assertion["response"], "response")
        elif "work_item" in assertion:
            if not self.get("work-items", kind=assertion["work_item"], state="open")["items"]:
                raise Failed(f"no open work item {assertion['work_item']}")
        elif "audit" in assertion:
            asked = dict(assertion["audit"])
            least = asked.pop("count_min", 1)
            rows = self.get("audit", **asked, limit="1000")["items"]
            if len(rows) < least:
                raise Failed(f"{len(rows)} audit rows of {asked}, expected {least}")
        else:
            raise Failed(f"cannot be checked: {', '.join(assertion)}")

    def get(self, address: str, **parameters: str) -> dict[str, Any]:
        answer = self.client.get(f"/api/v1/{address}", params=parameters)
        if answer.status_code != 200:
            raise Failed(f"cannot be checked: /api/v1/{address} answers {answer.status_code}")
        found: dict[str, Any] = answer.json()
        return found

    def store(self, step: dict[str, Any]) -> None:
        wanted = step["store"]
        ae = AE("CT1")
        ae.add_requested_context(CLASSES[wanted["sop_class"]])
        assoc = ae.associate("127.0.0.1", self.server.dicom_port, ae_title="MINIPACS")
        if not assoc.is_established:
            raise Failed("no association")
        statuses = []
        for number in range(1, wanted["count"] + 1):
            status = assoc.send_c_store(ct_slice(number=number, **wanted["attributes"]))
            statuses.append(f"{status.Status:04X}" if status else "none")
        assoc.release()
        if statuses != step["status"]:
            raise Failed(f"C-STORE answered {statuses}, expected {step['status']}")

    def cfind(self, step: dict[str, Any]) -> None:
        asked = step["cfind"]
        query = Dataset()
        query.QueryRetrieveLevel = asked["level"]
        for keyword in {keyword for match in step["matches"] for keyword in match}:
            setattr(query, keyword, None)
        for keyword, value in asked["keys"].items():
            setattr(query, keyword, value)
        model = FIND[asked["root"]]
        ae = AE("READER")
        ae.add_requested_context(model)
        assoc = ae.associate("127.0.0.1", self.server.dicom_port, ae_title="MINIPACS")
        if not assoc.is_established:
            raise Failed("no association")
        answers = list(assoc.send_c_find(query, model))
        assoc.release()
        found = [ds for status, ds in answers if status and status.Status in (0xFF00, 0xFF01) and ds is not None]
        if len(found) != len(step["matches"]):
            raise Failed(f"C-FIND found {len(found)}, expected {len(step['matches'])}")
        for match in step["matches"]:
            if not any(_holds(ds, match) for ds in found):
                raise Failed(f"C-FIND did not find {match}")

    def retrieve(self, step: dict[str, Any]) -> None:
        received: list[Dataset] = []

        def keep(event: evt.Event) -> int:
            ds = event.dataset
            ds.file_meta = event.file_meta
            received.append(ds)
            return 0x0000

        query = Dataset()
        query.QueryRetrieveLevel = "STUDY"
        query.StudyInstanceUID = step["retrieve"]["study"]
        ae = AE("READER")
        ae.add_requested_context(StudyRootQueryRetrieveInformationModelGet)
        ae.add_requested_context(CTImageStorage)
        assoc = ae.associate(
            *("127.0.0.1", self.server.dicom_port),
            ae_title="MINIPACS",
            ext_neg=[build_role(CTImageStorage, scp_role=True)],
            evt_handlers=[(evt.EVT_C_STORE, keep)],
        )
        if not assoc.is_established:
            raise Failed("no association")
        list(assoc.send_c_get(query, StudyRootQueryRetrieveInformationModelGet))
        assoc.release()
        if not received:
            raise Failed("C-GET brought nothing")
        for ds in received:
            if not _holds(ds, step["attributes"]):
                raise Failed(f"a retrieved instance does not hold {step['attributes']}")


def response(raw: bytes) -> dict[str, Any]:
    """What the answer to a query says: its type, QAK, the patients by the first identifier of each PID."""
    segments = [line.split("|") for line in raw.decode("utf-8", "replace").split("\r") if line]
    qak = next((one for one in segments if one[0] == "QAK"), ["QAK", "", ""])
    identifiers = [one[3].split("~") for one in segments if one[0] == "PID"]
    return {
        "type": segments[0][8],
        "qak1": qak[1],
        "qak2": qak[2],
        "patients": [one[0].split("^")[0] for one in identifiers],
        "patient_count": len(identifiers),
        "pid3_count": len(identifiers[0]) if identifiers else 0,
        "dsc": any(one[0] == "DSC" and len(one) > 1 and bool(one[1]) for one in segments),
    }


def compare(found: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Every wanted field is there and equal; of `dicom` only those that are named."""
    for name, value in wanted.items():
        if name == "study_uid" and value == "generated":
            if not re.fullmatch(r"[0-9.]{3,64}", str(found.get("study_uid") or "")):
                raise Failed(f"{where}: no generated Study Instance UID")
        elif name not in found:
            raise Failed(f"{where}: {name} is not in the answer")
        elif name == "dicom":
            compare(found["dicom"], value, f"{where}.dicom")
        elif found[name] != value:
            raise Failed(f"{where}: {name} is {found[name]!r}, expected {value!r}")


def _holds(ds: Dataset, wanted: dict[str, Any]) -> bool:
    for keyword, value in wanted.items():
        if keyword not in ds:
            return False
        held = ds[keyword].value
        if isinstance(value, list) and value and isinstance(value[0], dict):
            if len(held) < len(value) or not all(_holds(item, one) for item, one in zip(held, value, strict=False)):
                return False
        elif isinstance(value, dict):  # the only item
            if len(held) != 1 or not _holds(held[0], value):
                return False
        elif str(held) != str(value):
            return False
    return True


@contextmanager
def playing(folder: Path, *, workspace: Path) -> Iterator[Run]:
    """An archive of its own, to play scenarios on; `play` raises Failed."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest["format"] != "hl7-scenarios/1":
        raise Failed(f"cannot be checked: a manifest of format {manifest['format']!r}")
    scenarios = {one["id"]: one for one in manifest["scenarios"]}
    server = Server(workspace, "", environment(manifest["config"]))
    try:
        server.start()
        with server.client("service") as client:
            yield Run(folder, scenarios, server, client)
    finally:
        if server.process is not None:
            server.stop()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with manifest.json")
    parser.add_argument("names", nargs="*", metavar="ID", help="scenarios to play; all of them when none is named")
    options = parser.parse_args(argv)
    manifest = json.loads((options.folder / "manifest.json").read_text(encoding="utf-8"))
    failures = 0
    for name in options.names or [one["id"] for one in manifest["scenarios"]]:
        with tempfile.TemporaryDirectory(prefix="minipacs-hl7-") as workspace:
            try:
                with playing(options.folder, workspace=Path(workspace) / "server") as played:
                    played.play(name)
                verdict = "passed"
            except (Failed, RuntimeError, OSError, httpx.HTTPError) as error:
                failures += 1
                verdict = f"FAILED: {error}"
        print(f"{name:24} {verdict}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
