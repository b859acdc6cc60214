"""The sections of the settings: each key, its default, its bounds and what it means (sheet 60 §3).

`archive.config` reads them from a file and the environment; `docs/settings.md` is generated from here.
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, IPvAnyNetwork


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


AETitle = Annotated[str, Field(min_length=1, max_length=16, pattern=r"^[\x20-\x7e]*[\x21-\x7e][\x20-\x7e]*$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Origin = Annotated[str, Field(pattern=r"^https?://[a-z0-9.\[\]:-]+$", max_length=255)]
Service = Literal["store", "query", "retrieve", "commit", "worklist", "mpps", "quality"]
Fingerprint = Annotated[
    str,
    Field(pattern=r"^([0-9A-Fa-f]{2}:?){31}[0-9A-Fa-f]{2}$"),
    AfterValidator(lambda text: text.replace(":", "").lower()),
]
Charset = Literal[  # single-byte terms and UTF-8 of PS3.3 C.12.1.1.2: what a whole site may assume
    "ISO_IR 100", "ISO_IR 101", "ISO_IR 109", "ISO_IR 110", "ISO_IR 126", "ISO_IR 127", "ISO_IR 138",
    "ISO_IR 144", "ISO_IR 148", "ISO_IR 166", "ISO_IR 192", "ISO_IR 203",
]  # fmt: skip


class Site(Section):
    """The practice."""

    name: str = Field("", description="name of the practice, shown on the pages")
    finess: str = Field("", pattern=r"^([0-9A-B]{9})?$", description="FINESS number of the site, nine characters")
    profile: Literal["liberal", "hospital"] = Field("liberal", description="`liberal` or `hospital`")


class OneSite(Section):
    """One of several sites. An exam belongs to the site whose `aets` hold the calling AE title of its first instance,
    else whose `stations` hold its Station Name, else whose `name` is its Institution Name, else to the first."""

    id: str = Field(min_length=1, max_length=32, description="short name, kept with each study")
    name: str = Field("", description="name of the site; compared with Institution Name (0008,0080)")
    finess: str = Field("", pattern=r"^([0-9A-B]{9})?$", description="FINESS number of the site, nine characters")
    profile: Literal["liberal", "hospital"] = Field("liberal", description="`liberal` or `hospital`")
    aets: tuple[AETitle, ...] = Field((), description="calling AE titles of its modalities")
    stations: tuple[str, ...] = Field((), description="Station Names (0008,1010) of its modalities")
    linked: Literal["local", "secured"] = Field("local", description="`local`, or `secured` by a link to this archive")


class Database(Section):
    """Where the index is."""

    url: str = Field(
        "",
        pattern=r"^(|sqlite:///.+|postgresql\+psycopg://.*)$",
        description="empty: SQLite in `data_dir`; else `postgresql+psycopg://…` or `sqlite:///PATH`",
    )


class Storage(Section):
    """Where the images are."""

    hot: Path | None = Field(None, description="folder of the hot tier; default `hot` in `data_dir`")
    cold: Path | None = Field(None, description="folder of the cold tier; default `cold` in `data_dir`")
    reserve_bytes: int = Field(
        2 << 30,
        ge=0,
        description="below this free space C-STORE answers A700, STOW-RS 507, HL7 AR; nothing is damaged",
    )


class Tls(Section):
    """Who the archive is, and whom it believes, where it speaks TLS: the DICOM port, and peers that it calls."""

    cert: Path | None = Field(
        None, description="our certificate, then those between it and its authority: a PEM file; switches TLS on"
    )
    key: Path | None = Field(None, description="its private key, without passphrase: a PEM file")
    ca: Path | None = Field(
        None,
        description="authorities whose certificates are believed, or certificates of peers themselves: a PEM file",
    )

    @property
    def on(self) -> bool:
        """Whether we can be called over TLS."""
        return self.cert is not None


class Peer(Section):
    """A DICOM application entity that the archive knows."""

    ae_title: AETitle | None = Field(None, description="AE title; default: the name of the table")
    host: str | None = Field(None, description="where it is called; with `port`, the peer is a move destination")
    port: Port | None = Field(None, description="port")
    tls: bool = Field(
        False,
        description="call it over TLS; its certificate is made out to `host`, or is one of `fingerprints`",
    )
    address: IPvAnyNetwork | None = Field(
        None, description="where it calls from, `10.0.0.7` or `10.0.0.0/24`; from elsewhere it is rejected"
    )
    fingerprints: tuple[Fingerprint, ...] = Field(
        (),
        description="SHA-256 fingerprints of its certificate (several while it is renewed): calling without one of "
        "them it is rejected, called it is left",
    )
    may: tuple[Service, ...] = Field(
        ("store", "query", "retrieve", "worklist", "mpps"),
        description="what the peer may ask for: `store`, `query`, `retrieve`, `commit`, `worklist`, `mpps`; `quality`: "
        "sees what was rejected for quality reasons too",
    )
    modalities: tuple[str, ...] = Field(
        (), description="a modality: what it performs (`CT`, `DX`…); worklist items that name no station are its own"
    )
    commit_association: Literal["new", "same"] = Field(
        "new",
        description="storage commitment is reported on an association of ours, or first on that of the request: `same`",
    )
    notify: bool = Field(False, description="the peer is told which images are available (Instance Availability)")
    forward_mpps: bool = Field(False, description="a RIS: it is told what modalities say that they performed (MPPS)")


class Jwt(Section):
    """JSON Web Tokens as User Identity (PS3.7 D.3.3.7, type 5): off until `keys` is set."""

    keys: Path | None = Field(None, description="public keys of the issuer: a JSON Web Key Set, a file")
    issuer: str = Field("", description="who has to have issued a token (`iss`)")
    audience: str = Field("", description="for whom: what the issuer calls this archive (`aud`)")
    user: str = Field("sub", min_length=1, description="the claim that names the user, for the audit")


class ForwardWhen(Section):
    """Which images a rule is about: those that meet all that is given; any of the values of a list is enough."""

    modalities: tuple[str, ...] = Field((), description="Modality (0008,0060)")
    calling_aets: tuple[AETitle, ...] = Field((), description="AE titles of those who sent them")
    stations: tuple[str, ...] = Field((), description="Station Name (0008,1010)")
    sop_classes: tuple[str, ...] = Field((), description="SOP Class UID (0008,0016)")
    sites: tuple[str, ...] = Field((), description="`id` of a site")
    study_description: str = Field(
        "", max_length=64, description="pattern of Study Description (0008,1030): `*` any text, `?` one character"
    )


class Forward(Section):
    """A rule by which images that arrive are sent on: once their study has been quiet, each of them once."""

    name: str = Field(min_length=1, max_length=64, description="name of the rule; under another name it starts anew")
    to: str = Field(description="the peer, as its table in `dicom.peers` is named")
    enabled: bool = Field(True, description="a rule that is not enabled takes note of nothing that arrives")
    quiet_seconds: float = Field(60, ge=0, description="sent when nothing more of the study has come for this long")
    when: ForwardWhen = ForwardWhen()


class Dicom(Section):
    """The DICOM port."""

    ae_title: AETitle = Field("MINIPACS", description="AE title of the archive")
    ae_titles: tuple[AETitle, ...] = Field((), description="further AE titles answered on the same port")
    host: str = Field("127.0.0.1", description="address to listen on, with and without TLS")
    port: Port = Field(
        11112,
        description="port without TLS; 0 lets the system choose. Beyond loopback closed, unless `insecure`",
    )
    tls_port: Port = Field(2762, description="port with TLS, open once `tls.cert` is set; 0 lets the system choose")
    tls_mutual: bool | None = Field(
        None, description="demand of callers over TLS a certificate that leads to `tls.ca`; default: when that is set"
    )
    insecure: bool = Field(
        False, description="needed for clear text beyond loopback, alone or beside TLS; logged at each start"
    )
    accept_unknown_callers: bool | None = Field(
        None, description="accept calling AE titles that are not in `peers`; default: only on loopback"
    )
    peers: dict[str, Peer] = Field({}, description="`[dicom.peers.CT1]` tables: who may call, and where to send")
    jwt: Jwt = Jwt()
    forward: tuple[Forward, ...] = Field((), description="`[[dicom.forward]]` tables: what is sent on, and to whom")
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
    uid_conflict: Literal["reject", "replace"] = Field(
        "reject",
        description="other content under a known SOP Instance UID: `reject` quarantines it and answers C0D1; `replace` "
        "has it stand, where a person could (docs/identity.md), and keeps the former aside",
    )
    commit_requires_backup: bool = Field(
        False, description="storage commitment only for images of which a backup is held; refused: there is none yet"
    )
    notify_quiet_seconds: float = Field(
        60,
        gt=0,
        description="peers with `notify` are told of a study so long, or half more, after its last image",
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

    def listeners(self) -> list[str]:
        """AE titles of the peers that are told what is available."""
        return sorted(ae_title for ae_title, peer in self.callers().items() if peer.notify)

    def stations(self) -> dict[str, frozenset[str]]:
        """AE titles of peers, and the modalities that they perform."""
        return {title: frozenset(peer.modalities) for title, peer in self.callers().items()}

    def accepts_strangers(self) -> bool:
        return is_loopback(self.host) if self.accept_unknown_callers is None else self.accept_unknown_callers


Hl7Charset = Literal["UNICODE UTF-8", "8859/1", "8859/15", "ASCII"]  # HL7 table 0211, those of REQ-HL7-12


class Authority(Section):
    """An authority that assigns identifiers (CX-4, HL7 2.5 2.A.14.4): the RIS of the practice, a hospital."""

    namespace: str = Field(min_length=1, max_length=64, description="CX-4.1, and Issuer of Patient ID (0010,0021)")
    oid: str = Field("", pattern=r"^([0-9]+(\.[0-9]+)*)?$", max_length=64, description="CX-4.2 as an OID")
    finess: str = Field("", pattern=r"^([0-9A-B]{9})?$", description="FINESS number of its site")
    trusted: bool = Field(False, description="its identifiers are the patient's (IPP), before those of others")
    aliases: tuple[str, ...] = Field((), description="other spellings of the namespace or the OID")
    default_for: tuple[str, ...] = Field(
        (), description="senders, as `MSH-3|MSH-4`, whose identifiers without CX-4 are its"
    )


class Supplier(Section):
    """Whom this archive asks who somebody is (PDQ, ITI-21): the RIS or the hospital. Off until `host` is set."""

    host: str = Field("", description="where it listens for MLLP")
    port: Port = Field(2575, description="its port")
    application: str = Field("", max_length=180, description="what it calls itself, MSH-5")
    facility: str = Field("", max_length=180, description="and where it is, MSH-6")
    domains: tuple[str, ...] = Field((), description="whose identifiers are asked for: namespaces or OIDs; empty: all")
    seconds: float = Field(10, gt=0, le=60, description="patience for each of its answers")


class Hl7(Section):
    """The HL7 port (MLLP)."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Port = Field(2575, description="port to listen on; 0 lets the system choose")
    insecure: bool = Field(False, description="needed to listen beyond loopback without TLS; logged at each start")
    max_message_bytes: int = Field(128 << 20, ge=1 << 16, description="a longer message is answered AR 207")
    default_charset: Hl7Charset = Field("8859/15", description="assumed when MSH-18 is empty")
    processing_ids: tuple[Literal["P", "T", "D"], ...] = Field(
        ("P",), description="MSH-11 that are taken; `T` and `D` only in `test_mode`"
    )
    accession_fallback: bool = Field(
        False,
        description="an order without accession number takes its filler's number (ORC-3, OBR-3) instead of AE 101",
    )
    queries: tuple[str, ...] | None = Field(
        None,
        description="senders (MSH-3 and MSH-4, with a bar between) that may query patients (PDQ); default: whoever "
        "reaches the port",
    )
    ack_mode: Literal["original"] = Field("original", description="acknowledgement mode: `original` (HL7 2.5 2.9.2)")
    supplier: Supplier = Supplier()
    authorities: tuple[Authority, ...] = Field((), description="`[[hl7.authorities]]` tables, the practice's own first")


