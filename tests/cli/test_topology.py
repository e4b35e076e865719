from pathlib import Path

import pytest

from anyloop.cli.exits import CommandError
from anyloop.cli.topology import Topology, one_machine
from anyloop.config import Settings


def _settings(**changes: object) -> Settings:
    return Settings(_env_file=None, home=Path("somewhere"), **changes)  # type: ignore[arg-type, call-arg]


@pytest.fixture(autouse=True)
def _no_log_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANYLOOP_LOG_URL", raising=False)


def _names(topology: Topology) -> list[str]:
    return [spec.name for spec in topology.services]


def test_everything_starts_after_what_it_needs() -> None:
    topology = one_machine(_settings())
    assert _names(topology) == ["triton", "decoders", "policy", "critique", "gateway", "gate", "trainer"]
    seen: set[str] = set()
    for spec in topology.services:
        assert seen.issuperset(spec.after), spec.name
        seen.add(spec.name)


def test_inprocess_has_no_triton_and_nothing_waits_for_it() -> None:
    topology = one_machine(_settings(host="inprocess"))
    assert "triton" not in _names(topology)
    assert all("triton" not in spec.after for spec in topology.services)
    assert {spec.env["ANYLOOP_HOST"] for spec in topology.services} == {"inprocess"}


def test_without_the_trainer_there_is_no_gate_either() -> None:
    assert _names(one_machine(_settings(), trainer=False))[-1] == "gateway"


def test_no_port_is_used_twice() -> None:
    ports = [port for spec in one_machine(_settings()).services for port in spec.ports]
    assert len(ports) == len(set(ports))


def test_the_offset_moves_every_port_and_every_address() -> None:
    plain, moved = one_machine(_settings()), one_machine(_settings(), port_offset=1000)
    for before, after in zip(plain.services, moved.services, strict=True):
        assert [port + 1000 for port in before.ports] == list(after.ports)
    env = moved.services[-1].env
    assert env["ANYLOOP_POLICY_PORT"] == "51051"
    assert env["ANYLOOP_POLICY_TARGET"] == "127.0.0.1:51051"
    assert env["ANYLOOP_CRITIQUE_CONTROL_TARGET"] == "127.0.0.1:51062"
    assert env["ANYLOOP_TRITON_URL"] == "127.0.0.1:9001"
    assert moved.gateway_url == "http://127.0.0.1:9080"


def test_an_offset_beyond_the_last_port_is_refused() -> None:
    with pytest.raises(CommandError, match="smaller offset"):
        one_machine(_settings(), port_offset=20000)


def test_services_run_on_one_thread_and_share_one_absolute_home() -> None:
    for spec in one_machine(_settings()).services:
        assert spec.env["OMP_NUM_THREADS"] == "1"
        assert Path(spec.env["ANYLOOP_HOME"]) == Path("somewhere").absolute()


def test_the_algorithm_reaches_the_trainer_and_the_suite_the_gate() -> None:
    by_name = {spec.name: spec for spec in one_machine(_settings(), algorithm="ppo", gate_suite="pkg:suite").services}
    assert by_name["trainer"].argv[-2:] == ("--algorithm", "ppo")
    assert by_name["gate"].env["ANYLOOP_GATE_SUITE"] == "pkg:suite"


def test_only_the_gate_is_told_of_the_suite() -> None:
    for spec in one_machine(_settings(), gate_suite="pkg:suite").services:
        assert ("ANYLOOP_GATE_SUITE" in spec.env) == (spec.name == "gate")


def test_servers_bound_to_all_addresses_are_reached_over_loopback() -> None:
    topology = one_machine(_settings(bind="0.0.0.0"))
    assert topology.services[-1].env["ANYLOOP_POLICY_TARGET"] == "127.0.0.1:50051"


def test_a_broker_starts_before_all_others_and_all_are_told_of_it() -> None:
    topology = one_machine(_settings(log_url="kafka://127.0.0.1:10092"), port_offset=1000, broker=True)
    kafka, *others = topology.services
    assert kafka.name == "kafka"
    assert kafka.argv[-4:] == ("--folder", str(Path("somewhere").absolute() / "kafka"), "--port", "10092")
    assert kafka.ports == (10092,)
    for spec in others:
        needs, todo = set[str](), [*spec.after]
        while todo:
            name = todo.pop()
            needs.add(name)
            todo += next(other for other in topology.services if other.name == name).after
        assert "kafka" in needs, spec.name
        assert spec.env["ANYLOOP_LOG_URL"] == "kafka://127.0.0.1:10092"
    assert topology.urls["log"] == "kafka://127.0.0.1:10092"


def test_without_a_broker_nothing_is_said_of_the_log() -> None:
    topology = one_machine(_settings())
    assert all("ANYLOOP_LOG_URL" not in spec.env for spec in topology.services)
    assert topology.urls["log"].startswith("sqlite:///")
