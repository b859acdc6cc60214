"""The house stays as it is described: sizes, tables, names, pages, packaging."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from api.problems import STATUS
from archive.config import EDGES, Settings, load
from archive.errors import ArchiveError
from archive.journal import Kind
from archive.rebuild.facts import RESTORE
from dicom_scp.status import OF_ERROR
from hl7_listener.ack import OF_ERROR as OF_ERROR_HL7

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def kinds(error: type[ArchiveError]) -> Iterator[type[ArchiveError]]:
    yield error
    for kind in error.__subclasses__():
        yield from kinds(kind)


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_a_module_fits_in_400_lines(module: Path) -> None:
    assert len(module.read_text(encoding="utf-8").splitlines()) < 400


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_a_module_has_a_name_and_says_what_it_is(module: Path) -> None:
    assert module.stem not in {"utils", "util", "helpers", "helper", "manager", "base", "common", "misc"}
    assert ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))), "no docstring"


def test_a_state_that_is_asked_for_stands_in_the_text_of_the_statement() -> None:
    """As a parameter it might be the state of a partial index, and SQLite would plan anew at each execution."""
    asked = re.compile(r"\.c\.state(?:_before)? == (?:State|CopyState)\.")
    found = [relative(path) for path in MODULES if asked.search(path.read_text(encoding="utf-8"))]
    assert found == [], "say constant(str(…)) (archive.index.conditions)"


NAMED = [path for path in MODULES if not path.stem.startswith("_") and not {"migrations", "commands"} & set(path.parts)]


@pytest.mark.parametrize("module", NAMED, ids=relative)
def test_a_module_is_named_in_the_architecture(module: Path) -> None:
    package, *inner = module.relative_to(ROOT).parts
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    wanted = f"`{'/'.join(inner[:-1])}/`" if inner[1:] else f"`{inner[-1]}`"
    (row,) = [  # of the table of its package: `name.py`, or `folder/` with the names of its modules
        line for line in page.partition(f"| in `{package}/` |")[2].partition("\n\n")[0].splitlines() if wanted in line
    ]
    assert re.search(rf"[`{{]{module.stem}(\.py)?`", row), "docs/architecture.md, Modules"


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_nothing_is_left_for_later(module: Path) -> None:
    content = module.read_text(encoding="utf-8")
    assert re.findall(r"\b(?:TODO|FIXME|XXX|HACK)\b|raise NotImplementedError", content) == []


@pytest.mark.parametrize("error", sorted(kinds(ArchiveError), key=lambda kind: kind.__name__))
def test_every_edge_has_an_answer_to_every_error(error: type[ArchiveError]) -> None:
    if not error.__module__.startswith("archive"):
        pytest.fail(f"{error} is an ArchiveError outside the archive")
    assert error in STATUS, "api/problems.py"
    assert error in OF_ERROR, "dicom_scp/status.py"
    assert error in OF_ERROR_HL7, "hl7_listener/ack.py"


def keys(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_kind_of_fact_is_documented_and_restored() -> None:
    page = (ROOT / "docs" / "storage.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| kind \| subject \|.*?\n\n", page, re.M | re.S)
    assert set(re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.strip().splitlines()))) == set(
        RESTORE
    )
    assert set(RESTORE) == set(Kind)


def test_every_setting_is_documented_with_its_meaning() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for key in keys():
        assert re.search(rf"^\| `{re.escape(key)}` \|.*\| [^|]{{3,}} \|$", page, re.M), key


# What a log line may not carry (REQ-SEC-11): a value under one of these names is patient data, or holds it.
PATIENT = re.compile(r"patient|birth|^sex$|^names?$|identifier|query|^ds$|data_set$|^raw|header|attributes|values?$")


def log_calls(module: Path) -> Iterator[ast.Call]:
    """Calls on `log` and on `self._log`."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            called = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            if called in {"log", "_log"}:
                yield node


@pytest.mark.parametrize("module", [path for path in MODULES if any(log_calls(path))], ids=relative)
def test_log_lines_are_constant_words_and_fields_without_patient_data(module: Path) -> None:
    for call in log_calls(module):
        where = f"line {call.lineno}"
        assert isinstance(call.func, ast.Attribute)
        if call.func.attr == "bind":
            assert not call.args, where
        else:
            assert len(call.args) == 1, where
            assert isinstance(call.args[0], ast.Constant), f"{where}: the message is not a constant"
        for keyword in call.keywords:
            assert keyword.arg is None or not PATIENT.search(keyword.arg), f"{where}: {keyword.arg}"
            for part in ast.walk(keyword.value):
                if isinstance(part, ast.Attribute):
                    assert not re.search(r"patient|birth|identifier|data_set$", part.attr), f"{where}: {part.attr}"


