"""Settings: one frozen, typed object, from a TOML file and then the environment (sheet 60 §3).

Passed to whoever needs it, never imported as a value. An unknown key or a bad value stops start-up and names its
key. Durability has no off switch.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, model_validator

from archive.network import Audit, Sharing, Time
from archive.sections import (
    INS_TEST,
    KEEP_YEARS,
    Api,
    Database,
    Dicom,
    Hl7,
    Identity,
    OneSite,
    Probe,
    Retention,
    Section,
    Site,
    Storage,
    Tls,
    is_loopback,
    section_of,
)

EDGES = ("dicom", "hl7", "api", "retention")  # what a whole archive consists of


class ConfigError(Exception):
    """A setting is unknown or wrong. The message names the key and what to write instead."""


class Settings(Section):
    """Everything that can be set."""

    data_dir: Path = Field(Path("data"), description="SQLite file and tiers, unless set apart")
    test_mode: bool = Field(False, description="the clock can be moved; shown on every page")
    site: Site = Site()
    sites: tuple[OneSite, ...] = Field(
        (), description="`[[sites]]` tables, when there are several; `site` then has no effect"
    )
    database: Database = Database()
    storage: Storage = Storage()
    tls: Tls = Tls()
    dicom: Dicom = Dicom()
    hl7: Hl7 = Hl7()
    identity: Identity = Identity()
    api: Api = Api()
    probe: Probe = Probe()
    retention: Retention = Retention()
    audit: Audit = Audit()
    time: Time = Time()
    sharing: Sharing = Sharing()

    @model_validator(mode="after")
    def _safe(self) -> Settings:
        """REQ-FACE-04: beyond loopback only when somebody said so."""
        for name, section in (("dicom", self.dicom), ("hl7", self.hl7), ("api", self.api)):
            if not is_loopback(section.host) and not section.insecure and not (name == "dicom" and self.tls.on):
                encrypted = "set tls.cert and tls.key, " if name == "dicom" else ""
                raise ValueError(
                    f"{name}.host = {section.host!r} can be reached from the network without TLS: "
                    f"keep 127.0.0.1, {encrypted}or set {name}.insecure = true to accept this"
                )
        if not self.dicom_in_clear and self.dicom.accepts_strangers():
            raise ValueError(
                "dicom.accept_unknown_callers: beyond this machine callers are listed in dicom.peers; "
                "set it to false, or dicom.insecure = true to accept this"
            )
        if not is_loopback(self.dicom.host) and not self.dicom.peers and not self.dicom.accepts_strangers():
            raise ValueError("dicom.peers is empty: nobody could call; add a [dicom.peers.NAME] table per modality")
        return self

    @model_validator(mode="after")
    def _certified(self) -> Settings:
        """What TLS needs; the files themselves are tried by `archive.tls.check`."""
        if (self.tls.cert is None) != (self.tls.key is None):
            raise ValueError("tls.cert and tls.key go together: set both")
        if self.dicom.tls_mutual and not (self.tls.on and self.tls.ca):
            raise ValueError("dicom.tls_mutual: a certificate can be demanded with tls.cert, tls.key and tls.ca alone")
        jwt = self.dicom.jwt
        if len({jwt.keys is None, not jwt.issuer, not jwt.audience}) > 1:
            raise ValueError("dicom.jwt: keys, issuer and audience go together")
        for name, peer in self.dicom.peers.items():
            for key, value in (("tls", peer.tls), ("fingerprints", peer.fingerprints)):
                if value and self.tls.ca is None:
                    raise ValueError(f"dicom.peers.{name}.{key} needs tls.ca: whose certificates are believed")
        return self

    @model_validator(mode="after")
    def _audited(self) -> Settings:
        """The audit leaves encrypted, or not at all (REQ-SEC-03)."""
        repository = self.audit.repository
        if repository.host and repository.transport == "tls" and self.tls.ca is None:
            raise ValueError("audit.repository needs tls.ca: whose certificate is believed")
        if repository.host and repository.transport == "tcp" and not is_loopback(repository.host):
            raise ValueError('audit.repository.transport = "tcp" is for this machine alone: set "tls"')
        return self

    @model_validator(mode="after")
    def _shared(self) -> Settings:
        """What a sharing network is told travels encrypted (REQ-DRIM-11)."""
        address = self.sharing.retrieve_url
        if address.startswith("http:") and not is_loopback(urlsplit(address).hostname or ""):
            raise ValueError("sharing.retrieve_url is called from the network: https://")
        name, omi = self.sharing.rejections_to, self.sharing.omi
        peer = self.dicom.peers.get(name)
        if name and (peer is None or peer.host is None or peer.port is None):
            raise ValueError(f"sharing.rejections_to: {name!r} is no peer with host and port in dicom.peers")
        if omi.host and omi.tls and self.tls.ca is None:
            raise ValueError("sharing.omi needs tls.ca: whose certificate is believed")
        if omi.host and not omi.tls and not is_loopback(omi.host):
            raise ValueError("sharing.omi.tls = false is for this machine alone: set it to true")
        return self

    @model_validator(mode="after")
    def _answerable(self) -> Settings:
        """Who is to be told something can be reached; what nobody could keep is not promised."""
        for name, peer in self.dicom.peers.items():
            reachable = peer.host is not None and peer.port is not None
            if peer.notify and not reachable:
                raise ValueError(f"dicom.peers.{name}: notify = true needs host and port")
            if "commit" in peer.may and peer.commit_association == "new" and not reachable:
                raise ValueError(
                    f"dicom.peers.{name}: storage commitment is reported to host and port: give them, "
                    'or commit_association = "same"'
                )
        if self.dicom.commit_requires_backup:
            raise ValueError(
                "dicom.commit_requires_backup: this version does not know what a backup holds, so that it could never "
                "commit: leave it false"
            )
        return self

    @model_validator(mode="after")
    def _lawful(self) -> Settings:
        """What the law or test_mode limits."""
        if not self.test_mode and INS_TEST & set(self.identity.ins_oids):
            raise ValueError("identity.ins_oids: OIDs for tests are taken only with test_mode = true")
        if not self.test_mode and set(self.hl7.processing_ids) != {"P"}:
            raise ValueError("hl7.processing_ids: T and D are taken only with test_mode = true")
        for site in self.all_sites:
            floor = KEEP_YEARS[site.profile]
            if self.retention.keep_years is not None and self.retention.keep_years < floor:
                raise ValueError(f"retention.keep_years is at least {floor} for a {site.profile} site (annexe 5, 3.1)")
        if len({site.id for site in self.all_sites}) < len(self.all_sites):
            raise ValueError("sites: each needs an id of its own")
        return self

    @model_validator(mode="after")
    def _forwarded(self) -> Settings:
        """Rules that can be followed."""
        rules = self.dicom.forward
        if len({rule.name for rule in rules}) < len(rules):
            raise ValueError("dicom.forward: each rule needs a name of its own")
        for rule in rules:
            peer = self.dicom.peers.get(rule.to)
            if peer is None or peer.host is None or peer.port is None:
                raise ValueError(f"dicom.forward: {rule.name!r} sends to {rule.to!r}, a peer without host and port")
            if unknown := set(rule.when.sites) - {site.id for site in self.all_sites}:
                raise ValueError(f"dicom.forward: {rule.name!r} names a site that does not exist: {min(unknown)}")
        return self

    @property
    def all_sites(self) -> tuple[OneSite, ...]:
        """The sites, or the one site of a small practice, as `main`."""
        one = self.site
        return self.sites or (OneSite(id="main", name=one.name, finess=one.finess, profile=one.profile),)

    @property
    def dicom_in_clear(self) -> bool:
        """Whether `dicom.port` is opened: on this machine, or where somebody said so (REQ-DCM-04, REQ-FACE-04)."""
        return is_loopback(self.dicom.host) or self.dicom.insecure

    @property
    def dicom_mutual_tls(self) -> bool:
        """Whether a caller over TLS has to show a certificate."""
        return self.tls.ca is not None if self.dicom.tls_mutual is None else self.dicom.tls_mutual

    @property
    def database_url(self) -> str:
        return self.database.url or f"sqlite:///{self.data_dir.absolute() / 'minipacs.sqlite3'}"

    @property
    def hot_dir(self) -> Path:
        return (self.storage.hot or self.data_dir / "hot").absolute()

    @property
    def viewer_dir(self) -> Path:
        """The viewer belongs to the installation, so to its Python environment, unless set apart."""
        return (self.api.viewer or Path(sys.prefix) / "share" / "minipacs" / "viewer").absolute()

    @property
    def cold_dir(self) -> Path:
        return (self.storage.cold or self.data_dir / "cold").absolute()


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
    """The keys of the table at a location: of the tables in a list or under names too."""
    model: type[Section] = Settings
    for part in location:
        field = model.model_fields.get(part)
        inner = None if field is None else section_of(field.annotation)
        model = model if inner is None else inner  # a number in a list, or the name of a peer
    return list(model.model_fields)
