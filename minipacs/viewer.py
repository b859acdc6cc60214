"""Fetches the viewer, OHIF, as its makers built it, and makes it ready to be served: `python -m minipacs.viewer`
(`make viewer`). Nothing of it is part of the repository.

One archive of npm's registry, of a pinned version, is taken only with the digest that is written here. What the archive
does not serve is left out, addresses are put under `/viewer/`, and what can be compressed is, once. The folder changes
at once or not at all.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

from api.viewer import COMPRESSED, LISTING
from archive.config import ConfigError, load

PACKAGE, VERSION = "@ohif/app", "3.13.2"  # MIT
INTEGRITY = "sha512-WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
REGISTRY = "https://registry.npmjs.org"
MADE = 1  # how it is made ready; with the version it is part of the addresses, which browsers keep for ever
RELEASE = f"ohif-{VERSION}-{MADE}"

_SERVED = re.compile(
    r"[\w.-]+\.(?:js|css|wasm|woff2|svg)|assets/(?:favicon[\w-]*\.\w+|images/[\w/. -]+\.(?:png|svg|jpe?g))", re.ASCII
)
# configuration and log-in of others; workers that fetch their program elsewhere
_NOT_SERVED = re.compile(
    r"(?:app-config|google|oidc-client\.min|es6-shim\.min|polyfill\.min|init-service-worker|sw)\.js"
)
_LARGEST = 200 << 20  # bytes, of the archive; it has 50 MB
_SECONDS = 60.0  # of silence


class Refused(Exception):
    """The viewer cannot be had; says why."""


def main(argv: list[str] | None = None) -> int:
    """Make the folder, unless it is there. Exit code 0: it is there; 3: it could not be fetched, nothing changed."""
    parser = argparse.ArgumentParser(prog="minipacs.viewer", description="Fetch the viewer (OHIF).")
    parser.add_argument("--to", type=Path, help="the folder; else where the archive looks for it")
    parser.add_argument("--from", dest="packed", type=Path, help=f"the file, fetched elsewhere: {address(REGISTRY)}")
    parser.add_argument("--registry", default=REGISTRY, help="another registry that has the same package")
    options = parser.parse_args(argv)
    try:
        folder: Path = options.to or load().viewer_dir
        if _is_there(folder):
            return 0
        packed = options.packed.read_bytes() if options.packed else fetch(options.registry)
        verify(packed)
        make(packed, folder)
    except (OSError, ConfigError, Refused) as error:
        print(f"La visionneuse n’a pas pu être installée (the viewer could not be installed): {error}", file=sys.stderr)
        return 3
    print(f"Visionneuse (viewer): {PACKAGE} {VERSION}, {folder}")
    return 0


def address(registry: str) -> str:
    """Where a registry of npm has the archive."""
    return f"{registry.rstrip('/')}/{PACKAGE}/-/{PACKAGE.rpartition('/')[2]}-{VERSION}.tgz"


def fetch(registry: str) -> bytes:
    """The archive, not looked at yet. Raises OSError or Refused."""
    if not registry.startswith(("https://", "http://")):
        raise Refused(f"{registry} is not the address of a registry")
    with urllib.request.urlopen(address(registry), timeout=_SECONDS) as answer:  # noqa: S310 - http or https, as above
        packed: bytes = answer.read(_LARGEST + 1)
    if len(packed) > _LARGEST:
        raise Refused("the archive is far too long")
    return packed


def verify(packed: bytes) -> None:
    """Raise Refused unless it is the very archive that was chosen (Subresource Integrity, as npm writes it)."""
    kind, _, expected = INTEGRITY.partition("-")
    found = base64.b64encode(hashlib.new(kind, packed).digest()).decode()
    if found != expected:
        raise Refused(f"{PACKAGE} {VERSION} has the digest {kind}-{found}, not {INTEGRITY}")


def make(packed: bytes, folder: Path) -> None:
    """Unpack what is served into `folder`, which changes at once. Raises Refused when it is not built as expected."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".viewer-", dir=folder.parent))
    try:
        _unpack(packed, scratch)
        index = (scratch / "index.html").read_text(encoding="utf-8")
        script = re.search(r'<script defer src="/(app\.bundle\.\w+\.js)"></script>', index)
        if script is None or not (scratch / script[1]).exists() or not (scratch / "app.bundle.css").exists():
            raise Refused("the page of the viewer is not built as this version expects")
        (scratch / "index.html").unlink()
        files = sorted(str(path.relative_to(scratch)) for path in scratch.rglob("*") if path.is_file())
        for name in files:
            _ready(scratch / name)
        listing = {
            "package": PACKAGE, "version": VERSION, "integrity": INTEGRITY, "release": RELEASE,
            "script": script[1], "style": "app.bundle.css", "files": files,
        }  # fmt: skip
        (scratch / LISTING).write_text(json.dumps(listing, indent=1), encoding="utf-8")
        scratch.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unpack(packed: bytes, scratch: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        for member in archive:
            name = member.name.removeprefix("package/dist/") if member.name != "package/LICENSE" else "LICENSE"
            if not member.isfile() or not _wanted(name):
                continue
            content = archive.extractfile(member)
            assert content is not None
            path = scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())


def _wanted(name: str) -> bool:
    if name in ("index.html", "LICENSE"):
        return True
    return bool(_SERVED.fullmatch(name)) and not _NOT_SERVED.fullmatch(name) and ".." not in name


def _ready(path: Path) -> None:
    """Put its addresses under ours, and a compressed copy beside it."""
    if path.suffix == ".js":
        text = path.read_bytes()
        path.write_bytes(re.sub(rb'(__webpack_require__\.p = )"/"', rb'\1"/viewer/%s/"' % RELEASE.encode(), text))
    elif path.suffix == ".css":
        path.write_bytes(re.sub(rb"url\(/(?!/)", b"url(/viewer/%s/" % RELEASE.encode(), path.read_bytes()))
    if path.suffix in COMPRESSED:
        content = path.read_bytes()
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content, 9, mtime=0))


def _is_there(folder: Path) -> bool:
    try:
        listing = json.loads((folder / LISTING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(listing, dict) and listing.get("release") == RELEASE


if __name__ == "__main__":
    sys.exit(main())