@pytest.mark.parametrize("edge", ["hl7_listener", "retention", "api"])
def test_an_edge_loads_no_library_of_images_before_it_meets_one(edge: str) -> None:
    heavy = {"pydicom", "numpy", "gdcm", "PIL"}
    code = f"import sys, minipacs.edge, {edge}.serve; print(*sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "", "some forty megabytes that it does not need"


def test_nothing_is_printed_by_the_archive_and_its_edges() -> None:
    for module in MODULES:
        if module.relative_to(ROOT).parts[0] == "minipacs":
            continue
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{relative(module)}:{node.lineno}"


def test_every_package_is_built_checked_and_measured() -> None:
    there = sorted(path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests")
    assert sorted(PACKAGES) == there
    assert sorted(PROJECT["tool"]["mypy"]["packages"]) == there
    assert sorted(PROJECT["tool"]["importlinter"]["root_packages"]) == there
    assert sorted(PROJECT["tool"]["coverage"]["run"]["source"]) == there


def test_no_other_distribution_ships_our_package_names() -> None:
    """They are generic (`api`, `archive`): a dependency with the same name would shadow ours, or be shadowed."""
    owners = importlib.metadata.packages_distributions()
    for package in PACKAGES:
        assert set(owners.get(package, ["minipacs"])) == {"minipacs"}


def test_the_project_cannot_be_published_by_accident() -> None:
    assert "Private :: Do Not Upload" in PROJECT["project"]["classifiers"]


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_lock_files_have_hashes_and_name_no_registry(name: str) -> None:
    content = (ROOT / name).read_text(encoding="utf-8")
    assert "://" not in content
    pinned = re.findall(r"^(\S+==[^ ]+).*\\\n    --hash=sha256:", content, re.M)
    assert len(pinned) == len(re.findall(r"^[a-z0-9]", content, re.M))
    named = {re.split(r"[=\[]", pin)[0].replace("_", "-").lower() for pin in pinned}
    for requirement in PROJECT["project"]["dependencies"]:
        assert re.split(r"[>\[=<]", requirement)[0].lower() in named


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "decisions").glob("*.md")), ids=relative)
def test_a_decision_has_context_alternatives_and_consequences(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    assert re.match(r"\d{4}-[a-z0-9-]+\.md", page.name)
    for part in ("**Context.**", "**Decision.**", "**Alternatives.**", "**Consequences.**"):
        assert part in content
    assert len(content.splitlines()) < 80, "one page"


def test_the_sample_settings_are_valid_as_they_are_and_with_every_line_switched_on() -> None:
    sample = ROOT / "deploy" / "minipacs.toml"
    assert load(sample, {}).site.name
    lines = sample.read_text(encoding="utf-8").splitlines()
    on = [re.sub(r"^# (?=\[|\w+ = )", "", line) for line in lines]
    once: dict[tuple[str, str], str] = {}  # a key that is switched on replaces the one above it
    section = ""
    for line in on:
        if line.startswith("["):
            section = line
        if match := re.match(r"(\w+) = (.*)", line):
            once[section, match[1]] = line
    written = "\n".join(
        "\n".join([name, *(line for (owner, _), line in once.items() if owner == name)])
        for name in dict.fromkeys(owner for owner, _ in once)
    )
    settings = Settings.model_validate(tomllib.loads(written))
    assert settings.dicom.insecure
    assert settings.dicom.callers()["VIEWER"].may == ("query", "retrieve")


def test_the_services_of_compose_have_settings_that_are_valid() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    example = dict(
        line.split("=", 1)
        for line in (ROOT / "deploy" / "example.env").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    for name in EDGES:
        service = compose["services"][name]
        assert service["command"][:3] == ["serve", "--only", name]
        environ = {
            key: re.sub(r"\$\{(\w+)[^}]*\}", lambda found: example[found[1]], value)
            for key, value in service["environment"].items()
        }
        settings = load(None, environ)
        assert settings.database_url.startswith("postgresql")
        assert name == "retention" or getattr(settings, name).host == "0.0.0.0"


@pytest.mark.parametrize("unit", ["minipacs.service", "minipacs@.service"])
def test_the_units_run_commands_that_exist(unit: str) -> None:
    content = (ROOT / "deploy" / unit).read_text(encoding="utf-8")
    commands = re.findall(r"^Exec\w+=\S+/minipacs (\S+)(.*)$", content, re.M)
    assert [command for command, _ in commands] == ["check-config", "serve"]
    assert ("--only %i" in content) == ("@" in unit)


def test_the_ways_in_are_executable_and_known_to_make() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert {"run", "install", "test", "check", "lock", "docs"} <= targets
