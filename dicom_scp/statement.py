"""The DICOM conformance statement (PS3.2), made from the tables that the port itself negotiates and answers from.

Parts as data: `minipacs statement dicom` prints them for the running configuration, `docs/conformance.md` for the
defaults (`make docs`). Nothing here is known elsewhere only by heart: a service that is added to `classes.py`, a key in
`archive/dicom/attributes.py`, an error in `status.py` is in the statement without being written down again.
"""

from __future__ import annotations

from collections.abc import Iterator

from archive.config import Settings
from archive.dicom import charset, lossless
from archive.dicom.file_meta import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from archive.dicom.syntaxes import EXPLICIT_BE
from archive.dicom.transcode import alternatives
from archive.sections import Dicom
from dicom_scp import remote
from dicom_scp.availability import INSTANCE_AVAILABILITY
from dicom_scp.classes import (
    MODALITY_PERFORMED_PROCEDURE_STEP,
    PLAIN,
    QUERY_RETRIEVE,
    STORAGE_CLASSES,
    STORAGE_SYNTAXES,
    VERIFICATION,
    WORKFLOW,
    Service,
)
from dicom_scp.negotiate import BUSY, CONGESTED, LEAST_MAX_PDU, OPTIONS, REFUSALS
from dicom_scp.stated_services import Part, name_of, queries, retrieves, storage, yes
from dicom_scp.stated_workflow import workflow


def statement(settings: Settings) -> list[Part]:
    """All of it, for these settings."""
    return [
        *_entities(settings),
        *_negotiation(),
        *_classes(settings.dicom),
        *storage(settings.dicom),
        *queries(settings.dicom),
        *retrieves(settings.dicom),
        *workflow(settings.dicom),
        *_text(settings.dicom),
        *_security(settings),
    ]


def _entities(settings: Settings) -> Iterator[Part]:
    dicom = settings.dicom
    yield Part(
        "Implementation",
        columns=("what", "value"),
        rows=(
            ("Implementation Class UID", IMPLEMENTATION_CLASS_UID),
            ("Implementation Version Name", IMPLEMENTATION_VERSION),
            ("AE titles", ", ".join(sorted(dicom.titles()))),
            ("listens on", f"{dicom.host}, port {dicom.port}"),
            ("processes that share the port", str(dicom.workers)),
            ("parallel associations", f"{dicom.max_associations} in each process, further ones are rejected"),
            ("largest PDU received", f"{dicom.max_pdu} bytes"),
            ("ARTIM", f"{dicom.artim_seconds:g} s, for the whole association request and for the peer to close"),
            ("idle", f"{dicom.idle_seconds:g} s without a message, then A-ABORT"),
            ("DIMSE", f"{dicom.dimse_seconds:g} s for the rest of a message, for an answer, and for the peer to read"),
            ("test mode", "on: not for patients" if settings.test_mode else "off"),
        ),
    )


_EXTENDED = (  # PS3.4 C.5.1.1, byte by byte
    "relational queries",
    "combined date-time matching",
    "fuzzy semantic matching of person names",
    "timezone query adjustment",
    "enhanced multi-frame image conversion",
    "empty value matching",
    "multiple value matching",
)


def _negotiation() -> Iterator[Part]:
    yield Part(
        "Association",
        text=(
            "As acceptor of associations for every service; as requestor for the sub-operations of C-MOVE, for C-ECHO, "
            "for sending to peers, for asking another archive, and for what peers are told. The acceptor never starts "
            "a release. Asynchronous Operations Window: (1,1), answered when it is offered. SCP/SCU Role Selection: "
            "the SCP role is accepted for storage classes (C-GET). SOP Class Common Extended Negotiation: a class that "
            "it calls storage is stored.",
            f"A maximum PDU of 0 is served with 128 KiB; one below {LEAST_MAX_PDU} bytes is rejected.",
        ),
    )
    refusals = (*REFUSALS, BUSY, CONGESTED)
    yield Part(
        "Rejections",
        3,
        columns=("result", "source", "reason", "when"),
        rows=tuple((str(one.result), str(one.source), str(one.reason), one.detail) for one in refusals),
    )
    services = (Service.FIND, Service.MOVE, Service.GET)
    yield Part(
        "Extended negotiation",
        3,
        text=("As many bytes are answered as were offered; those that are not supported are 0.",),
        columns=("byte", "C-FIND", *("C-MOVE" if one is Service.MOVE else "C-GET" for one in services[1:])),
        rows=tuple(
            (
                f"{place + 1}",
                f"{meaning}: {yes(place in OPTIONS[Service.FIND])}",
                *(("relational retrieve: " if place == 0 else "") + yes(place in OPTIONS[one]) for one in services[1:]),
            )
            for place, meaning in enumerate(_EXTENDED)
        ),
    )
    yield Part(
        "User identity",
        3,
        columns=("type", "what is done"),
        rows=(
            ("1 user name", "taken as the user of audit rows, not checked; confirmed when that was asked"),
            ("2 user name and passcode", "checked with the accounts; rejected when wrong, confirmed when right"),
            (
                "5 JSON Web Token",
                "with `dicom.jwt`: signature, issuer, audience and expiry are checked, and it names the user of audit "
                "rows; rejected when wrong. Without: neither used nor confirmed",
            ),
            ("3 Kerberos, 4 SAML", "neither used nor confirmed"),
        ),
    )


