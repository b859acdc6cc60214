"""TLS as BCP 195 has it (RFC 8996, RFC 9325; PS3.15 B.12, REQ-DCM-04): who this archive is, and whom it believes.

For every protocol of the archive. TLS 1.3 where the peer can, else 1.2 with four suites; nothing older. A certificate
is believed when it leads to one of `tls.ca`, which may hold authorities and the peers' own certificates alike.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from archive.config import ConfigError, Settings
from archive.sections import Tls

# TLS 1.2. Level 2 refuses what is weaker than 112 bits: RSA below 2048, SHA-1. The suites of 1.3 are OpenSSL's.
_SUITES = (
    "@SECLEVEL=2:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"
    ":ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
)
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.S)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")
SOON = timedelta(days=30)  # a certificate that ends within this is spoken of


class _Locked(Exception):
    """A private key wants a passphrase."""


@cache
def acceptor(tls: Tls, *, mutual: bool) -> ssl.SSLContext:
    """For the side that is called. With `mutual`, a caller without a certificate that is believed is refused.

    Without it a certificate is still asked for where there is a `tls.ca` to judge it by; a bad one is refused.

    Raises ConfigError, which names the key.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, tls)
    if tls.ca is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_OPTIONAL
    context.num_tickets = 0  # several processes share the port, and a handshake a study costs nothing
    return context


@cache
def requestor(tls: Tls, *, named: bool) -> ssl.SSLContext:
    """For the side that calls: shows our certificate if there is one, and believes by `tls.ca`.

    With `named`, the certificate has to be made out to the host that was called (RFC 9325 §6.1).

    Raises ConfigError, which names the key.
    """
    if tls.ca is None:
        raise ConfigError("tls.ca is needed to call a peer over TLS")
    context = _context(ssl.PROTOCOL_TLS_CLIENT, tls)
    context.check_hostname = named
    return context


def check(settings: Settings) -> None:
    """Try everything that the settings will need. Raises ConfigError, which names the key and what to do."""
    tls = settings.tls
    if tls.on:
        acceptor(tls, mutual=settings.dicom_mutual_tls)
    if tls.ca is not None:
        requestor(tls, named=True)
        requestor(tls, named=False)


def _context(side: int, tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_SUITES)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a peer's own certificate in `tls.ca` is enough
    if tls.cert is not None and tls.key is not None:
        _show(context, tls.cert, tls.key)
    if tls.ca is not None:
        if not _CERTIFICATE.search(_text("tls.ca", tls.ca)):
            raise ConfigError(f"tls.ca: {tls.ca} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
        try:
            context.load_verify_locations(cafile=tls.ca)
        except ssl.SSLError as error:
            raise ConfigError(f"tls.ca: {tls.ca} cannot be used: {reason(error)}") from error
    return context


def _show(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    """Load what we show of ourselves."""

    def passphrase() -> str:
        raise _Locked

    if not _CERTIFICATE.search(_text("tls.cert", cert)):
        raise ConfigError(f"tls.cert: {cert} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
    if not _PRIVATE_KEY.search(_text("tls.key", key)):
        raise ConfigError(f"tls.key: {key} holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)")
    try:
        context.load_cert_chain(cert, key, password=passphrase)
    except _Locked:
        raise ConfigError(
            f"tls.key: {key} is locked with a passphrase, and nobody is there to type it: "
            f"openssl pkey -in {key} -out NEW.pem, readable by this user alone"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"tls.key: {key} is not the key of the certificate in tls.cert ({cert})") from error
        raise ConfigError(
            f"tls.cert, tls.key: {cert} and {key} cannot be used: {reason(error)}; "
            "RSA of 2048 bits or more, or EC P-256, signed with SHA-256, will do"
        ) from error


def _text(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise ConfigError(f"{name}: {path} cannot be read: {error.strerror}") from error


def reason(error: ssl.SSLError) -> str:
    """Why TLS failed, in OpenSSL's words; says nothing of a patient."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not believed: {error.verify_message}"
    return (error.reason or "an unknown error").lower().replace("_", " ")


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a certificate (DER), as `openssl x509 -fingerprint -sha256` gives it, in small letters, no colons."""
    return hashlib.sha256(certificate).hexdigest()


def expiry(tls: Tls, *, at: datetime) -> str | None:
    """What to say of the life of our certificate at `at`; None: it lasts. Raises ConfigError."""
    if tls.cert is None:
        return None
    found = _CERTIFICATE.search(_text("tls.cert", tls.cert))
    if found is None:
        raise ConfigError(f"tls.cert: {tls.cert} holds no certificate in PEM form")
    first, last = _validity(ssl.PEM_cert_to_DER_cert(found[0]))
    if at > last:
        return f"tls.cert expired on {last:%Y-%m-%d}: peers refuse it; put a new one there, and restart"
    if at < first:
        return f"tls.cert is not valid before {first:%Y-%m-%d}: peers refuse it; is the clock of this machine right?"
    if last - at < SOON:
        return f"tls.cert expires on {last:%Y-%m-%d}: put a new one there, and restart"
    return None


def _validity(certificate: bytes) -> tuple[datetime, datetime]:
    """The first and the last moment of a certificate in DER (RFC 5280 §4.1.2.5)."""
    [(_, whole)] = _elements(certificate)
    fields = [value for tag, value in _elements(_elements(whole)[0][1]) if tag != 0xA0]  # the version may be left out
    first, last = (_moment(tag, value) for tag, value in _elements(fields[3]))  # serial, algorithm, issuer, validity
    return first, last


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """Tag and contents of the elements in a row."""
    found, at = [], 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[at : at + size], "big")
            at += size
        found.append((tag, der[at : at + length]))
        at += length
    return found


def _moment(tag: int, value: bytes) -> datetime:
    text = value.decode("ascii")
    if tag == 0x17:  # UTCTime: two digits of a year from 1950 to 2049
        text = ("20" if text < "50" else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
