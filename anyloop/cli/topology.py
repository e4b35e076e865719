"""Which processes make one machine's AnyLoop, with their ports, environment, and order of start. Pure data."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.probes import GrpcHealth, HttpOk, KafkaAnswers, Probe
from anyloop.config import Settings

KAFKA = "kafka"  # the service that `--log kafka` brings
_KAFKA_PORT = 9092
_TRITON_HTTP, _TRITON_GRPC, _TRITON_METRICS = 8000, 8001, 8002
_FIRST_METRICS_PORT = 9101
_METERED = ("decoders", "policy", "critique", "gateway", "trainer", "gate")


@dataclass(frozen=True)
class ServiceSpec:
    """One supervised process. It is started when every service named in `after` is ready."""

    name: str
    argv: tuple[str, ...]
    probe: Probe
    address: str  # shown to people
    ports: tuple[int, ...]
    after: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    stop_seconds: float = 15.0  # time to drain before it is killed


@dataclass(frozen=True)
class Topology:
    """Every service in order of start, and the addresses a person or a client needs."""

    services: tuple[ServiceSpec, ...]
    gateway_url: str
    urls: Mapping[str, str]


def local_broker_url(port_offset: int) -> str:
    """What `settings.log_url` must be where `one_machine` brings the broker."""
    return f"kafka://127.0.0.1:{_KAFKA_PORT + port_offset}"


def one_machine(
    settings: Settings,
    *,
    port_offset: int = 0,
    trainer: bool = True,
    algorithm: str = "dpo",
    gate_suite: str = "",
    broker: bool = False,
) -> Topology:
    """The whole loop on this machine, every port moved by `port_offset`; with `broker` the Kafka broker of its log is
    one of the services. Raises CommandError for ports over 65535."""
    port = {
        name: getattr(settings, name) + port_offset
        for name in (
            "gateway_port",
            "edge_grpc_port",
            "policy_port",
            "critique_port",
            "decoder_port",
            "policy_control_port",
            "critique_control_port",
        )
    }
    metrics = {name: _FIRST_METRICS_PORT + n + port_offset for n, name in enumerate(_METERED)}
    triton = {base: base + port_offset for base in (_TRITON_HTTP, _TRITON_GRPC, _TRITON_METRICS)}
    kafka_port = _KAFKA_PORT + port_offset
    for number in (*port.values(), *metrics.values(), *triton.values(), kafka_port):
        if not 1 <= number <= 65535:
            raise CommandError(f"--port-offset {port_offset} gives port {number}: use a smaller offset", ExitCode.USAGE)

    host = settings.bind if settings.bind not in ("0.0.0.0", "::") else "127.0.0.1"
    at = {name: f"{host}:{number}" for name, number in port.items()}
    shared = {
        "ANYLOOP_HOME": str(settings.home.absolute()),
        "ANYLOOP_HOST": settings.host,
        "ANYLOOP_MODEL_DIR": str(settings.model_dir.absolute()),
        "ANYLOOP_TRITON_URL": f"127.0.0.1:{triton[_TRITON_GRPC]}",
        **{f"ANYLOOP_{name.upper()}": str(number) for name, number in port.items()},
        **{f"ANYLOOP_{name.removesuffix('_port').upper()}_TARGET": at[name] for name in _TARGETS},
        **({"ANYLOOP_LOG_URL": settings.log_url} if settings.log_url else {}),
        # The decode loop wants one core, not a pool: two OpenMP threads beside other work are 10-40 times slower.
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "ANYLOOP_HEALTH_PORT": "0",  # one for all would be taken by the first
    }

    def service(
        name: str,
        module: str,
        probe: Probe,
        address: str,
        ports: tuple[int, ...],
        *arguments: str,
        after: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
        stop_seconds: float = settings.drain_seconds + 5.0,
    ) -> ServiceSpec:
        extra = {"ANYLOOP_METRICS_PORT": str(metrics[name])} if name in metrics else {}
        return ServiceSpec(
            name=name,
            argv=(sys.executable, "-m", module, *arguments),
            probe=probe,
            address=address,
            ports=(*ports, metrics[name]) if name in metrics else ports,
            after=after,
            env={**shared, **extra, **(env or {})},
            stop_seconds=stop_seconds,
        )

    gateway_url = f"http://{at['gateway_port']}"
    services = []
    first: tuple[str, ...] = ()
    if broker:
        address = f"127.0.0.1:{kafka_port}"
        flags = ["kafka", "--folder", str(settings.home.absolute() / "kafka"), "--port", str(kafka_port)]
        probe = KafkaAnswers("127.0.0.1", kafka_port)
        services.append(service(KAFKA, "anyloop.cli", probe, address, (kafka_port,), *flags, stop_seconds=25.0))
        first = (KAFKA,)
    models = first
    if settings.host == "triton":
        address = f"127.0.0.1:{triton[_TRITON_GRPC]}"
        flags = [f"--http-port={triton[_TRITON_HTTP]}", f"--metrics-port={triton[_TRITON_METRICS]}"]
        flags += ["--address=127.0.0.1"]  # behind the services, whatever they listen on
        services.append(
            service(
                "triton", "services.triton", GrpcHealth(address), address, tuple(triton.values()), *flags, after=first
            )
        )
        models = (*first, "triton")
    for name, module, ports in (
        ("decoders", "services.decoders", (port["decoder_port"],)),
        ("policy", "services.policy", (port["policy_port"], port["policy_control_port"])),
        ("critique", "services.critique", (port["critique_port"], port["critique_control_port"])),
    ):
        address = f"{host}:{ports[0]}"
        services.append(service(name, module, GrpcHealth(address, settings), address, ports, after=models))
    services.append(
        service(
            "gateway",
            "services.gateway",
            HttpOk(f"{gateway_url}/ready"),
            gateway_url,
            (port["gateway_port"], port["edge_grpc_port"]),
            after=("decoders", "policy", "critique"),
        )
    )
    if trainer:
        # The learner is never told of the suite: it must not see what judges it.
        suite = {"ANYLOOP_GATE_SUITE": gate_suite} if gate_suite else {}
        for name, module, arguments, env in (
            ("gate", "trainer.gate", (), suite),
            ("trainer", "trainer", ("--algorithm", algorithm), {}),
        ):
            url = f"http://{host}:{metrics[name]}/metrics"
            services.append(service(name, module, HttpOk(url), url, (), *arguments, after=("gateway",), env=env))
    return Topology(
        services=tuple(services),
        gateway_url=gateway_url,
        urls={
            "console": gateway_url,
            "REST": f"{gateway_url}/v1",
            "API docs": f"{gateway_url}/docs",
            "gRPC": at["edge_grpc_port"],
            "log": settings.effective_log_url,
            "control (policy)": at["policy_control_port"],
            "control (critique)": at["critique_control_port"],
            **{f"metrics ({name})": f"http://{host}:{metrics[name]}/metrics" for name in ("policy", "critique")},
        },
    )


def log_file(settings: Settings, service: str) -> Path:
    return settings.home.absolute() / "logs" / f"{service}.log"


_TARGETS = ("policy_port", "critique_port", "policy_control_port", "critique_control_port", "decoder_port")
