"""What TLS is here, and what is said of files that cannot be used."""

from __future__ import annotations

import re
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from archive import tls
from archive.config import ConfigError, Settings
from archive.sections import Peer, Tls
from tests.certificates import Authority, Certificate, openssl, self_signed
from tests.conftest import need

NOW = datetime.now(UTC) + timedelta(hours=1)  # certificates are made later than this line runs


def shown(certificate: Certificate, ca: Path | None = None) -> Tls:
    return Tls(cert=certificate.cert, key=certificate.key, ca=ca)


@pytest.mark.req("REQ-DCM-04")
def test_nothing_but_what_the_profile_names_is_offered(authority: Authority) -> None:
    both = Tls.model_validate(authority.settings())
    for context in (tls.acceptor(both, mutual=True), tls.requestor(both, named=True)):
        ciphers = context.get_ciphers()
        assert {one["name"] for one in ciphers if one["protocol"] != "TLSv1.3"} == {
            "ECDHE-ECDSA-AES256-GCM-SHA384",
            "ECDHE-RSA-AES256-GCM-SHA384",
            "ECDHE-ECDSA-AES128-GCM-SHA256",
            "ECDHE-RSA-AES128-GCM-SHA256",
        }
        assert {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"} <= {one["name"] for one in ciphers}
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.verify_mode == ssl.CERT_REQUIRED


def test_a_certificate_is_demanded_where_there_is_an_authority_unless_somebody_says_no(authority: Authority) -> None:
    section = authority.settings()
    alone = {"cert": section["cert"], "key": section["key"]}
    for values, mutual, mode in (
        (section, None, ssl.CERT_REQUIRED),
        (section, False, ssl.CERT_OPTIONAL),
        (alone, None, ssl.CERT_NONE),
    ):
        settings = Settings.model_validate({"tls": values, "dicom": {"tls_mutual": mutual}})
        assert tls.acceptor(settings.tls, mutual=settings.dicom_mutual_tls).verify_mode == mode


def broken(folder: Path, authority: Authority, what: str) -> Tls:
    """Settings of TLS with one thing wrong."""
    good, other = authority.archive, authority.caller
    prose, gone = folder / "prose.pem", folder / "gone.pem"
    prose.write_text("Dear modality,\n")
    if what == "locked key":
        openssl("pkey", "-in", good.key, "-aes256", "-passout", "pass:x", "-out", folder / "locked.pem")
    if what == "torn certificate":
        (folder / "torn.pem").write_text(good.cert.read_text().replace("\nM", "\nX", 1))
    return {
        "no certificate": Tls(cert=gone, key=good.key),
        "no key": Tls(cert=good.cert, key=gone),
        "a folder": Tls(cert=folder, key=good.key),
        "prose for a certificate": Tls(cert=prose, key=good.key),
        "prose for a key": Tls(cert=good.cert, key=prose),
        "torn certificate": Tls(cert=folder / "torn.pem", key=good.key),
        "another's key": Tls(cert=good.cert, key=other.key),
        "locked key": Tls(cert=good.cert, key=folder / "locked.pem"),
        "no authority": Tls(cert=good.cert, key=good.key, ca=gone),
        "prose for an authority": Tls(cert=good.cert, key=good.key, ca=prose),
    }[what]


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no certificate", ["tls.cert", "gone.pem", "No such file"]),
        ("no key", ["tls.key", "gone.pem", "No such file"]),
        ("a folder", ["tls.cert", "directory"]),
        ("prose for a certificate", ["tls.cert", "prose.pem", "BEGIN CERTIFICATE"]),
        ("prose for a key", ["tls.key", "prose.pem", "BEGIN PRIVATE KEY"]),
        ("torn certificate", ["tls.cert", "torn.pem"]),
        ("another's key", ["tls.key", "caller.key", "not the key"]),
        ("locked key", ["tls.key", "locked.pem", "passphrase", "openssl pkey"]),
        ("no authority", ["tls.ca", "gone.pem", "No such file"]),
        ("prose for an authority", ["tls.ca", "prose.pem", "BEGIN CERTIFICATE"]),
    ],
)
def test_what_cannot_be_used_is_named_with_its_key(
    authority: Authority, tmp_path: Path, what: str, said: list[str]
) -> None:
    section = broken(tmp_path, authority, what)
    with pytest.raises(ConfigError) as refusal:
        tls.check(Settings(tls=section))
    for words in said:
        assert words in str(refusal.value)


def test_a_key_that_is_too_short_is_refused(tmp_path: Path) -> None:
    weak = self_signed(tmp_path, "weak", key="rsa:1024")
    with pytest.raises(ConfigError, match="2048"):
        tls.check(Settings(tls=shown(weak)))


@pytest.mark.parametrize("key", ["EC", "rsa:2048"])
def test_both_kinds_of_keys_will_do(tmp_path: Path, key: str) -> None:
    tls.check(Settings(tls=shown(self_signed(tmp_path, "good", key=key))))


@pytest.mark.parametrize(
    ("days", "later", "said"),
    [
        (365, 0, None),
        (365, 334, None),
        (365, 336, "expires on"),
        (365, 366, "expired on"),
        (20000, 0, None),  # past 2049 dates are written with four digits of the year
        (365, -2, "not valid before"),
    ],
)
def test_a_certificate_that_ends_is_spoken_of(authority: Authority, days: int, later: int, said: str | None) -> None:
    certificate = authority.issue(f"for-{days}-days", days=days)
    words = tls.expiry(shown(certificate), at=NOW + timedelta(days=later))
    assert (words is None) if said is None else (words is not None and said in words)


