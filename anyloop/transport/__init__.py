"""How processes of the loop reach each other over gRPC: certificates that are renewed while they run, channels that
spread requests over the replicas that serve."""

from anyloop.transport.certificates import CertificateFiles, Certificates, TransportError, certificate_files
from anyloop.transport.channels import channel_options, open_channel, open_sync_channel
from anyloop.transport.credentials import channel_credentials, edge_credentials, server_credentials
from anyloop.transport.resolve import Address, addresses

__all__ = [
    "Address",
    "CertificateFiles",
    "Certificates",
    "TransportError",
    "addresses",
    "certificate_files",
    "channel_credentials",
    "channel_options",
    "edge_credentials",
    "open_channel",
    "open_sync_channel",
    "server_credentials",
]
