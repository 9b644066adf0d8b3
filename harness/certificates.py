"""Certificates for servers of tests, made by openssl's command line."""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from harness.servers.programs import make_folder, require_program


class Certificate(NamedTuple):
    """Two files in PEM. All users may read them, because servers run as other users."""

    cert: Path
    key: Path


class CertificateAuthority:
    """An authority, and the certificates that it signed, in a temporary folder. Raises ServerMissingError."""

    def __init__(self) -> None:
        self._openssl = require_program("openssl", "openssl")
        self._folder = make_folder("certificates")
        self._folder.chmod(0o755)
        self._key = self._folder / "authority.key"
        self.file = self._folder / "authority.pem"
        """The authority's certificate."""
        self._count = 0
        self._run(
            *["req", "-x509", *self._new_key(self._key), "-out", self.file, "-days", 30, "-subj", "/CN=authority"],
            *["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"],
        )

    def issue(self, name: str, *, expired: bool = False) -> Certificate:
        """Return a new certificate for a host name or an IP address."""
        self._count += 1
        stem = self._folder / str(self._count)
        made = Certificate(stem.with_suffix(".pem"), stem.with_suffix(".key"))
        request = stem.with_suffix(".csr")
        alternative = f"subjectAltName={'IP' if _is_ip(name) else 'DNS'}:{name}"
        self._run(
            *["req", "-new", *self._new_key(made.key), "-out", request, "-subj", f"/CN={name}"],
            *["-addext", alternative, "-addext", "basicConstraints=critical,CA:FALSE"],
        )
        self._run(
            *["x509", "-req", "-in", request, "-CA", self.file, "-CAkey", self._key, "-copy_extensions", "copy"],
            *["-days", -1 if expired else 30, "-out", made.cert],
        )
        made.key.chmod(0o644)
        return made

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @staticmethod
    def _new_key(path: Path) -> list[object]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path]

    def _run(self, *arguments: object) -> None:
        command = [self._openssl, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - openssl itself
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2_000:]}")


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
