"""Settings of the connection to Kafka, `ANYLOOP_KAFKA_*`, checked before anything connects.

The address and the prefix of names stand in the log URL; secrets and tuning stand here. `client`, `producer` and
`consumer` are what kafka-python's constructors take.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

from kafka.codec import has_lz4, has_snappy, has_zstd
from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_PORT = 9092
_CODECS = {"lz4": (has_lz4, "lz4"), "zstd": (has_zstd, "zstandard"), "snappy": (has_snappy, "python-snappy")}


@dataclass(frozen=True)
class KafkaAddress:
    """Where the cluster is (`host:port` each), and what stands before every topic and group name there."""

    servers: tuple[str, ...]
    prefix: str = ""

    @classmethod
    def from_url(cls, url: str) -> Self:
        """`kafka://host[:port][,host[:port]...][/PREFIX]`. Raises ValueError that names what is wrong."""
        parts = urlsplit(url)
        if parts.scheme != "kafka":
            raise ValueError(f"log URL {parts.scheme}://...: a Kafka URL begins with kafka://HOST:PORT")
        if "@" in parts.netloc:
            raise ValueError(
                "a Kafka URL holds no user or password: set ANYLOOP_KAFKA_SASL_USERNAME and ANYLOOP_KAFKA_SASL_PASSWORD"
            )
        if parts.query or parts.fragment:
            raise ValueError(f"log URL {url!r}: settings stand in ANYLOOP_KAFKA_*, not in the URL")
        prefix = unquote(parts.path.strip("/"))
        if not all(char.isascii() and (char.isalnum() or char in "._-") for char in prefix):
            raise ValueError(f"log URL {url!r}: the prefix {prefix!r} may hold letters, digits, '.', '_' and '-'")
        servers = tuple(_server(url, server) for server in parts.netloc.split(",") if server)
        if not servers:
            raise ValueError(f"log URL {url!r} names no broker: kafka://HOST:PORT")
        return cls(servers, prefix)


class KafkaSettings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="ANYLOOP_KAFKA_",
        env_file=".env",
        extra="ignore",
        hide_input_in_errors=True,  # there are passwords among them
    )

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ssl_cafile: Path | None = Field(None, description="Authority of the brokers' certificates; empty: the system's")
    ssl_certfile: Path | None = Field(None, description="Certificate of this client, where the brokers ask for one")
    ssl_keyfile: Path | None = Field(None, description="Its private key")
    ssl_password: SecretStr | None = Field(None, description="Of an encrypted private key")
    ssl_check_hostname: bool = Field(True, description="The broker's certificate must name its host")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str = ""
    sasl_password: SecretStr | None = None

    client_id: str = Field("anyloop", min_length=1, description="Names this client in the brokers' logs and quotas")
    # Token ids and logprobs hardly compress: a response of 2.1 KB becomes 1.7 KB by gzip or zstd, 1.85 KB by lz4, and
    # costs the producer 34 µs of CPU without, 69 µs with gzip, 43 µs with zstd, 27 µs with lz4 (batches of 500).
    compression: Literal["none", "gzip", "lz4", "zstd", "snappy"] = Field(
        "none", description="lz4, zstd and snappy need the package lz4, zstandard or python-snappy"
    )
    # Appends are acknowledged one by one, so that waiting only adds to each; what comes meanwhile makes the next batch.
    linger_ms: float = Field(0.0, ge=0, description="Waits so long for company before a batch is sent")
    batch_bytes: int = Field(256 * 1024, ge=1024, description="Largest batch of one partition")
    timeout_s: float = Field(10.0, gt=0.5, le=300, description="An operation fails, retriable, after so long")
    delivery_timeout_s: float = Field(
        86400.0,
        gt=0,
        description="So long the producer repeats a batch that nobody acknowledges; appended again after that, events "
        "whose acknowledgement alone was lost are in the log twice",
    )
    session_timeout_s: float = Field(
        10.0, ge=1, description="After so long a silent consumer's partitions go to others"
    )
    max_poll_interval_s: float = Field(
        3600.0, gt=0, description="After so long without a poll a consumer counts as stuck, though its heart beats"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_tls()
        self._check_sasl()
        if self.compression in _CODECS:
            installed, package = _CODECS[self.compression]
            if not installed():
                raise ValueError(
                    f"ANYLOOP_KAFKA_COMPRESSION={self.compression} needs the package {package}: "
                    f"pip install {package}, or use gzip or none, which need nothing"
                )
        if self.delivery_timeout_s < self.timeout_s + self.linger_ms / 1000:
            raise ValueError(
                f"ANYLOOP_KAFKA_DELIVERY_TIMEOUT_S={self.delivery_timeout_s:g} must be at least "
                f"ANYLOOP_KAFKA_TIMEOUT_S + ANYLOOP_KAFKA_LINGER_MS = {self.timeout_s + self.linger_ms / 1000:g} "
                "seconds: a batch must outlive one attempt"
            )
        if self.max_poll_interval_s < self.session_timeout_s:
            raise ValueError(
                f"ANYLOOP_KAFKA_MAX_POLL_INTERVAL_S={self.max_poll_interval_s:g} must not be less than "
                f"ANYLOOP_KAFKA_SESSION_TIMEOUT_S={self.session_timeout_s:g}"
            )
        return self

    @property
    def uses_tls(self) -> bool:
        return self.security_protocol in ("SSL", "SASL_SSL")

    @property
    def uses_sasl(self) -> bool:
        return self.security_protocol in ("SASL_PLAINTEXT", "SASL_SSL")

    def ssl_context(self) -> ssl.SSLContext:
        """What kafka-python makes of the same files. Raises ValueError that names the setting of a bad one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = self.ssl_check_hostname
        if self.ssl_cafile is None:
            context.load_default_certs()
        else:
            try:
                context.load_verify_locations(self.ssl_cafile)
            except (OSError, ssl.SSLError) as error:
                raise ValueError(
                    f"ANYLOOP_KAFKA_SSL_CAFILE={self.ssl_cafile}: not a readable PEM file of certificates ({error})"
                ) from error
        if self.ssl_certfile is not None:
            try:
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile, self._key_password)
            except (OSError, ssl.SSLError) as error:
                raise ValueError(
                    f"ANYLOOP_KAFKA_SSL_CERTFILE={self.ssl_certfile}, ANYLOOP_KAFKA_SSL_KEYFILE={self.ssl_keyfile}: "
                    f"no PEM certificate with its private key, or ANYLOOP_KAFKA_SSL_PASSWORD is not the key's ({error})"
                ) from error
        return context

    def client(self) -> dict[str, Any]:
        """Of every client: connection, security, time limits. Without `bootstrap_servers`."""
        timeout_ms = round(self.timeout_s * 1000)
        config: dict[str, Any] = {
            "client_id": self.client_id,
            "security_protocol": self.security_protocol,
            "request_timeout_ms": timeout_ms,
            "bootstrap_timeout_ms": timeout_ms,
            "reconnect_backoff_ms": 50,
            "reconnect_backoff_max_ms": 1000,  # a broker comes back in seconds; the default waits up to 30
        }
        if self.uses_tls:
            # Paths, not a context: they are read at each connection, so that renewed certificates are taken up.
            config |= {
                "ssl_check_hostname": self.ssl_check_hostname,
                "ssl_cafile": str(self.ssl_cafile) if self.ssl_cafile else None,
                "ssl_certfile": str(self.ssl_certfile) if self.ssl_certfile else None,
                "ssl_keyfile": str(self.ssl_keyfile) if self.ssl_keyfile else None,
                "ssl_password": self._key_password,
            }
        if self.uses_sasl:
            assert self.sasl_password is not None
            config |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password.get_secret_value(),
            }
        return config

    def producer(self) -> dict[str, Any]:
        """Of a KafkaProducer: idempotent, acknowledged by all replicas in sync."""
        return self.client() | {
            "acks": "all",
            "enable_idempotence": True,
            "compression_type": None if self.compression == "none" else self.compression,
            "linger_ms": self.linger_ms,
            "batch_size": self.batch_bytes,
            "delivery_timeout_ms": round(self.delivery_timeout_s * 1000),
            "max_block_ms": round(self.timeout_s * 1000),
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
        }

    def consumer(self) -> dict[str, Any]:
        """Of a KafkaConsumer: offsets are committed by hand, a topic is never created by reading it."""
        session_ms = round(self.session_timeout_s * 1000)
        return self.client() | {
            "enable_auto_commit": False,
            "allow_auto_create_topics": False,
            "isolation_level": "read_committed",
            "session_timeout_ms": session_ms,
            "heartbeat_interval_ms": min(3000, session_ms // 3),
            "max_poll_interval_ms": round(self.max_poll_interval_s * 1000),
            "metrics_enabled": False,
        }

    @property
    def _key_password(self) -> str:
        """Never None: OpenSSL would ask on the terminal for the password of an encrypted key."""
        return self.ssl_password.get_secret_value() if self.ssl_password else ""

    def _check_tls(self) -> None:
        files = {"SSL_CAFILE": self.ssl_cafile, "SSL_CERTFILE": self.ssl_certfile, "SSL_KEYFILE": self.ssl_keyfile}
        given = [f"ANYLOOP_KAFKA_{name}" for name, path in files.items() if path is not None]
        if not self.uses_tls:
            if given:
                raise ValueError(
                    f"{given[0]} is set but ANYLOOP_KAFKA_SECURITY_PROTOCOL={self.security_protocol} uses no TLS: "
                    "set it to SSL or SASL_SSL"
                )
            return
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ANYLOOP_KAFKA_SSL_KEYFILE is set without ANYLOOP_KAFKA_SSL_CERTFILE: set both")
        self.ssl_context()

    def _check_sasl(self) -> None:
        values = {
            "ANYLOOP_KAFKA_SASL_MECHANISM": self.sasl_mechanism,
            "ANYLOOP_KAFKA_SASL_USERNAME": self.sasl_username,
            "ANYLOOP_KAFKA_SASL_PASSWORD": self.sasl_password and self.sasl_password.get_secret_value(),
        }
        if self.uses_sasl:
            if missing := [name for name, value in values.items() if not value]:
                raise ValueError(
                    f"ANYLOOP_KAFKA_SECURITY_PROTOCOL={self.security_protocol} needs {' and '.join(missing)}"
                )
            if str(self.sasl_mechanism).startswith("SCRAM") and set(self.sasl_username) & set(",="):
                raise ValueError("ANYLOOP_KAFKA_SASL_USERNAME: kafka-python cannot send ',' or '=' in a name by SCRAM")
        elif given := [name for name, value in values.items() if value]:
            raise ValueError(
                f"{given[0]} is set but ANYLOOP_KAFKA_SECURITY_PROTOCOL={self.security_protocol} sends no credentials: "
                "set it to SASL_SSL (or SASL_PLAINTEXT inside a trusted network)"
            )


def _server(url: str, server: str) -> str:
    try:
        parts = urlsplit(f"//{server}")
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError as error:
        raise ValueError(f"log URL {url!r}: {server!r} is not HOST:PORT ({error})") from error
    if not host:
        raise ValueError(f"log URL {url!r}: {server!r} is not HOST:PORT")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
