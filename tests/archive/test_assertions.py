"""JSON Web Tokens of an issuer: which are accepted, which are not, and what the audit keeps."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from pydantic import ValidationError
from sqlalchemy import select

from archive.access import Door
from archive.accounts.assertions import check, vouched_for
from archive.audit.record import Event
from archive.config import ConfigError, Settings
from archive.core import Archive
from archive.errors import NotAuthenticated
from archive.schema import audit
from archive.sections import Jwt
from tests.conftest import new_database

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PUBLIC_PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def key_set(*keys: dict[str, Any]) -> str:
    return json.dumps({"keys": list(keys)})


def rsa_key(key: rsa.RSAPrivateKey, kid: str, **more: str) -> dict[str, Any]:
    return RSAAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig", "alg": "RS256"} | more


@pytest.fixture
def settings(migrated_sqlite: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Settings]:
    """One database is enough."""
    with new_database("sqlite", tmp_path, request, template=migrated_sqlite) as url:
        yield Settings.model_validate(
            {"data_dir": tmp_path / "data", "database": {"url": url}, "storage": {"reserve_bytes": 0}}
        )


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> Jwt:
    keys = tmp_path_factory.mktemp("jwt") / "keys.json"
    keys.write_text(
        key_set(
            rsa_key(RSA, "one"),
            ECAlgorithm.to_jwk(EC.public_key(), as_dict=True) | {"kid": "two"},
            {"kty": "oct", "kid": "shared", "alg": "HS256", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"},
            rsa_key(STRANGER, "for encryption", use="enc"),
        )
    )
    return Jwt(keys=keys, issuer="https://sso.example", audience="minipacs", user="preferred_username")


def token(*, key: Any = RSA, algorithm: str = "RS256", kid: str | None = "one", **changes: Any) -> bytes:
    claims = {
        "iss": "https://sso.example",
        "aud": "minipacs",
        "exp": time.time() + 300,
        "sub": "3f2a",
        "preferred_username": "anne",
    } | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims, key, algorithm=algorithm, headers=headers).encode()


def asked(archive: Archive, section: Jwt, given: bytes) -> str:
    return vouched_for(archive, section, given, source="10.0.0.7", door=Door.DICOM)


def rows(archive: Archive) -> list[Any]:
    with archive.engine.connect() as conn:
        found = conn.execute(select(audit).where(audit.c.event == str(Event.USER_AUTHENTICATION)))
        return list(found)


@pytest.mark.req("REQ-DCM-05")
@pytest.mark.parametrize(
    "make",
    [
        token,
        lambda: token(key=EC, algorithm="ES256", kid="two"),
        lambda: token(aud=["other", "minipacs"]),
        lambda: token(exp=time.time() - 5),  # clocks differ
        lambda: token() + b" ",
    ],
    ids=["RSA", "EC", "one of several audiences", "just expired", "padded to an even length"],
)
def test_the_user_of_a_right_token_is_named(archive: Archive, section: Jwt, make: Callable[[], bytes]) -> None:
    assert asked(archive, section, make()) == "anne"
    [row] = rows(archive)
    assert (row.user, row.source, row.outcome) == ("anne", "10.0.0.7", 0)
    assert json.loads(row.detail) == {"type": "110122", "issuer": "https://sso.example"}


def unsigned() -> bytes:
    _, body, _ = token().split(b".")
    return base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=") + b"." + body + b"."


def forged() -> bytes:
    head, _, signature = token().split(b".")
    body = base64.urlsafe_b64encode(json.dumps({"preferred_username": "root"}).encode()).rstrip(b"=")
    return b".".join((head, body, signature))


def confused() -> bytes:
    """Signed with the public key, as if it were a secret that both know."""
    import hashlib
    import hmac

    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT","kid":"one"}').rstrip(b"=")
    _, body, _ = token().split(b".")
    signature = hmac.new(PUBLIC_PEM, head + b"." + body, hashlib.sha256).digest()
    return head + b"." + body + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")


def nested() -> bytes:
    return base64.urlsafe_b64encode(b"[" * 40_000).rstrip(b"=") + b".e30.AA"


@pytest.mark.req("REQ-DCM-05")
@pytest.mark.parametrize(
    "make",
    [
        lambda: token(key=STRANGER),
        lambda: token(kid="unknown"),
        lambda: token(kid=None),
        lambda: token(key=STRANGER, kid="for encryption"),
        lambda: token(iss="https://other.example"),
        lambda: token(iss=None),
        lambda: token(aud="other"),
        lambda: token(aud=None),
        lambda: token(exp=time.time() - 60),
        lambda: token(exp=None),
        lambda: token(nbf=time.time() + 600),
        lambda: token(preferred_username=None),
        lambda: token(preferred_username=" "),
        lambda: token(preferred_username=["anne"]),
        lambda: token(preferred_username="anne\nroot"),
        lambda: token(preferred_username="a" * 65),
        lambda: token(key="secret-secret-secret-secret-secret", algorithm="HS256", kid="shared"),
        unsigned,
        forged,
        confused,
        nested,
        lambda: b"",
        lambda: b"anne",
        lambda: b"\xff\xfe.\x00.x",
    ],
)
def test_any_other_token_is_refused_and_audited(archive: Archive, section: Jwt, make: Callable[[], bytes]) -> None:
    with pytest.raises(NotAuthenticated) as refusal:
        asked(archive, section, make())
    assert "anne" not in str(refusal.value)
    [row] = rows(archive)
    assert (row.user, row.outcome) == ("10.0.0.7", 8)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("keys", "is not a JSON Web Key Set"),
        ("[]", "is not a JSON Web Key Set"),
        (key_set(), "is not a JSON Web Key Set"),
        (key_set({"kty": "oct", "kid": "x", "alg": "HS256", "k": "c2VjcmV0"}), "holds no public key"),
    ],
)
def test_keys_that_cannot_be_used_are_named(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "keys.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=said) as refusal:
        check(Jwt(keys=path, issuer="x", audience="y"))
    assert "dicom.jwt.keys" in str(refusal.value)


def test_keys_issuer_and_audience_go_together(tmp_path: Path) -> None:
    check(Jwt())
    for values in ({"keys": tmp_path}, {"issuer": "x", "audience": "y"}, {"keys": tmp_path, "issuer": "x"}):
        with pytest.raises(ValidationError, match="go together"):
            Settings.model_validate({"dicom": {"jwt": values}})
