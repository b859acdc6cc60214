"""A pytest plugin: writes which tests perform which requirement's Check to `build/requirements.md`.

pytest --collect-only -p tests.requirement_matrix
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

_ID = re.compile(r"REQ-(FACE|CDC|DCM|HL7|IHE|SEC|DRIM)-P?\d+[a-z]?")  # P: the rules of sheet 20 §4.2


def pytest_collection_finish(session: pytest.Session) -> None:
    tests: defaultdict[str, set[str]] = defaultdict(set)
    for item in session.items:
        for mark in item.iter_markers("req"):
            for requirement in mark.args:
                if not _ID.fullmatch(requirement):
                    raise pytest.UsageError(f"{item.nodeid}: {requirement!r} is not a requirement id")
                tests[requirement].add(item.nodeid.partition("[")[0])
    target = Path(session.config.rootpath, "build", "requirements.md")
    target.parent.mkdir(exist_ok=True)
    lines = ["# Requirements and the tests that perform their checks", "", "| requirement | tests |", "|---|---|"]
    lines += [f"| {name} | {'<br>'.join(f'`{test}`' for test in sorted(tests[name]))} |" for name in sorted(tests)]
    target.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print(f"{len(tests)} requirements in {target.relative_to(session.config.rootpath)}")