InsOid = Literal[  # NIR, NIA; NIR test, NIR demo
    "1.2.250.1.213.1.4.8", "1.2.250.1.213.1.4.9", "1.2.250.1.213.1.4.10", "1.2.250.1.213.1.4.11"
]  # fmt: skip
INS_TEST = frozenset({"1.2.250.1.213.1.4.10", "1.2.250.1.213.1.4.11"})


class Identity(Section):
    """National identity (INS)."""

    ins_oids: tuple[InsOid, ...] = Field(
        ("1.2.250.1.213.1.4.8", "1.2.250.1.213.1.4.9"),
        description="OIDs of INS that are accepted; those for tests (`.10`, `.11`) only in `test_mode`",
    )


class Quality(Section):
    """The lossy gate of a modality (REQ-DCM-86): what is asked of the codec, and the floor that every frame reaches."""

    codec: Literal["jpeg2000"] = Field("jpeg2000", description="`jpeg2000`: JPEG 2000 irreversible (…4.91)")
    ratio: float = Field(gt=1, le=50, description="uncompressed bytes by compressed bytes that are asked for")
    min_psnr_db: float = Field(ge=30, description="lowest peak signal-to-noise ratio of a frame, decibels")
    min_ssim: float = Field(ge=0, le=1, description="lowest structural similarity of a frame")
    max_error: int = Field(ge=0, description="largest difference of a pixel, in stored units")