def test_without_a_certificate_there_is_nothing_to_say() -> None:
    assert tls.expiry(Tls(), at=NOW) is None


def test_a_fingerprint_is_written_as_openssl_does_or_plain(authority: Authority) -> None:
    said = openssl("x509", "-in", authority.caller.cert, "-noout", "-fingerprint", "-sha256")
    assert Peer(fingerprints=(said.strip().partition("=")[2],)).fingerprints == (authority.caller.fingerprint,)
    assert Peer(fingerprints=(authority.caller.fingerprint,)).fingerprints == (authority.caller.fingerprint,)
    for wrong in ("", "AB:CD", authority.caller.fingerprint[:-2], authority.caller.fingerprint + "aa", "g" * 64):
        with pytest.raises(ValidationError):
            Peer(fingerprints=(wrong,))


@pytest.mark.req("REQ-FACE-04", "REQ-DRIM-11")
@pytest.mark.parametrize(
    ("dicom", "with_tls", "said"),
    [
        ({"host": "0.0.0.0", "peers": {"CT1": {}}}, False, "tls.cert"),
        ({"host": "0.0.0.0", "peers": {"CT1": {}}}, True, None),
        ({"host": "0.0.0.0"}, True, "dicom.peers"),
        ({"host": "0.0.0.0", "peers": {"CT1": {}}, "accept_unknown_callers": True}, True, "accept_unknown_callers"),
        ({"host": "0.0.0.0", "accept_unknown_callers": True, "insecure": True}, True, None),
        ({"tls_mutual": True}, False, "dicom.tls_mutual"),
        ({"peers": {"CT1": {"tls": True}}}, False, "dicom.peers.CT1.tls"),
        ({"peers": {"CT1": {"fingerprints": ["00" * 32]}}}, False, "dicom.peers.CT1.fingerprints"),
        ({"peers": {"CT1": {"address": "10.0.0.7"}}}, False, None),
        ({"peers": {"CT1": {"address": "10.0.0.0/24"}}}, False, None),
        ({"peers": {"CT1": {"address": "10.0.0.7/24"}}}, False, "address"),
        ({"peers": {"CT1": {"address": "ct1"}}}, False, "address"),
    ],
)
def test_beyond_this_machine_there_is_tls_and_a_list_or_somebody_said_so(
    authority: Authority, dicom: dict[str, Any], with_tls: bool, said: str | None
) -> None:
    values = {"dicom": dicom, "tls": authority.settings() if with_tls else {}}
    if said is None:
        Settings.model_validate(values)
        return
    with pytest.raises(ValidationError, match=said):
        Settings.model_validate(values)


@pytest.mark.req("REQ-DRIM-11")
@pytest.mark.parametrize(
    ("address", "taken"),
    [
        ("", True),
        ("https://pacs.example/dicom-web", True),
        ("http://127.0.0.1:8080/dicom-web", True),  # a DRIMbox, or what speaks TLS for us, on this machine
        ("http://pacs.example/dicom-web", False),
        ("http://10.0.0.2/dicom-web", False),
    ],
)
def test_a_sharing_network_calls_over_https(address: str, taken: bool) -> None:
    values = {"sharing": {"retrieve_url": address}}
    if taken:
        assert Settings.model_validate(values).sharing.retrieve_url == address
        return
    with pytest.raises(ValidationError, match=r"sharing\.retrieve_url"):
        Settings.model_validate(values)


@pytest.mark.req("REQ-FACE-04", "REQ-DCM-04")
def test_clear_text_is_opened_on_this_machine_or_where_somebody_said_so(authority: Authority) -> None:
    listed = {"peers": {"CT1": {}}}
    for dicom, in_clear in (
        ({}, True),
        ({"host": "0.0.0.0", **listed}, False),
        ({"host": "0.0.0.0", "insecure": True, **listed}, True),
    ):
        assert Settings.model_validate({"tls": authority.settings(), "dicom": dicom}).dicom_in_clear is in_clear


def test_the_commands_of_the_page_make_certificates_that_work(tmp_path: Path) -> None:
    need("openssl", "sh")
    page = (Path(__file__).parents[2] / "docs" / "certificats.md").read_text(encoding="utf-8")
    commands = re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S)
    assert len(commands) == 3
    done = subprocess.run(
        ["sh", "-ec", "".join(commands)], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    ours = Certificate(tmp_path / "minipacs.crt", tmp_path / "minipacs.key")
    ca = tmp_path / "ca.crt"
    tls.check(Settings(tls=shown(ours, ca)))
    assert ours.key.stat().st_mode & 0o077 == 0
    fingerprint = done.stdout.strip().rpartition("=")[2]
    assert Peer(fingerprints=(fingerprint,)).fingerprints == (Certificate(tmp_path / "ct1.crt", ours.key).fingerprint,)
    for purpose, name in product(("sslserver", "sslclient"), ("minipacs", "ct1")):
        openssl("verify", "-CAfile", ca, "-purpose", purpose, tmp_path / f"{name}.crt")


def test_a_certificate_needs_its_key(authority: Authority) -> None:
    with pytest.raises(ValidationError, match="go together"):
        Settings(tls=Tls(cert=authority.archive.cert))
