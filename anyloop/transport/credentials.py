"""gRPC credentials from the settings. None means: in plain text, because no certificates are set."""

import grpc

from anyloop.config import Settings
from anyloop.transport.certificates import (
    CertificateFiles,
    Certificates,
    TransportError,
    certificate_files,
    shared_files,
)


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Of one server between the services (make another for the next one): only who holds a certificate of the same
    authority gets through the handshake. Every handshake uses the newest files; a connection keeps what it began
    with. Raises TransportError."""
    files = certificate_files(settings)
    return None if files is None else _rotating(files)


def edge_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Of the gateway's gRPC port: encrypted, and clients prove who they are by keys, not certificates.
    Raises TransportError."""
    cert, key = settings.edge_tls_cert, settings.edge_tls_key
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise TransportError("TLS of the edge needs ANYLOOP_EDGE_TLS_CERT and ANYLOOP_EDGE_TLS_KEY: set both or none")
    return _rotating(shared_files(cert, key, None))


def channel_credentials(settings: Settings) -> grpc.ChannelCredentials | None:
    """Of a client, with the certificates as they are now; `open_channel` also follows their renewal.
    Raises TransportError."""
    files = certificate_files(settings)
    return None if files is None else of_client(files.current())


def of_client(certificates: Certificates) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(certificates.ca, certificates.key, certificates.cert)


def _rotating(files: CertificateFiles) -> grpc.ServerCredentials:
    used = files.current()

    def newer() -> grpc.ServerCertificateConfiguration | None:
        """Asked at every handshake; None: as before."""
        nonlocal used
        certificates = files.current()
        if certificates is used:
            return None
        used = certificates
        return _configuration(certificates)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(used), newer, require_client_authentication=used.ca is not None
    )


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(certificates.key, certificates.cert)], certificates.ca)
