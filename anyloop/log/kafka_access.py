"""Does the broker let this client in? One TLS and SASL conversation ahead of kafka-python's own.

kafka-python repeats a refused handshake or a wrong password until its time is up, and then has forgotten why.
"""

import socket
import ssl
import time
from contextlib import ExitStack, suppress
from typing import Any

from kafka import errors as kafka
from kafka.net.sasl import get_sasl_mechanism
from kafka.protocol.metadata import ApiVersionsRequest
from kafka.protocol.parser import KafkaProtocol
from kafka.protocol.sasl import SaslAuthenticateRequest, SaslHandshakeRequest

from anyloop.log.errors import LogError
from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings


def check_access(address: KafkaAddress, settings: KafkaSettings, timeout_s: float | None = None) -> bool:
    """Asks the first broker that answers: True when it lets this client in, False when none answers within
    `timeout_s` (default: `settings.timeout_s`). Raises LogError, not retriable, where it refuses: certificates,
    mechanism, user or password. Without TLS and SASL there is nothing to ask, and the answer is True."""
    if not (settings.uses_tls or settings.uses_sasl):
        return True
    deadline = time.monotonic() + (settings.timeout_s if timeout_s is None else timeout_s)
    for server in address.servers:
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            _converse(server, settings, left)
            return True
        except ssl.SSLCertVerificationError as error:
            raise _refusal(
                server,
                f"the broker's certificate is not trusted: {error.verify_message}",
                "set ANYLOOP_KAFKA_SSL_CAFILE to the authority that signed it, and use a host name that it names",
            ) from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError) as error:
            if settings.uses_tls and _answers_in_the_clear(server, settings, left):
                raise _refusal(
                    server,
                    "this port speaks no TLS",
                    "set ANYLOOP_KAFKA_SECURITY_PROTOCOL to PLAINTEXT or SASL_PLAINTEXT, or use the port that does",
                ) from error
            # Else it hung up as a broker does that is being stopped.
        except ssl.SSLError as error:
            raise _refusal(
                server,
                f"no TLS: {error.reason or error}",
                "set ANYLOOP_KAFKA_SECURITY_PROTOCOL to what this port of the broker speaks, and "
                "ANYLOOP_KAFKA_SSL_CERTFILE where it asks for a certificate",
            ) from error
        except OSError:
            continue
    return False


def _converse(server: str, settings: KafkaSettings, timeout_s: float) -> None:
    """Raises LogError where the broker refuses, ssl.SSLError, OSError where it does not answer."""
    host, port = _host_and_port(server)
    with ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((host, port), timeout_s))
        if settings.uses_tls:
            connection = stack.enter_context(settings.ssl_context().wrap_socket(connection, server_hostname=host))
        dialogue = _Dialogue(connection, settings.client_id)
        # TLS 1.3: a broker that misses a certificate says so only when it is read from.
        dialogue.ask(ApiVersionsRequest(), 0)
        if settings.uses_sasl:
            _authenticate(server, host, dialogue, settings)


def _answers_in_the_clear(server: str, settings: KafkaSettings, timeout_s: float) -> bool:
    with suppress(OSError, kafka.KafkaError), socket.create_connection(_host_and_port(server), timeout_s) as plain:
        return _Dialogue(plain, settings.client_id).ask(ApiVersionsRequest(), 0).error_code == 0
    return False


def _host_and_port(server: str) -> tuple[str, int]:
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port)


class _Dialogue:
    """One question and its answer at a time, on a blocking socket."""

    def __init__(self, connection: socket.socket, client_id: str) -> None:
        self._connection = connection
        self._protocol = KafkaProtocol(client_id=client_id)

    def ask(self, request: Any, version: int) -> Any:
        request.API_VERSION = version
        self._protocol.send_request(request)
        self._connection.sendall(self._protocol.send_bytes())
        while True:
            data = self._connection.recv(65536)
            if not data:
                raise ConnectionError("the broker hung up")
            for _, response in self._protocol.receive_bytes(data):
                return response


def _authenticate(server: str, host: str, dialogue: _Dialogue, settings: KafkaSettings) -> None:
    config = settings.client()
    mechanism = config["sasl_mechanism"]
    offer = dialogue.ask(SaslHandshakeRequest(mechanism=mechanism), 1)
    refused = kafka.for_code(offer.error_code)
    if refused is kafka.UnsupportedSaslMechanismError:
        raise _refusal(
            server,
            f"the broker offers {', '.join(offer.mechanisms) or 'no mechanism'}, not {mechanism}",
            "set ANYLOOP_KAFKA_SASL_MECHANISM to one that it offers",
        )
    if refused is not kafka.NoError:
        raise _refusal(
            server,
            f"this port takes no credentials ({refused.__name__})",
            "set ANYLOOP_KAFKA_SECURITY_PROTOCOL to what this listener of the broker speaks",
        )
    exchange = get_sasl_mechanism(mechanism)(host=host, **config)
    try:
        while not exchange.is_done():
            answer = dialogue.ask(SaslAuthenticateRequest(exchange.auth_bytes()), 1)
            if answer.error_code:
                raise _not_let_in(server, settings, answer.error_message or kafka.for_code(answer.error_code).__name__)
            exchange.receive(answer.auth_bytes)
    except (ValueError, KeyError) as error:  # SCRAM: the broker could not prove that it knows the password
        raise _not_let_in(server, settings, str(error)) from error


def _not_let_in(server: str, settings: KafkaSettings, reason: str) -> LogError:
    return _refusal(
        server,
        f"user {settings.sasl_username!r} was not let in by {settings.sasl_mechanism}: {reason}",
        "check ANYLOOP_KAFKA_SASL_USERNAME and ANYLOOP_KAFKA_SASL_PASSWORD",
    )


def _refusal(server: str, what: str, way_out: str) -> LogError:
    return LogError(f"kafka {server}: {what}; {way_out}", retriable=False)
