"""Programs of npm that judge what is ours, fetched when a test wants them; nothing of them is part of the repository.

A package has one version and one digest, which are written here. It is fetched once from npm's registry (or from the
one that MINIPACS_TEST_NPM names) and kept in pytest's cache. Without it tests skip, or under MINIPACS_TEST_STRICT fail.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import urllib.request
from dataclasses import dataclass

import pytest

from tests import conftest

_LARGEST = 20 << 20  # bytes
_SECONDS = 30.0  # of silence


@dataclass(frozen=True)
class Package:
    """One version of a package, and its digest as npm writes it (Subresource Integrity)."""

    name: str
    version: str
    integrity: str

    @property
    def file(self) -> str:
        return f"{self.name.rpartition('/')[2]}-{self.version}.tgz"


DICOMWEB_CLIENT = Package(  # MIT
    "dicomweb-client",
    "0.11.3",
    "sha512-7t1Rc/01fyFnKlQeNPW9Pvxvmsx8R/BgB2n7BxTuWirRFwlTC5upEeLeS3vO72P+n6/SQZ3+5ij0bgaWDHQG/A==",
)


def need_file(package: Package, name: str, config: pytest.Config) -> str:
    """The text of a file of a package."""
    assert config.cache is not None
    kept = config.cache.mkdir("npm") / package.file
    try:
        packed = kept.read_bytes() if kept.exists() else _fetched(package)
    except OSError as error:
        message = f"{package.name} {package.version} cannot be fetched: {error}"
        (pytest.fail if conftest.STRICT else pytest.skip)(message)
    kind, _, expected = package.integrity.partition("-")
    found = base64.b64encode(hashlib.new(kind, packed).digest()).decode()
    assert found == expected, f"{kept}: another one than was chosen"
    if not kept.exists():  # several workers may come here at once
        beside = kept.with_name(f"{package.file}.{os.getpid()}")
        beside.write_bytes(packed)
        beside.rename(kept)
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        content = archive.extractfile(f"package/{name}")
        assert content is not None
        return content.read().decode()


def _fetched(package: Package) -> bytes:
    registry = os.environ.get("MINIPACS_TEST_NPM", "https://registry.npmjs.org").rstrip("/")
    address = f"{registry}/{package.name}/-/{package.file}"
    with urllib.request.urlopen(address, timeout=_SECONDS) as answer:
        packed: bytes = answer.read(_LARGEST)
    return packed
