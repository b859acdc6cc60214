"""Settings: one frozen, typed object, from a TOML file and then the environment (sheet 60 §3).

Passed to whoever needs it, never imported as a value. An unknown key or a bad value stops start-up and names its
key. Durability has no off switch.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

EDGES = ("dicom", "api")  # what a whole archive consists of today


class ConfigError(Exception):
    """A setting is unknown or wrong. The message names the key and what to write instead."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


AETitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[\x20-\x7e]*[\x21-\x7e][\x20-\x7e]*$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Service = Literal["store", "query", "retrieve"]
Charset = Literal[  # single-byte terms and UTF-8 of PS3.3 C.12.1.1.2: what a whole site may assume
    "ISO_IR 100", "ISO_IR 101", "ISO_IR 109", "ISO_IR 110", "ISO_IR 126", "ISO_IR 127", "ISO_IR 138",
    "ISO_IR 144", "ISO_IR 148", "ISO_IR 166", "ISO_IR 192", "ISO_IR 203",
]  # fmt: skip


class Site(_Section):
    """The practice."""

    name: str = Field("", description="name of the practice, shown on the pages")
    finess: str = Field("", pattern=r"^([0-9A-B]{9})?$", description="FINESS number of the site, nine characters")
    profile: Literal["liberal", "hospital"] = Field("liberal", description="`liberal` or `hospital`")


class Database(_Section):
    """Where the index is."""

    url: str = Field(
        "",
        pattern=r"^(|sqlite:///.+|postgresql\+psycopg://.*)$",
        description="empty: SQLite in `data_dir`; else `postgresql+psycopg://…` or `sqlite:///PATH`",
    )


class Storage(_Section):
    """Where the images are."""

    hot: Path | None = Field(None, description="folder of the hot tier; default `hot` in `data_dir`")
    reserve_bytes: int = Field(
        2 << 30, ge=0, description="below this free space C-STORE answers A700 and STOW-RS 507; nothing is damaged"
    )


class Peer(_Section):
    """A DICOM application entity that the archive knows."""

    ae_title: AETitle | None = Field(None, description="AE title; default: the name of the table")
    host: str | None = Field(None, description="address; with `port`, the peer is a move destination")
    port: Port | None = Field(None, description="port")
    may: tuple[Service, ...] = Field(
        ("store", "query", "retrieve"), description="what the peer may ask for: `store`, `query`, `retrieve`"
    )


class Dicom(_Section):
    """The DICOM port."""

    ae_title: AETitle = Field("MINIPACS", description="AE title of the archive")
    ae_titles: tuple[AETitle, ...] = Field((), description="further AE titles answered on the same port")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: Port = Field(11112, description="port to listen on; 0 lets the system choose")
    insecure: bool = Field(False, description="needed to listen beyond loopback without TLS; logged at each start")
    accept_unknown_callers: bool | None = Field(
        None, description="accept calling AE titles that are not in `peers`; default: only on loopback"
    )
    peers: dict[str, Peer] = Field({}, description="`[dicom.peers.CT1]` tables: who may call, and where to send")
    workers: int = Field(1, ge=1, le=64, description="processes that share the port")
    max_pdu: int = Field(131072, ge=4096, le=1 << 24, description="largest PDU received, bytes")
    max_associations: int = Field(200, ge=1, description="associations at one time in a worker; more are rejected")
    find_limit: int = Field(10000, ge=1, description="matches after which a C-FIND ends with A700")
    artim_seconds: float = Field(30, gt=0, description="patience for an association request, and for a peer to close")
    idle_seconds: float = Field(600, gt=0, description="an association without any message is aborted after this")
    dimse_seconds: float = Field(60, gt=0, description="patience for the rest of a message, or for an answer")
    strict_hierarchy: bool = Field(
        False, description="demand each unique key above the level of a C-FIND, Series Instance UID too"
    )
    unknown_sop_classes: bool = Field(
        False, description="accept any unknown abstract syntax as a storage class, without being told that it is one"
    )
    uid_conflict: Literal["reject"] = Field(
        "reject", description="other content under a known SOP Instance UID: `reject` quarantines it and answers C0D1"
    )
    default_issuer: str = Field("", description="issuer of Patient ID assumed when (0010,0021) is absent")
    default_charset: Charset = Field(
        "ISO_IR 100", description="assumed when (0008,0005) is absent and bytes are not ASCII"
    )

    def titles(self) -> frozenset[str]:
        return frozenset({self.ae_title, *self.ae_titles})

    def callers(self) -> dict[str, Peer]:
        """Peers by their AE title."""
        return {peer.ae_title or name: peer for name, peer in self.peers.items()}

    def accepts_strangers(self) -> bool:
        return is_loopback(self.host) if self.accept_unknown_callers is None else self.accept_unknown_callers


