"""`minipacs work-items settle`: a person closes what waited for one."""

from __future__ import annotations

import json
from pathlib import Path

from tests.builders import ct_slice, new_uid, part10
from tests.server import Server


def test_an_item_is_settled_once_with_a_reason(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    server.folder.mkdir()
    assert server.command("migrate").returncode == 0
    file = tmp_path / "one.dcm"
    file.write_bytes(part10(ct_slice(PatientID=None)))
    assert server.command("import", str(file)).returncode == 0
    [item] = json.loads(server.command("work-items", "list", "--json").stdout)["items"]
    settle = ("work-items", "settle", str(item["id"]), "--reason", "identified by phone")
    assert server.command(*settle).returncode == 2, "--as is missing"
    assert server.command(*settle, "--as", "nothing").returncode == 2
    done = server.command(*settle, "--as", "accepted", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "closed"
    assert server.command(*settle, "--as", "accepted").returncode == 1
    [closed] = json.loads(server.command("work-items", "list", "--state", "closed", "--json").stdout)["items"]
    assert closed["resolution"] == "accepted: identified by phone"
    assert closed["closed_by"]
    for number, patient in enumerate(("IPP2", "IPP3")):
        ds = ct_slice(PatientID=patient, number=number, StudyInstanceUID=new_uid("2"), SeriesInstanceUID=new_uid("2.1"))
        file.write_bytes(part10(ds))
        assert server.command("import", str(file)).returncode == 0
    listed = json.loads(server.command("work-items", "list", "--json").stdout)["items"]
    [held] = [item["id"] for item in listed if item["kind"] == "identity_conflict"]
    settle = ("work-items", "settle", str(held), "--reason", "another patient")
    assert server.command(*settle, "--as", "done").returncode == 1
    assert server.command(*settle, "--as", "reject").returncode == 0
