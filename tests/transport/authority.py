"""An authority of certificates for tests, by the `openssl` program: what cert-manager is in a cluster."""

import os
import shutil
import subprocess
from pathlib import Path

from anyloop.config import Settings


class Authority:
    """Keeps its own key in `folder`. Certificates are valid for a day."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        if shutil.which("openssl") is None:
            raise RuntimeError("these tests make certificates with the program `openssl`: install it")
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._key, self.ca = folder / "ca.key", folder / "ca.crt"
        _openssl("req", "-x509", *_CURVE, "-keyout", self._key, "-out", self.ca, "-subj", f"/CN={name}", "-days", "1")

    def issue(self, folder: Path, *names: str) -> Path:
        """`tls.crt`, `tls.key` and `ca.crt` for the DNS `names` in `folder`, exchanged one after the other as a
        careless script would: the key first."""
        folder.mkdir(parents=True, exist_ok=True)
        request, extensions, signed = (self._folder / f"{folder.name}.{kind}" for kind in ("csr", "ext", "crt"))
        key = self._folder / f"{folder.name}.key"
        _openssl("req", *_CURVE, "-keyout", key, "-out", request, "-subj", f"/CN={names[0]}")
        extensions.write_text("subjectAltName=" + ",".join(f"DNS:{name}" for name in names) + "\n")
        options = ("-CA", self.ca, "-CAkey", self._key, "-CAcreateserial", "-days", "1", "-extfile", extensions)
        _openssl("x509", "-req", "-in", request, "-out", signed, *options)
        for made, name in ((key, "tls.key"), (signed, "tls.crt"), (self.ca, "ca.crt")):
            copy = folder / f".{name}"
            shutil.copyfile(made, copy)
            os.replace(copy, folder / name)
        return folder


def with_certificates(settings: Settings, folder: Path, **changes: object) -> Settings:
    """`settings` with mutual TLS from the files of `Authority.issue`."""
    files = {"tls_cert": folder / "tls.crt", "tls_key": folder / "tls.key", "tls_ca": folder / "ca.crt"}
    return settings.model_copy(update={**files, **changes})


_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]} failed: {done.stderr}")
