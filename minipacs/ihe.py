"""The IHE integration statement (REQ-IHE-11): profiles, actors and options that this product claims.

A claim names the rows of the requirements that are its check: each has tests that are marked with it, or the claim is
not made (`tests/minipacs/test_ihe.py`), and they pass, or the version is not released (`.ci/run`). What a claim needs
of the settings is asked of the running configuration: what that does not do is not claimed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from typing import Any

from archive.config import Settings
from archive.dicom.equipment import Equipment
from archive.sections import is_loopback
from dicom_scp.stated_services import Part


def _whatever(_settings: Settings) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Claim:
    """One actor of one profile. `checks`: rows of the requirements; `lacks`: what keeps these settings from doing it,
    "" for nothing."""

    profile: str
    actor: str
    options: tuple[str, ...]
    checks: tuple[str, ...]
    lacks: Callable[[Settings], str] = _whatever


def _secured(settings: Settings) -> str:
    """ITI-19 wherever patient data crosses the network, ITI-20 over TLS."""
    if not (settings.tls.on and settings.dicom_mutual_tls) or settings.dicom.insecure:
        return "DICOM over TLS alone, with certificates of callers: tls.cert, tls.key, tls.ca, no dicom.insecure"
    for name, host in (("hl7", settings.hl7.host), ("api", settings.api.host)):
        if not is_loopback(host):
            return f"{name}.host on this machine, behind a proxy that speaks TLS with certificates"
    if not settings.audit.repository.host or settings.audit.repository.transport != "tls":
        return "an audit repository over TLS: audit.repository"
    return _in_time(settings)


def _in_time(settings: Settings) -> str:
    return "" if settings.time.servers else "time servers: time.servers"


_IMAGES = ("Image Manager", "Image Archive")
CLAIMS: tuple[Claim, ...] = (
    *(
        Claim(
            "Scheduled Workflow (SWF.b)",
            actor,
            ("PPS Exception Management", "HL7 v2.5.1"),
            ("REQ-IHE-01", "REQ-DCM-53"),
        )
        for actor in _IMAGES
    ),
    *(Claim("Patient Information Reconciliation (PIR)", actor, (), ("REQ-IHE-02",)) for actor in _IMAGES),
    Claim("Patient Administration Management (PAM)", "Patient Demographics Consumer", ("Merge",), ("REQ-IHE-03",)),
    Claim(
        "Patient Administration Management (PAM)",
        "Patient Encounter Consumer",
        (
            "Inpatient/Outpatient Encounter Management",
            "Advanced Encounter Management",
            "Historic Movement Management",
        ),
        ("REQ-IHE-03",),
    ),
    *(
        Claim("Patient Demographics Query (PDQ)", actor, (), ("REQ-IHE-04",))
        for actor in ("Patient Demographics Supplier", "Patient Demographics Consumer")
    ),
    Claim("Patient Demographics Query for Mobile (PDQm)", "Patient Demographics Supplier", (), ("REQ-IHE-05",)),
    *(Claim("Key Image Note (KIN)", actor, (), ("REQ-IHE-06",)) for actor in _IMAGES),
    *(Claim("Radiation Exposure Monitoring (REM)", actor, (), ("REQ-IHE-07", "REQ-DCM-50")) for actor in _IMAGES),
    *(
        Claim("Imaging Object Change Management (IOCM)", actor, (), ("REQ-IHE-09",))
        for actor in (*_IMAGES, "Change Requester")
    ),
    Claim(
        "Web-based Image Access (WIA)",
        "Imaging Document Source",
        (),
        ("REQ-IHE-10", "REQ-DRIM-20", "REQ-DCM-90", "REQ-DCM-91", "REQ-DCM-92"),
    ),
    Claim("Web-based Image Access (WIA)", "Imaging Document Responder", (), ("REQ-IHE-10", "REQ-DCM-93")),
    Claim(
        "Audit Trail and Node Authentication (ATNA)",
        "Secure Node",
        ("ATX: TLS Syslog", "STX: TLS 1.2 Floor using BCP195"),
        ("REQ-IHE-08", "REQ-SEC-01", "REQ-SEC-02", "REQ-SEC-03", "REQ-SEC-04", "REQ-SEC-10", "REQ-DCM-04"),
        _secured,
    ),
    Claim("Consistent Time (CT)", "Time Client", (), ("REQ-IHE-08",), _in_time),
)


def claimed(settings: Settings) -> list[Claim]:
    """What this configuration does."""
    return [one for one in CLAIMS if not one.lacks(settings)]


def statement(settings: Settings, *, on: date | None) -> dict[str, Any]:
    """All of it as data; `on` is the day of the statement, None for a page that has none."""
    made = Equipment()
    return {
        "statement": "ihe",
        "vendor": made.manufacturer,
        "product": made.model_name,
        "version": version("minipacs"),
        "date": on,
        "test_mode": settings.test_mode,
        "claims": [_shown(one) for one in claimed(settings)],
        "not_claimed": [
            {"profile": one.profile, "actor": one.actor, "lacks": one.lacks(settings)}
            for one in CLAIMS
            if one.lacks(settings)
        ],
    }


def _shown(claim: Claim) -> dict[str, Any]:
    return {key: value for key, value in asdict(claim).items() if key != "lacks"}


def parts(settings: Settings, *, on: date | None) -> Iterator[Part]:
    """The same, for a person."""
    said = statement(settings, on=on)
    yield Part(
        "Product",
        columns=("what", "value"),
        rows=(
            ("vendor", said["vendor"]),
            ("product", said["product"]),
            ("version", said["version"]),
            *((("date", f"{on:%Y-%m-%d}"),) if on else ()),
            ("test mode", "on: not for patients" if settings.test_mode else "off"),
        ),
    )
    yield Part(
        "Profiles, actors, options",
        text=(
            "Implemented by this product in this configuration. The checks are rows of its requirements; "
            "`build/requirements.md` (`make check`) names the tests that perform each.",
        ),
        columns=("profile", "actor", "options", "checks"),
        rows=tuple(
            (one["profile"], one["actor"], ", ".join(one["options"]) or "none", ", ".join(one["checks"]))
            for one in said["claims"]
        ),
    )
    if said["not_claimed"]:
        yield Part(
            "Implemented, and not claimed for this configuration",
            columns=("profile", "actor", "what it lacks"),
            rows=tuple((one["profile"], one["actor"], one["lacks"]) for one in said["not_claimed"]),
        )