_ASKED = frozenset(  # of other archives, and of a RIS
    {VERIFICATION, MODALITY_PERFORMED_PROCEDURE_STEP, remote.FIND, remote.MOVE, remote.GET}
)


def _classes(dicom: Dicom) -> Iterator[Part]:
    services = {VERIFICATION: Service.VERIFICATION, **QUERY_RETRIEVE, **WORKFLOW}
    yield Part(
        "SOP classes",
        text=(
            "Storage classes: SCP by C-STORE; SCU by the sub-operations of C-MOVE and C-GET, and where images are sent "
            "to a peer. "
            + (
                "Any class that the standard gives no other meaning is stored too (`dicom.unknown_sop_classes`)."
                if dicom.unknown_sop_classes
                else "A class that is not in the list is stored when common extended negotiation says what it is."
            ),
        ),
        columns=("service", "SOP class", "UID", "SCU", "SCP"),
        rows=(
            *((service.value, name_of(uid), uid, yes(uid in _ASKED), "yes") for uid, service in services.items()),
            ("availability", name_of(INSTANCE_AVAILABILITY), INSTANCE_AVAILABILITY, "yes", "no"),
        ),
    )
    named = sorted((name_of(uid), uid) for uid in STORAGE_CLASSES)
    yield Part("Storage", 3, columns=("SOP class", "UID"), rows=tuple(named))
    yield Part(
        "Transfer syntaxes",
        text=(
            "Stored as received, never transcoded at reception. Verification, queries and retrieves: "
            + " and ".join(name_of(syntax) for syntax in PLAIN)
            + ". Of those proposed in a storage context the first known one is accepted, but explicit before implicit "
            "little endian. A peer that does not take what is stored gets another syntax that loses nothing, in this "
            "order; each compressed frame is decoded again and compared before it leaves. Lossy compression is never "
            "made under the same SOP Instance UID: where a peer takes nothing else, the sub-operation fails.",
        ),
        columns=("transfer syntax", "UID", "stored", "given as stored", "else given as"),
        rows=tuple(
            (name_of(uid), uid, "yes", "no, retired" if uid == EXPLICIT_BE else "yes", _others(uid))
            for uid in sorted(STORAGE_SYNTAXES, key=_numbers)
        ),
    )


def _others(uid: str) -> str:
    short = {**{syntax: syntax.removeprefix("1.2.840.10008.") for syntax in (*PLAIN, *lossless.SYNTAXES)}}
    return ", ".join(short[syntax] for syntax in alternatives(uid)) or "–"


def _numbers(uid: str) -> tuple[int, ...]:
    return tuple(int(part) for part in uid.split("."))


def _text(dicom: Dicom) -> Iterator[Part]:
    terms = sorted(term for term in charset.TABLE if term)
    yield Part(
        "Character sets",
        text=(
            "Read: "
            + ", ".join(terms)
            + ". Kept in Unicode in the index; text beyond ASCII without Specific Character "
            f"Set is read as {dicom.default_charset}, and what a set does not define too.",
            "Answers of C-FIND are in the requester's character set where every letter exists in it, else in "
            "ISO_IR 192; no letter is ever replaced. ISO_IR 203 is read and never written.",
        ),
    )
    yield Part(
        "Time zone",
        text=(
            "Timezone Offset From UTC (0008,0201) is kept and given back. Dates and times are matched as they were "
            "received; where timezone query adjustment was negotiated and the request names its zone, in that zone, "
            "in which they are given back too (study, series, performed procedure step, content; without an offset "
            "they are those of Europe/Paris).",
            "Europe/Paris is used to compute dates of retention and registers, never written into objects.",
        ),
    )


def _security(settings: Settings) -> Iterator[Part]:
    dicom = settings.dicom
    peers = ", ".join(f"{title} ({', '.join(peer.may)})" for title, peer in sorted(dicom.callers().items()))
    yield Part(
        "Security",
        columns=("what", "how"),
        rows=(
            (
                "TLS",
                "profile BCP 195 RFC 8996, 9325 (PS3.15 B.12): 1.3 preferred, 1.2; "
                + (f"on port {dicom.tls_port}" if settings.tls.on else "not configured")
                + ("; a certificate is demanded of callers" if settings.dicom_mutual_tls else ""),
            ),
            ("callers", "any AE title" if dicom.accepts_strangers() else "those of `dicom.peers` alone"),
            ("peers", peers or "none configured"),
            ("rights", "of the peer (`may`), and of the account where a passcode was given; refused 0124"),
            ("audit", "queries, transfers, refusals and associations of unknown callers, before the answer"),
        ),
    )
