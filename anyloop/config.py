"""Settings of every process: environment variables with the prefix `ANYLOOP_`, or a `.env` file.

Each process reads only its own part. Defaults make one machine work: SQLite log, local folders, loopback addresses.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

TINY_OMNI = Path(__file__).parent / "models" / "tiny_omni"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="ANYLOOP_", env_file=".env", extra="ignore")

    # Where things live
    home: Path = Field(Path(".anyloop"), description="Folder of everything a single machine writes")
    model_dir: Path = Field(TINY_OMNI, description="Base checkpoint: policy, critique start and codecs")
    log_url: str = Field("", description="sqlite:///PATH or kafka://HOST:PORT; empty is sqlite under home")
    media_url: str = Field("", description="fsspec URL of the object store; empty is a folder under home")
    registry_dir: Path | None = Field(None, description="Checkpoint registry; empty is a folder under home")

    # Topics of the log, as `anyloop topics apply` makes them
    log_partitions: int = Field(4, ge=1, description="Of each topic but the checkpoints'; fixed once they exist")
    log_replication: int | None = Field(None, ge=1, description="Copies of each event; empty: the cluster's default")
    log_min_insync: int | None = Field(None, ge=1, description="Copies before an append is acknowledged; likewise")
    log_retention_days: float | None = Field(None, gt=0, description="Older events may go; empty keeps them for ever")

    # Outbox: what was accepted and is not in the log yet, under home/spool
    spool_fsync: Literal["always", "interval", "never"] = Field(
        "always",
        description="When an accepted answer's record is on the disk: at once; every spool_fsync_ms (a power failure "
        "takes what came since); when the kernel likes. None loses anything when a process is killed",
    )
    feedback_fsync: Literal["always", "interval", "never"] = Field(
        "always", description="As spool_fsync, for feedback: its 200 is a promise"
    )
    spool_fsync_ms: float = Field(100.0, gt=0, description="Between two syncs of the policy 'interval'")
    spool_max_bytes: int = Field(
        256 * 2**20, gt=0, description="Of each service's outbox; when it is full feedback is refused with 503"
    )
    unlogged_responses: Literal["serve", "refuse"] = Field(
        "serve", description="Answers whose record the outbox cannot take: serve and count them, or refuse requests"
    )
    follow_responses: bool = Field(
        True,
        description="Each gateway reads all responses, so that it knows those of others. False spares that: `early` "
        "tells only of this gateway's own answers, and feedback on a response id that a client chose, or whose "
        "conversation has a name of over 86 characters, must give conversation_id",
    )

    # Model host
    host: Literal["triton", "inprocess"] = Field("triton", description="Where the models run")
    triton_url: str = Field("127.0.0.1:8001", description="Triton gRPC address")

    # Addresses
    bind: str = Field("127.0.0.1", description="Address the servers listen on")
    gateway_port: int = 8080
    edge_grpc_port: int = 8081
    policy_port: int = 50051
    critique_port: int = 50052
    decoder_port: int = 50053
    policy_control_port: int = 50061
    critique_control_port: int = 50062
    metrics_port: int = Field(0, description="Prometheus port of this process; 0 turns it off")
    policy_target: str = "127.0.0.1:50051"
    critique_target: str = "127.0.0.1:50052"
    decoder_target: str = "127.0.0.1:50053"
    policy_control_target: str = "127.0.0.1:50061"
    critique_control_target: str = "127.0.0.1:50062"

    # gRPC between the services. A target may be one address, `dns:///NAME:PORT` (all addresses behind the name) or
    # `ipv4:HOST:PORT,HOST:PORT`; the last two spread calls over the replicas that serve
    tls_cert: Path | None = Field(
        None,
        description="This process's certificate (PEM, with intermediates); renewed ones are read without a restart",
    )
    tls_key: Path | None = Field(None, description="Its key")
    tls_ca: Path | None = Field(
        None, description="The authority of all services. With these three set every port asks for a certificate of it"
    )
    tls_server_name: str = Field(
        "", description="What certificates of servers that are reached by an IP address must name instead of it"
    )
    control_peers: str = Field(
        "",
        description="Names (DNS names in certificates, by comma) that may load, activate, unload weights and drain; "
        "empty: any certificate of the authority. Others may only read the status",
    )
    edge_tls_cert: Path | None = Field(None, description="Certificate of the gateway's gRPC port; empty: plain text")
    edge_tls_key: Path | None = Field(None, description="Its key")
    health_port: int = Field(
        0, description="Plain text port with grpc.health.v1 and nothing else, for probes that speak no TLS; 0: none"
    )
    drain_seconds: float = Field(
        10.0, ge=0, description="How long running answers may take to end after SIGTERM, before they are cut off"
    )

    # Engine
    engine_slots: int = Field(32, ge=1, description="Requests decoded together")
    engine_max_tokens: int = Field(384, ge=16, description="Longest prompt plus answer, in tokens; sizes the KV cache")
    engine_prefix_rows: int = Field(8, ge=1, description="Prompts read at a time, and remembered for later ones")
    engine_read_ms: float = Field(20.0, gt=0, description="How long one step may hold up answers to read prompts")
    engine_dtype: Literal["float32", "bfloat16"] = Field("float32", description="Of the weight matrices")
    engine_compile: bool = Field(False, description="torch.compile on the decode step")
    engine_queue: int = Field(256, ge=1, description="Requests that may wait for a slot")
    engine_resident_versions: int = Field(
        4, ge=2, description="Versions of the weights in memory: serving, its successor, and staged ones"
    )
    stream_interval_ms: float = Field(
        25.0, ge=0.0, description="Longest that a token waits for company on its way to the client"
    )
    swap_mode: Literal["finish", "keep", "recompute"] = "finish"

    # Gateway
    keys_file: Path | None = Field(None, description="API keys (TOML); empty allows every caller all roles but admin")
    keys_reload_s: float = Field(2.0, gt=0, description="How often the keys file is looked at; no restart is needed")
    public_metrics: Literal["operate", "open", "off"] = Field(
        "operate",
        description="/metrics on the gateway's public port: with a key of the role operate, for everybody, or not at "
        "all. Without a keys file everybody may look; METRICS_PORT is a port of its own, for inside",
    )
    max_image_bytes: int = 8 * 2**20
    max_audio_bytes: int = 16 * 2**20
    max_video_bytes: int = 32 * 2**20
    max_body_bytes: int = 48 * 2**20
    request_timeout_s: float = 120.0
    public_url: str = Field("", description="Base of media URLs; empty uses the request's own host")

    # Logs and traces
    log_level: str = "INFO"
    access_log: bool = Field(False, description="A log line for every request that was answered")
    otlp_endpoint: str = Field(
        "",
        description="Where spans go: OTLP over gRPC, http://HOST:4317 (https:// for TLS). Empty: nowhere, unless "
        "OTEL_EXPORTER_OTLP_ENDPOINT is set; the other OTEL_* variables hold as well",
    )
    trace_content: bool = Field(False, description="Spans carry what people wrote and what was answered")

    @field_validator("tls_cert", "tls_key", "tls_ca", "edge_tls_cert", "edge_tls_key", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return value or None

    @property
    def effective_log_url(self) -> str:
        return self.log_url or f"sqlite:///{(self.home / 'log.db').absolute()}"

    @property
    def effective_media_url(self) -> str:
        return self.media_url or f"file://{(self.home / 'media').absolute()}"

    @property
    def effective_registry_dir(self) -> Path:
        return self.registry_dir or (self.home / "registry").absolute()
