import importlib
import subprocess
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from pydantic import ValidationError

from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings


def _settings(**values: object) -> KafkaSettings:
    return KafkaSettings(_env_file=None, **values)  # type: ignore[arg-type, call-arg]


@pytest.fixture
def key_pair(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate, and its private key encrypted with the password `sesame`."""
    certificate, key = tmp_path / "client.pem", tmp_path / "client.key"
    subject = ["-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=client", "-passout", "pass:sesame"]
    subprocess.run(["openssl", "req", *subject, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


@pytest.mark.parametrize(
    ("url", "servers", "prefix"),
    [
        ("kafka://broker:9094", ("broker:9094",), ""),
        ("kafka://broker", ("broker:9092",), ""),
        ("kafka://one:1,two:2/team-a.", ("one:1", "two:2"), "team-a."),
        ("kafka://[::1]:9093/", ("[::1]:9093",), ""),
    ],
)
def test_an_address_is_servers_and_a_prefix(url: str, servers: tuple[str, ...], prefix: str) -> None:
    assert KafkaAddress.from_url(url) == KafkaAddress(servers, prefix)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("sqlite:///log.db", "begins with kafka://"),
        ("kafka://", "names no broker"),
        ("kafka://broker:many", "not HOST:PORT"),
        ("kafka://broker:99999", "not HOST:PORT"),
        ("kafka://broker/a/b", "prefix 'a/b' may hold letters"),
        ("kafka://broker/?acks=1", "ANYLOOP_KAFKA_"),
        ("kafka://ann:secret@broker:9092", "ANYLOOP_KAFKA_SASL_PASSWORD"),
    ],
)
def test_a_bad_address_says_what_is_wrong_with_it(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        KafkaAddress.from_url(url)
    assert "secret" not in str(caught.value)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "SASL_MECHANISM": "SCRAM-SHA-256",
        "SASL_USERNAME": "ann",
        "SASL_PASSWORD": "opensesame",
        "COMPRESSION": "gzip",
    }.items():
        monkeypatch.setenv(f"ANYLOOP_KAFKA_{name}", value)
    settings = _settings()
    assert settings.client()["sasl_plain_password"] == "opensesame"
    assert settings.producer()["compression_type"] == "gzip"
    assert "opensesame" not in repr(settings)


def test_kafka_python_knows_every_argument() -> None:
    settings = _settings(
        security_protocol="SASL_SSL", sasl_mechanism="PLAIN", sasl_username="ann", sasl_password="secret"
    )
    assert set(settings.client()) <= set(KafkaAdminClient.DEFAULT_CONFIG)
    assert set(settings.producer()) <= set(KafkaProducer.DEFAULT_CONFIG)
    assert set(settings.consumer()) <= set(KafkaConsumer.DEFAULT_CONFIG)


def test_a_producer_waits_for_all_replicas_and_no_client_creates_topics() -> None:
    producer, consumer = _settings().producer(), _settings().consumer()
    assert producer["acks"] == "all"
    assert producer["enable_idempotence"] is True
    assert producer["compression_type"] is None
    assert producer["allow_auto_create_topics"] is consumer["allow_auto_create_topics"] is False
    assert consumer["enable_auto_commit"] is False


def test_a_heart_beats_three_times_in_a_session() -> None:
    assert _settings(session_timeout_s=1.5).consumer()["heartbeat_interval_ms"] == 500
    assert _settings(session_timeout_s=45).consumer()["heartbeat_interval_ms"] == 3000


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"security_protocol": "SASL_SSL"}, "needs ANYLOOP_KAFKA_SASL_MECHANISM and ANYLOOP_KAFKA_SASL_USERNAME and"),
        (
            {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_username": "ann"},
            "SASL_SSL needs ANYLOOP_KAFKA_SASL_PASSWORD",
        ),
        (
            {
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "SCRAM-SHA-256",
                "sasl_username": "cn=ann",
                "sasl_password": "x",
            },
            "cannot send ',' or '=' in a name by SCRAM",
        ),
        ({"sasl_username": "ann"}, "SASL_USERNAME is set but .*PLAINTEXT sends no credentials"),
        ({"ssl_cafile": "ca.pem"}, "SSL_CAFILE is set but .*PLAINTEXT uses no TLS"),
        ({"security_protocol": "SSL", "ssl_cafile": "missing.pem"}, "SSL_CAFILE=missing.pem: not a readable PEM"),
        ({"security_protocol": "SSL", "ssl_keyfile": "key.pem"}, "without ANYLOOP_KAFKA_SSL_CERTFILE"),
        ({"security_protocol": "SSL", "ssl_certfile": "missing.pem"}, "SSL_CERTFILE=missing.pem"),
        ({"delivery_timeout_s": 5}, "DELIVERY_TIMEOUT_S=5 must be at least .* = 10 seconds"),
        ({"max_poll_interval_s": 5}, "MAX_POLL_INTERVAL_S=5 must not be less"),
        ({"sasl_mechanism": "GSSAPI"}, "'PLAIN', 'SCRAM-SHA-256' or 'SCRAM-SHA-512'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        _settings(**values)


def test_a_codec_that_is_not_installed_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyloop.log.kafka_settings._CODECS", {"zstd": (lambda: False, "zstandard")})
    with pytest.raises(ValidationError, match="pip install zstandard, or use gzip or none"):
        _settings(compression="zstd")


def test_the_password_of_a_client_key_is_checked_without_asking_anybody(key_pair: tuple[Path, Path]) -> None:
    certificate, key = key_pair
    good = _settings(security_protocol="SSL", ssl_certfile=certificate, ssl_keyfile=key, ssl_password="sesame")
    assert good.client()["ssl_password"] == "sesame"
    for wrong in ({}, {"ssl_password": "guess"}):
        with pytest.raises(ValidationError, match="ANYLOOP_KAFKA_SSL_PASSWORD is not the key's"):
            _settings(security_protocol="SSL", ssl_certfile=certificate, ssl_keyfile=key, **wrong)


def test_no_complaint_shows_a_password() -> None:
    with pytest.raises(ValidationError) as caught:
        _settings(sasl_username="ann", sasl_password="opensesame", timeout_s=0)
    assert "opensesame" not in str(caught.value)


def test_checksums_of_batches_are_not_computed_in_python() -> None:
    util = importlib.import_module("kafka.record.util")
    assert util.crc32c_c is not None, "kafka-python[crc32c]: its Python fallback takes most of the time of an append"
