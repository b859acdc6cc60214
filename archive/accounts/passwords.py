"""Passwords: the rule, the hash (argon2id, RFC 9106), and new ones."""

from __future__ import annotations

import functools
import secrets
import threading
import unicodedata

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from archive.errors import Busy, InvalidRequest

LEAST_CHARACTERS = 12  # REQ-SEC-24
_MOST_CHARACTERS = 1024
_LEAST_DIFFERENT = 5
_PATIENCE_SECONDS = 10.0
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that is easily taken for another

_HASHER = PasswordHasher(time_cost=3, memory_cost=32 * 1024, parallelism=1)


def check_rule(password: str, *, name: str) -> None:
    """Raise InvalidRequest, in words, unless the password is one that an account may have (REQ-SEC-24)."""
    password = _normal(password)
    if len(password) < LEAST_CHARACTERS:
        raise InvalidRequest(f"the password has {len(password)} characters, it needs {LEAST_CHARACTERS} or more")
    if len(password) > _MOST_CHARACTERS:
        raise InvalidRequest(f"the password has more than {_MOST_CHARACTERS} characters")
    if len(set(password)) < _LEAST_DIFFERENT:
        raise InvalidRequest(f"the password needs {_LEAST_DIFFERENT} different characters or more")
    if name.casefold() in password.casefold() and len(password) - len(name) < LEAST_CHARACTERS:
        raise InvalidRequest("the password contains the account's name, and too little besides")


def new_password() -> str:
    """Four groups of five characters: 99 random bits."""
    return "-".join("".join(secrets.choice(_LETTERS) for _ in range(5)) for _ in range(4))


def hash_password(password: str, slots: threading.BoundedSemaphore) -> str:
    """The hash to store, salted. Raises Busy when others are hashing for too long."""
    with _Slot(slots):
        return _HASHER.hash(_normal(password))


def matches(stored: str | None, password: str, slots: threading.BoundedSemaphore) -> bool:
    """Whether the password is the one. `stored` None (nobody of that name): false, after the same work.

    Raises Busy when others are hashing for too long.
    """
    with _Slot(slots):
        decoy = _decoy()
        try:
            found = _HASHER.verify(stored or decoy, _normal(password[:_MOST_CHARACTERS]))
        except (VerificationError, InvalidHashError):
            return False
        return found and stored is not None


def is_dated(stored: str) -> bool:
    """Whether a hash was made with weaker parameters than those of today."""
    return _HASHER.check_needs_rehash(stored)


@functools.cache
def _decoy() -> str:
    return _HASHER.hash(secrets.token_hex(16))


def _normal(password: str) -> str:
    """The same characters, however the keyboard composes them."""
    return unicodedata.normalize("NFC", password.encode("utf-8", "replace").decode())


class _Slot:
    """A place among those who hash: memory and processor are bounded, whatever knocks."""

    def __init__(self, slots: threading.BoundedSemaphore) -> None:
        self._slots = slots

    def __enter__(self) -> None:
        if not self._slots.acquire(timeout=_PATIENCE_SECONDS):
            raise Busy("too many are logging in at this moment")

    def __exit__(self, *_: object) -> None:
        self._slots.release()
