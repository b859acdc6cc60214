"""Certificates for tests, made by the `openssl` program: an authority, who it vouches for, and others."""

from __future__ import annotations

import hashlib
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, PEM files."""

    cert: Path
    key: Path

    @property
    def fingerprint(self) -> str:
        """As `archive.tls.fingerprint` writes it."""
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.cert.read_text())).hexdigest()

    def load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.load_cert_chain(self.cert, self.key)
        return context


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def self_signed(folder: Path, name: str, *options: str, key: str = "EC") -> Certificate:
    """A certificate that vouches for itself."""
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    if made.cert.exists():
        return made
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"] if key == "EC" else ["-newkey", key]
    openssl(
        "req", "-x509", *kind, "-nodes", "-subj", f"/CN={name}", "-keyout", made.key, "-out", made.cert,
        *(options or ("-days", "30")),
    )  # fmt: skip
    return made


@dataclass(frozen=True)
class Authority:
    """An authority, and the certificates that it issues: each once, then they are there."""

    folder: Path

    @property
    def root(self) -> Certificate:
        return self_signed(self.folder, "authority")

    @property
    def archive(self) -> Certificate:
        """What the archive shows, to callers and to those whom it calls."""
        return self.issue("archive")

    @property
    def caller(self) -> Certificate:
        return self.issue("caller")

    def issue(self, name: str, *, names: str = NAMES, days: int = 365, key: str = "EC") -> Certificate:
        made = Certificate(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        if made.cert.exists():
            return made
        root, request, extensions = self.root, self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text(names)
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"] if key == "EC" else ["-newkey", key]
        openssl("req", "-new", *kind, "-nodes", "-subj", f"/CN={name}", "-keyout", made.key, "-out", request)
        openssl(
            "x509", "-req", "-in", request, "-CA", root.cert, "-CAkey", root.key, "-CAcreateserial",
            "-days", str(days), "-extfile", extensions, "-out", made.cert,
        )  # fmt: skip
        return made

    def settings(self) -> dict[str, Path]:
        """The section `tls` of an archive that belongs to this authority."""
        return {"cert": self.archive.cert, "key": self.archive.key, "ca": self.root.cert}

    def variables(self) -> dict[str, str]:
        """The same, as environment variables."""
        return {f"MINIPACS_TLS__{name.upper()}": str(path) for name, path in self.settings().items()}

    def context(self, shown: Certificate | None) -> ssl.SSLContext:
        """For a caller that believes this authority, and shows a certificate or none."""
        context = ssl.create_default_context(cafile=str(self.root.cert))
        return context if shown is None else shown.load(context)

    def options(self, shown: Certificate) -> list[str]:
        """For the programs of DCMTK."""
        return ["+tls", str(shown.key), str(shown.cert), "+cf", str(self.root.cert)]