QUALITY: dict[str, Quality] = {
    "CT": Quality(ratio=8, min_psnr_db=55, min_ssim=0.99, max_error=64),
    "MR": Quality(ratio=7, min_psnr_db=50, min_ssim=0.97, max_error=128),
    "CR": Quality(ratio=10, min_psnr_db=45, min_ssim=0.95, max_error=256),
    "DX": Quality(ratio=10, min_psnr_db=45, min_ssim=0.95, max_error=256),
    "XA": Quality(ratio=6, min_psnr_db=48, min_ssim=0.96, max_error=128),
    "RF": Quality(ratio=6, min_psnr_db=48, min_ssim=0.96, max_error=128),
}


class Retention(Section):
    """Age: cold storage after three years, purge at the end of the legal time (sheet 00 §8)."""

    immediate_years: int = Field(3, ge=3, description="years from the exam during which images stay hot and lossless")
    keep_years: int | None = Field(
        None, ge=5, description="years from the exam that studies are kept; default and least: 5 liberal, 20 hospital"
    )
    cold: Literal["lossy", "lossless"] = Field("lossy", description="what cold storage holds: `lossy` or `lossless`")
    quality: dict[str, Quality] = Field(
        {}, description="`[retention.quality.CT]` tables: the lossy gate by modality; others stay lossless"
    )
    originals_grace_days: int = Field(
        30, ge=30, description="originals are kept this long beside verified lossy copies"
    )
    min_online_days: int = Field(0, ge=0, description="added to it for studies that were old when they were received")
    min_keep_days: int = Field(
        90, ge=0, description="days after reception before which no study is announced for purge"
    )
    purge_notice_days: int = Field(30, ge=1, description="days between the announcement of a purge and the purge")
    purge_approval: Literal["notice", "two-person"] = Field(
        "notice", description="`notice`, or `two-person`: a purge also waits for two approvals"
    )
    purge_cap: int = Field(200, ge=1, description="studies purged in one tick at most")
    dose_years: int = Field(20, ge=20, description="years that radiation dose reports (RDSR) are kept, images or not")
    tick_seconds: int = Field(900, ge=1, description="real time between two ticks")

    def gate(self, modality: str) -> Quality | None:
        """The lossy gate of a modality; None: its images stay lossless."""
        return self.quality.get(modality) or QUALITY.get(modality)


