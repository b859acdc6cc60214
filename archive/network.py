"""Sections of the settings about services of the network that the archive tells, asks, or is asked by: the audit
repository, time servers, a sharing network. Read as the others are (`archive.sections`)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from archive.sections import AETitle, Fingerprint, Port, Section


class Repository(Section):
    """The audit repository of the network (IHE ATNA, ITI-20), off until `host` is set: it is sent each row of the audit
    as a DICOM audit message over syslog, and none is lost while it is away."""

    host: str = Field("", description="where it is")
    port: Port = Field(6514, description="port")
    transport: Literal["tls", "tcp"] = Field(
        "tls", description="`tls` (RFC 5425), or `tcp` in clear text, for a collector on this machine alone"
    )
    fingerprints: tuple[Fingerprint, ...] = Field(
        (),
        description="SHA-256 fingerprints of its certificate (several while it is renewed); without them it has to be "
        "made out to `host`",
    )


class Audit(Section):
    """Who the audit messages say that they come from, and where they are sent."""

    source_id: str = Field("", max_length=64, description="Audit Source ID; default: `dicom.ae_title`")
    repository: Repository = Repository()


class Time(Section):
    """The clock of this machine, compared with time servers (IHE CT, ITI-1). It is the system that sets it."""

    servers: tuple[str, ...] = Field((), description="time servers (NTP), `HOST` or `HOST:PORT`; none: not compared")
    check_seconds: int = Field(3600, ge=16, description="real time between two comparisons; each is in the audit")
    limit_seconds: float = Field(
        1.0, gt=0, le=1, description="a clock that is further off is an alert, and a warning of `/readyz`"
    )


class Omi(Section):
    """The HL7 port of the DRIMbox: off until `host` is set. Beyond this machine it is called over TLS."""

    host: str = Field("", description="where it listens for MLLP")
    port: Port = Field(2575, description="its port")
    tls: bool = Field(True, description="call it over TLS; `false` on this machine alone")
    application: str = Field("", max_length=180, description="what it calls itself, MSH-5")
    facility: str = Field("", max_length=180, description="and where it is, MSH-6")
    seconds: float = Field(10, gt=0, le=60, description="patience for each of its answers")


class Sharing(Section):
    """What a sharing network (DRIM-M, by its DRIMbox) is told of studies: manifests of key objects, and, once a study
    has one, that it changed."""

    retrieve_url: str = Field(
        "",
        pattern=r"^(https?://[^ ?#]+[^ ?#/])?$",
        description="address of DICOMweb as the network calls it, `https://HOST/dicom-web`; default: the request's",
    )
    check_manifest: bool = Field(
        False,
        description="WADO-RS with `KOS-SOPInstanceUID`: only what that manifest lists is given; else it is noted alone",
    )
    imports_from: tuple[AETitle, ...] = Field(
        (),
        description="calling AE titles of a DRIMbox that brings images of others here: their origin is `DRIM`, and no "
        "manifest lists them; where their Patient ID is the INS of a patient here, they are that patient's",
    )
    imports_by: dict[str, AETitle] = Field(
        {},
        description="tokens or accounts by which a DRIMbox brings such images with STOW-RS: name of the token → its AE "
        "title in `imports_from`, which stands in the files",
    )
    rejections_to: str = Field(
        "", description="peer in `dicom.peers` that is sent the rejection notes (IOCM) of studies with a manifest"
    )
    omi: Omi = Omi()

    @model_validator(mode="after")
    def _tokens_are_those_of_a_drimbox(self) -> Self:
        for name, title in self.imports_by.items():
            if title not in self.imports_from:
                raise ValueError(f"imports_by.{name}: {title} is not in imports_from")
        return self

    @property
    def tells(self) -> bool:
        """Whether somebody is told that a study changed."""
        return bool(self.rejections_to or self.omi.host)
