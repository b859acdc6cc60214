"""Writes `docs/settings.md` from the settings themselves: `python -m minipacs.settings_page` (`make docs`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from archive.config import Settings
from archive.sections import section_of

_HEAD = """\
# Settings

Made from `archive/sections.py` and `network.py` by `make docs`; a test checks that it is current.

Read in this order, later ones win: built-in defaults; a TOML file (`--config FILE`, else `MINIPACS_CONFIG`, else
`./minipacs.toml` if it is there); environment variables. A variable is `MINIPACS_` and the key in capitals, with two
underscores for each dot: `MINIPACS_DICOM__PORT=104`. Tables and lists are written as JSON:
`MINIPACS_DICOM__PEERS='{"CT1": {"host": "10.0.0.7", "port": 104}}'`.

An unknown key or a bad value stops the start and names the key (and the nearest known one). `minipacs check-config`
says what is in force, with advice. A change takes effect at the next start. Durability has no off switch.
"""


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([_HEAD, *_section(Settings, ""), ""])


def _section(model: type[BaseModel], prefix: str) -> Iterator[str]:
    fields, inner = [], []
    for name, field in model.model_fields.items():
        section, origin = section_of(field.annotation), get_origin(field.annotation)
        if section is None or origin in (dict, tuple):
            fields.append(_row(prefix + name, field))
        if section is not None:
            inner.append((section, f"{prefix}{name}.{_BELOW.get(origin, '')}"))
    title = _title(prefix) if prefix else "At the top"
    yield f"## {title}\n"
    if prefix and model.__doc__:
        yield f"{model.__doc__.strip()}\n"
    yield "| key | default | values | meaning |\n|---|---|---|---|"
    yield from fields
    yield ""
    for section, inner_prefix in inner:
        yield from _section(section, inner_prefix)


_BELOW: dict[Any, str] = {dict: "NAME.", tuple: "[]."}  # under what its keys stand: many tables with names, or in a row


def _title(prefix: str) -> str:
    name = prefix.rstrip(".")
    return f"`[[{name.removesuffix('.[]')}]]`" if name.endswith(".[]") else f"`[{name}]`"


def _row(key: str, field: FieldInfo) -> str:
    meaning = (field.description or "").replace("|", "\\|")
    return f"| `{key}` | {_default(field.default)} | {_values(field.annotation, field.metadata)} | {meaning} |"


def _default(value: object) -> str:
    if value is PydanticUndefined:
        return "to be given"
    if value is None or value == "":
        return "–"
    if isinstance(value, Path):
        return f"`./{value}`"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)}`"


def _values(annotation: Any, metadata: list[Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, UnionType):
        return _values(next(one for one in arguments if one is not type(None)), metadata)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin is tuple:
        return f"list of: {_values(arguments[0], [])}"
    if origin is dict:
        return "table"
    names = {bool: "`true`, `false`", int: "integer", float: "number", str: "text", Path: "path"}
    return names.get(annotation, "text") + _bounds(metadata)


def _bounds(metadata: list[Any]) -> str:
    said = []
    for one in _flat(metadata):
        for attribute, words in (
            ("ge", "≥ {}"),
            ("gt", "> {}"),
            ("le", "≤ {}"),
            ("max_length", "at most {} characters"),
        ):
            bound = getattr(one, attribute, None)
            if bound is not None:
                said.append(words.format(bound))
    return f" ({', '.join(said)})" if said else ""


def _flat(metadata: list[Any]) -> Iterator[Any]:
    for one in metadata:
        if isinstance(one, FieldInfo):
            yield from one.metadata
        else:
            yield one


if __name__ == "__main__":
    print(page(), end="")