KEEP_YEARS = {"liberal": 5, "hospital": 20}  # floors, and defaults, by profile (REQ-CDC-03, REQ-CDC-04)


class Probe(Section):
    """How soon images are there, measured by the archive itself: now and then it opens a series, as a viewer does and
    as a C-MOVE does (annexe 5, 3.2: the first image in 5 s, 600 images in 60 s)."""

    every_seconds: int = Field(3600, ge=0, description="between two measurements at each door; 0: none are made")
    images: int = Field(600, ge=1, le=10_000, description="images of the series that are opened at most")


class Api(Section):
    """The HTTP port: desk, API, DICOMweb."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Port = Field(8080, description="port to listen on; 0 lets the system choose")
    insecure: bool = Field(False, description="needed to listen beyond loopback; TLS belongs to a reverse proxy today")
    workers: int = Field(1, ge=1, le=64, description="processes that share the port")
    cors_origins: tuple[Origin, ...] = Field(
        (), description="origins of other web applications whose scripts may call DICOMweb and the API with a token"
    )
    session_idle_seconds: int = Field(900, ge=60, description="a session of the desk ends after this silence")
    viewer: Path | None = Field(
        None, description="folder of the viewer, as `make viewer` makes it; default: where `make viewer` puts it"
    )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def section_of(annotation: object) -> type[Section] | None:
    """The section that a field's type is, or that it holds many of."""
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, Section):
            return one
    return None
