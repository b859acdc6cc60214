"""Who somebody else vouches for: JSON Web Tokens (RFC 7519, RFC 8725) of one issuer, checked by its published keys.

A token says who it is, nothing of rights.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from archive.access import Actor, Door
from archive.audit.record import Event, EventType, record, refused, storable
from archive.config import ConfigError
from archive.core import Archive
from archive.errors import NotAuthenticated
from archive.sections import Jwt

if TYPE_CHECKING:
    from jwt import PyJWK

# Signed with a private key, so that who can check a token cannot make one.
_ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
_LEEWAY_SECONDS = 30
_LONGEST_NAME = 64


def vouched_for(archive: Archive, settings: Jwt, token: bytes, *, source: str, door: Door) -> str:
    """The user whom a token names. Both outcomes are audited before this returns (110114).

    Signature, issuer, audience and expiry have to be right, by the real clock.

    Raises:
        NotAuthenticated: without a word of what is in the token.
        Unavailable: that cannot be audited now.
    """
    from jwt import PyJWTError

    unknown = Actor(user=source, source=source, door=door, may=frozenset())
    try:
        user = _user(settings, token.decode("ascii").strip("\0 "))
    except (PyJWTError, ValueError, RecursionError) as error:
        refused(
            archive.commit,
            unknown,
            Event.USER_AUTHENTICATION,
            "E",
            reason=f"the token is not accepted: {type(error).__name__}",
            detail={"type": EventType.LOGIN, "issuer": settings.issuer},
        )
        raise NotAuthenticated("the token is not accepted") from error
    actor = Actor(user=user, source=source, door=door, may=frozenset())
    detail = {"type": EventType.LOGIN, "issuer": settings.issuer}
    archive.commit.run(lambda conn: record(conn, actor, Event.USER_AUTHENTICATION, "E", detail=detail))
    return user


def check(settings: Jwt) -> None:
    """Read the keys of the issuer. Raises ConfigError, which names the setting."""
    if settings.keys is not None:
        _keys(settings.keys)


def _user(settings: Jwt, token: str) -> str:
    """Raises PyJWTError, ValueError, RecursionError (JSON that is nested without end)."""
    import jwt

    assert settings.keys is not None
    keys = _keys(settings.keys)
    kid = jwt.get_unverified_header(token).get("kid")
    candidates = [key for key in keys if kid is None or key.key_id == kid]
    if len(candidates) != 1:
        raise jwt.InvalidKeyError("no key, or not one alone, has this name")
    claims = jwt.decode(
        token,
        candidates[0],
        algorithms=_ALGORITHMS,
        issuer=settings.issuer,
        audience=settings.audience,
        leeway=_LEEWAY_SECONDS,
        options={"require": ["exp", "iss", "aud", settings.user]},
    )
    user = claims[settings.user]
    if not isinstance(user, str) or not user.strip() or not user.isprintable() or len(user) > _LONGEST_NAME:
        raise jwt.InvalidTokenError("the claim is not a name")
    return storable(user.strip())


@cache
def _keys(path: Path) -> tuple[PyJWK, ...]:
    """The public keys of a JSON Web Key Set (RFC 7517) that sign with an algorithm of ours."""
    import jwt

    try:
        found = jwt.PyJWKSet.from_json(path.read_text(encoding="utf-8")).keys
    except OSError as error:
        raise ConfigError(f"dicom.jwt.keys: {path} cannot be read: {error.strerror}") from error
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"dicom.jwt.keys: {path} is not a JSON Web Key Set: {error}") from error
    keys = tuple(key for key in found if key.algorithm_name in _ALGORITHMS and key.public_key_use in (None, "sig"))
    if not keys:
        raise ConfigError(f"dicom.jwt.keys: {path} holds no public key for {', '.join(_ALGORITHMS)}")
    return keys
