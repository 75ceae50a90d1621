"""A certificate authority of one's own for tests, made by the openssl command."""

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest


class Authority:
    """Signs certificates; everything it makes lies in ``folder``."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        if shutil.which("openssl") is None:
            pytest.skip("certificates need the openssl command")
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key, self.certificate = folder / f"{name}.key", folder / f"{name}.pem"
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", self._key, "-out", self.certificate, "-subj", f"/CN={name}", "-days", "30",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip

    def issue(self, name: str) -> tuple[Path, Path]:
        """(certificate, key) for a host name, an address or a client."""
        key, request = self._folder / f"{name}.key", self._folder / f"{name}.csr"
        certificate, names = self._folder / f"{name}.pem", self._folder / f"{name}.ext"
        if certificate.exists():
            return certificate, key
        kind = "IP" if name.replace(".", "").isdigit() else "DNS"
        names.write_text(f"subjectAltName={kind}:{name}\n")
        self._openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", key, "-out", request, "-subj", f"/CN={name}",
        )  # fmt: skip
        self._openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key,
            "-out", certificate, "-days", "30", "-set_serial", "2", "-extfile", names,
        )  # fmt: skip
        return certificate, key

    def locked(self, name: str) -> str:
        """The key of an issued certificate, encrypted with a password, as PEM."""
        locked = self._folder / f"{name}.locked"
        self._openssl(
            "pkcs8", "-topk8", "-in", self._folder / f"{name}.key", "-out", locked,
            "-passout", "pass:password",
        )  # fmt: skip
        return locked.read_text()

    def server(self, name: str, *, asks_clients: bool = False) -> ssl.SSLContext:
        """What a server of that name needs; ``asks_clients`` for a certificate of ours too."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue(name))
        if asks_clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.certificate)
        return context

    def _openssl(self, *arguments: Any) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
