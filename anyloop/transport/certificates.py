"""The files of one identity: a certificate, its key, and the authority that both sides trust. Read again when they
change, so that a renewed certificate needs no restart."""

import functools
import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

from anyloop.config import Settings

logger = logging.getLogger(__name__)
_VARIABLES = {"tls_cert": "ANYLOOP_TLS_CERT", "tls_key": "ANYLOOP_TLS_KEY", "tls_ca": "ANYLOOP_TLS_CA"}


class TransportError(Exception):
    """The certificates of this process cannot be used. The message names the file or setting to mend."""


@dataclass(frozen=True)
class Certificates:
    """PEM texts. Without `ca` the other side is not asked for a certificate."""

    cert: bytes
    key: bytes
    ca: bytes | None


class CertificateFiles:
    """`current()` is the newest set that could be used: a half-written or mismatched one leaves the one before in use,
    and is said once. Any thread may ask. Raises TransportError when made on files that cannot be used."""

    def __init__(self, cert: Path, key: Path, ca: Path | None) -> None:
        self._cert, self._key, self._ca = cert, key, ca
        self._lock = threading.Lock()
        self._seen = self._signature()
        self._current = self._read()

    def current(self) -> Certificates:
        """Costs three `stat` calls while nothing changed."""
        try:
            seen = self._signature()
            if seen == self._seen:
                return self._current
            with self._lock:
                if seen == self._seen:
                    return self._current
                self._seen = seen  # also of a set that is no good: it is said once, not at every call
                fresh = self._read()
                if self._signature() != seen:  # read in the middle of an exchange: the next look reads the rest
                    self._seen = ()
                elif fresh != self._current:
                    self._current = fresh
                    logger.info("new certificates in use: %s", self._cert)
        except TransportError as error:
            logger.error("the certificates in use stay: %s", error)
        return self._current

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Follows links: Kubernetes renews a mounted secret by turning one around."""
        return tuple(_identity(path) for path in (self._cert, self._key, self._ca) if path is not None)

    def _read(self) -> Certificates:
        certificates = Certificates(_text(self._cert), _text(self._key), _text(self._ca) if self._ca else None)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self._cert, self._key, password=self._no_password)
        except (ssl.SSLError, OSError) as error:
            raise TransportError(f"{self._cert} and {self._key} are no certificate with its key: {error}") from error
        if self._ca:
            try:
                context.load_verify_locations(self._ca)
            except (ssl.SSLError, OSError) as error:
                raise TransportError(f"{self._ca} holds no certificates of an authority: {error}") from error
        return certificates

    def _no_password(self) -> str:
        """Without this, OpenSSL would ask for it on the terminal, and wait."""
        raise TransportError(
            f"the key {self._key} is encrypted, and nothing here knows its password: decrypt it "
            "(openssl pkey -in KEY -out PLAIN) and let file permissions protect it"
        )


def certificate_files(settings: Settings) -> CertificateFiles | None:
    """Of mutual TLS between the services; None when it is off. Raises TransportError."""
    paths = {name: getattr(settings, name) for name in _VARIABLES}
    missing = [_VARIABLES[name] for name, path in paths.items() if path is None]
    if len(missing) == len(paths):
        return None
    if missing:
        raise TransportError(
            f"TLS between the services needs three files, and {' and '.join(missing)} is not set: set all of "
            f"{', '.join(_VARIABLES.values())}, or none"
        )
    return shared_files(settings.tls_cert, settings.tls_key, settings.tls_ca)


@functools.cache
def shared_files(cert: Path, key: Path, ca: Path | None) -> CertificateFiles:
    """One reader per set of files in a process: what one server has read, every channel has."""
    return CertificateFiles(cert, key, ca)


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TransportError(f"cannot read {path}: {error.strerror or error}") from error
