"""TLS and SASL on a real broker: who is let in, and what those are told who are not."""

import gc
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ScramMechanism, UserScramCredentialUpsertion

from anyloop.cli.kafka.broker import LocalBroker, free_port
from anyloop.log import FEEDBACK, Event, LogError, TopicSpec
from anyloop.log.kafka import KafkaLog
from anyloop.log.kafka_access import check_access
from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings
from protos.anyloop.v1 import events_pb2

_SECURITY = "org.apache.kafka.common.security"


class Authority:
    """Signs certificates. Keys are P-256: RSA keys take seconds on a slow core."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self.certificate = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        _openssl("req", "-x509", *_new_key(self._key), "-subj", f"/CN={name}", "-days", "2", "-out", self.certificate)

    def issue(self, name: str, subject: str) -> tuple[Path, Path]:
        """A certificate for `subject`, as openssl writes alternative names, and its private key."""
        request, key, certificate = (self._folder / f"{name}.{suffix}" for suffix in ("csr", "key", "pem"))
        _openssl("req", *_new_key(key), "-subj", f"/CN={name}", "-addext", f"subjectAltName={subject}", "-out", request)
        signing = ["-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-days", "2"]
        _openssl("x509", "-req", "-in", request, *signing, "-copy_extensions", "copy", "-out", certificate)
        return certificate, key


@dataclass(frozen=True)
class SecureBroker:
    """One broker; what its listeners want stands in their names."""

    ports: dict[str, int]
    authority: Authority
    stranger: Authority

    def log(self, listener: str, host: str = "127.0.0.1", **settings: object) -> KafkaLog:
        return KafkaLog(KafkaAddress((f"{host}:{self.ports[listener]}",), "t."), _settings(**settings))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, new_broker: Callable[..., LocalBroker]) -> Iterator[SecureBroker]:
    folder = tmp_path_factory.mktemp("secure-kafka")
    authority, stranger = Authority(folder, "authority"), Authority(folder, "stranger")
    listeners = {
        "TLS": ("SSL", free_port()),
        "MUTUAL": ("SSL", free_port()),
        "GUARDED": ("SASL_PLAINTEXT", free_port()),
        "BOTH": ("SASL_SSL", free_port()),
        "SCRAM": ("SASL_SSL", free_port()),
    }
    settings = _tls_settings(folder, authority) | _sasl_settings()
    plain = new_broker(settings=settings, extra_listeners=listeners)
    admin = KafkaAdminClient(bootstrap_servers=plain.address)
    mechanisms = (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512)
    for mechanism in mechanisms:  # one change of a user in a request
        ann = UserScramCredentialUpsertion("ann", mechanism, "sesame", iterations=4096)
        assert admin.alter_user_scram_credentials([ann]) == {"ann": None}
    admin.close()
    ports = {name: port for name, (_, port) in listeners.items()}
    yield SecureBroker(ports | {"PLAIN": plain.port}, authority, stranger)
    plain.erase()


def test_a_trusted_certificate_lets_events_through_tls(broker: SecureBroker) -> None:
    with broker.log("TLS", security_protocol="SSL", ssl_cafile=broker.authority.certificate) as log:
        _round_trip(log)


def test_an_untrusted_certificate_is_refused_at_once_and_for_good(broker: SecureBroker) -> None:
    with broker.log("TLS", security_protocol="SSL", ssl_cafile=broker.stranger.certificate) as log:
        refusal = _refusal(log)
    assert "certificate is not trusted" in refusal
    assert "set ANYLOOP_KAFKA_SSL_CAFILE" in refusal


def test_a_certificate_must_name_the_host_unless_that_is_waived(broker: SecureBroker) -> None:
    tls = {"security_protocol": "SSL", "ssl_cafile": broker.authority.certificate}
    with broker.log("TLS", "localhost", **tls) as log:
        assert "a host name that it names" in _refusal(log)
    with broker.log("TLS", "localhost", **tls, ssl_check_hostname=False) as log:
        _round_trip(log)


def test_a_broker_that_wants_a_client_certificate_gets_one_or_refuses(broker: SecureBroker) -> None:
    tls = {"security_protocol": "SSL", "ssl_cafile": broker.authority.certificate}
    certificate, key = broker.authority.issue("client", "DNS:client")
    with broker.log("MUTUAL", **tls, ssl_certfile=certificate, ssl_keyfile=key) as log:
        _round_trip(log)
    with broker.log("MUTUAL", **tls) as log:
        assert "ANYLOOP_KAFKA_SSL_CERTFILE where it asks for a certificate" in _refusal(log)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("listener", ["GUARDED", "BOTH"])
def test_a_user_with_the_right_password_is_let_in(mechanism: str, listener: str, broker: SecureBroker) -> None:
    with broker.log(listener, **_credentials(broker, listener, mechanism)) as log:
        _round_trip(log)


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
@pytest.mark.parametrize("wrong", [{"sasl_password": "guess"}, {"sasl_username": "bob"}])
def test_a_wrong_user_or_password_is_refused_at_once_and_for_good(
    mechanism: str, wrong: dict[str, str], broker: SecureBroker
) -> None:
    with broker.log("GUARDED", **(_credentials(broker, "GUARDED", mechanism) | wrong)) as log:
        refusal = _refusal(log)
    assert f"user {wrong.get('sasl_username', 'ann')!r} was not let in by {mechanism}" in refusal
    assert "check ANYLOOP_KAFKA_SASL_USERNAME and ANYLOOP_KAFKA_SASL_PASSWORD" in refusal
    assert "guess" not in refusal


def test_a_mechanism_that_is_not_offered_is_refused_with_those_that_are(broker: SecureBroker) -> None:
    with broker.log("PLAIN", **_credentials(broker, "GUARDED", "PLAIN")) as log:
        assert "set ANYLOOP_KAFKA_SECURITY_PROTOCOL to what this listener" in _refusal(log)
    only_scram = _credentials(broker, "BOTH", "PLAIN") | {"security_protocol": "SASL_SSL"}
    with broker.log("SCRAM", **only_scram) as log:
        assert "the broker offers SCRAM-SHA-512, not PLAIN" in _refusal(log)


def test_tls_on_a_port_without_it_is_refused_at_once(broker: SecureBroker) -> None:
    with broker.log("PLAIN", security_protocol="SSL", ssl_cafile=broker.authority.certificate) as log:
        assert "speaks no TLS; set ANYLOOP_KAFKA_SECURITY_PROTOCOL to PLAINTEXT" in _refusal(log)


# kafka-python leaves the socket of an attempt that was cut short with bytes unsent to the collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("listener", ["TLS", "GUARDED"])
def test_a_port_that_wants_more_than_plain_text_stays_silent_and_the_error_says_where_to_look(
    listener: str, broker: SecureBroker
) -> None:
    with broker.log(listener, timeout_s=2.0) as log, pytest.raises(LogError) as caught:
        log.end_offsets(FEEDBACK)
    assert "is ANYLOOP_KAFKA_SECURITY_PROTOCOL what its port speaks?" in str(caught.value)
    gc.collect()


def test_nobody_there_is_no_refusal() -> None:
    away = KafkaAddress((f"127.0.0.1:{free_port()}",))
    assert check_access(away, _settings(security_protocol="SSL")) is False


def test_a_mute_broker_costs_the_time_limit_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections, answers nothing
        address = KafkaAddress((f"127.0.0.1:{mute.getsockname()[1]}",))
        begun = time.monotonic()
        with (
            KafkaLog(address, _settings(security_protocol="SSL", timeout_s=2.0)) as log,
            pytest.raises(LogError) as caught,
        ):
            log.end_offsets(FEEDBACK)
    assert caught.value.retriable
    assert time.monotonic() - begun < 3.5


def _credentials(broker: SecureBroker, listener: str, mechanism: str) -> dict[str, object]:
    tls = {"ssl_cafile": broker.authority.certificate} if listener == "BOTH" else {}
    protocol = "SASL_SSL" if listener == "BOTH" else "SASL_PLAINTEXT"
    user = {"sasl_mechanism": mechanism, "sasl_username": "ann", "sasl_password": "sesame"}
    return {"security_protocol": protocol, **user, **tls}


def _settings(**values: object) -> KafkaSettings:
    return KafkaSettings(_env_file=None, **values)  # type: ignore[arg-type, call-arg]


def _round_trip(log: KafkaLog) -> None:
    """Admin client, producer and consumer, each through its own connection."""
    log.apply_topics([TopicSpec(FEEDBACK, partitions=1)])
    sent = Event.wrap(events_pb2.FeedbackEvent(feedback_id="f"), key="k", source="tests")
    position = log.append(FEEDBACK, sent)
    assert [record.event for record in log.read(FEEDBACK, partition=0, offset=position.offset)] == [sent]
    with log.consumer("readers", [FEEDBACK]) as consumer:
        assert consumer.poll(timeout=10.0)


def _refusal(log: KafkaLog) -> str:
    """Every operation is refused in the same words, and none is worth repeating."""
    said = []
    event = Event.wrap(events_pb2.FeedbackEvent(feedback_id="f"), key="k", source="tests")
    for operation in (
        lambda: log.plan_topics([TopicSpec(FEEDBACK, partitions=1)]),
        lambda: log.append(FEEDBACK, event),
        lambda: log.end_offsets(FEEDBACK),
    ):
        with pytest.raises(LogError) as caught:
            operation()
        assert not caught.value.retriable
        said.append(str(caught.value))
    assert len(set(said)) == 1
    return said[0]


def _tls_settings(folder: Path, authority: Authority) -> dict[str, str]:
    certificate, key = authority.issue("broker", "IP:127.0.0.1")
    store = folder / "store.pem"
    store.write_text(key.read_text() + certificate.read_text())
    settings = {}
    for listener in ("tls", "mutual", "both", "scram"):
        settings[f"listener.name.{listener}.ssl.keystore.type"] = "PEM"
        settings[f"listener.name.{listener}.ssl.keystore.location"] = str(store)
        settings[f"listener.name.{listener}.ssl.truststore.type"] = "PEM"
        settings[f"listener.name.{listener}.ssl.truststore.location"] = str(authority.certificate)
    return settings | {"listener.name.mutual.ssl.client.auth": "required"}


def _sasl_settings() -> dict[str, str]:
    scram = f"{_SECURITY}.scram.ScramLoginModule required;"
    settings = {"sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"}
    for listener in ("guarded", "both", "scram"):
        name = f"listener.name.{listener}"
        settings[f"{name}.plain.sasl.jaas.config"] = f'{_SECURITY}.plain.PlainLoginModule required user_ann="sesame";'
        settings[f"{name}.scram-sha-256.sasl.jaas.config"] = scram
        settings[f"{name}.scram-sha-512.sasl.jaas.config"] = scram
    return settings | {"listener.name.scram.sasl.enabled.mechanisms": "SCRAM-SHA-512"}


def _new_key(path: Path) -> list[str | Path]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path]


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