class Api(_Section):
    """The HTTP port: desk, API, DICOMweb."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Port = Field(8080, description="port to listen on; 0 lets the system choose")
    insecure: bool = Field(False, description="needed to listen beyond loopback; TLS belongs to a reverse proxy today")
    workers: int = Field(1, ge=1, le=64, description="processes that share the port")
    session_idle_seconds: int = Field(900, ge=60, description="a session of the desk ends after this silence")


class Settings(_Section):
    """Everything that can be set."""

    data_dir: Path = Field(Path("data"), description="SQLite file and tiers, unless set apart")
    test_mode: bool = Field(False, description="the clock can be moved; shown on every page")
    site: Site = Site()
    database: Database = Database()
    storage: Storage = Storage()
    dicom: Dicom = Dicom()
    api: Api = Api()

    @model_validator(mode="after")
    def _safe(self) -> Settings:
        """REQ-FACE-04: beyond loopback only when somebody said so."""
        for name, section in (("dicom", self.dicom), ("api", self.api)):
            if not is_loopback(section.host) and not section.insecure:
                raise ValueError(
                    f"{name}.host = {section.host!r} can be reached from the network without TLS: "
                    f"keep 127.0.0.1, or set {name}.insecure = true to accept this"
                )
        if not is_loopback(self.dicom.host) and not self.dicom.peers and not self.dicom.accepts_strangers():
            raise ValueError("dicom.peers is empty: nobody could call; add a [dicom.peers.NAME] table per modality")
        return self

    @property
    def database_url(self) -> str:
        return self.database.url or f"sqlite:///{self.data_dir.absolute() / 'minipacs.sqlite3'}"

    @property
    def hot_dir(self) -> Path:
        return (self.storage.hot or self.data_dir / "hot").absolute()


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings: `path`, else MINIPACS_CONFIG, else ./minipacs.toml if there, else defaults; then variables.

    Raises:
        ConfigError: the file cannot be read, or a key is unknown or has a bad value.
    """
    environ = os.environ if environ is None else environ
    if path is None and environ.get("MINIPACS_CONFIG"):
        path = Path(environ["MINIPACS_CONFIG"])
    if path is None and Path("minipacs.toml").exists():
        path = Path("minipacs.toml")
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
    _overlay(values, environ)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem) for problem in error.errors())) from error


# Not settings: where they are, and what the tests read.
_RESERVED = {
    "MINIPACS_CONFIG",
    "MINIPACS_TEST_DATA",
    "MINIPACS_TEST_STRICT",
    "MINIPACS_CRASH_ROUNDS",
    "MINIPACS_CRASH_SEED",
}


def _overlay(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    for name, text in sorted(environ.items()):
        if not name.startswith("MINIPACS_") or name in _RESERVED:
            continue
        keys = name.removeprefix("MINIPACS_").lower().split("__")
        target = values
        for key in keys[:-1]:
            inner = target.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{name}: {key} is not a table")
            target = inner
        target[keys[-1]] = _value(text)


def _value(text: str) -> Any:
    """Tables and lists as JSON; the rest is text, which the field's type reads."""
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location) or "settings"
    if problem["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(location[-1], _names(location[:-1]), n=1, cutoff=0.4)
        hint = f"; did you mean {'.'.join([*location[:-1], nearest[0]])}?" if nearest else ""
        return f"unknown key {key}{hint}"
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}"


def _names(location: list[str]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            return list(Peer.model_fields) if model is Dicom or location[:2] == ["dicom", "peers"] else []
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return list(Peer.model_fields)
        model = field.annotation
    return list(model.model_fields)
