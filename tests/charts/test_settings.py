"""Every environment variable that the chart sets is a setting of its process, with a value that the process accepts."""

import re
from collections.abc import Iterable
from pathlib import Path

import certifi
import pytest
from pydantic_settings import BaseSettings

from anyloop.config import Settings
from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings
from k8s.config import ControllerSettings
from tests.charts.rendering import ALL, EXAMPLES, ROOT, environment, example, pod_specs, render, rendered
from trainer.config import TrainerSettings
from trainer.gate.config import GateSettings

READ_BY: dict[str, tuple[type[BaseSettings], ...]] = {
    "trainer": (Settings, KafkaSettings, TrainerSettings),
    "gate": (Settings, KafkaSettings, GateSettings),
    "controller": (Settings, KafkaSettings, ControllerSettings),
}
EVERY_PROCESS = (Settings, KafkaSettings)
# What others than our own settings read: Python, OpenMP, the S3 client, torchrun's rank.
FOREIGN = {
    "PYTHONUNBUFFERED",
    "OMP_NUM_THREADS",
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "NODE_RANK",
}
# Containers that are not ours, or run a script that stands in the chart.
OTHERS = {"kafka", "test"}


def variables(kinds: Iterable[type[BaseSettings]]) -> set[str]:
    return {
        f"{kind.model_config.get('env_prefix', '')}{field}".upper() for kind in kinds for field in kind.model_fields
    }


def components() -> list[tuple[str, str]]:
    return [(name, component) for name in ALL for component in sorted(set(pod_specs(rendered(name))) - OTHERS)]


@pytest.mark.parametrize(("name", "component"), components())
def test_every_variable_is_a_setting_of_the_process(name: str, component: str) -> None:
    known = variables(READ_BY.get(component, EVERY_PROCESS)) | FOREIGN
    # The settings of all components may be of any.
    anywhere = set(example(name).get("settings", {})) if name in EXAMPLES else set()
    assert set(environment(rendered(name), component)) - known - anywhere == set()


@pytest.mark.parametrize(("name", "component"), components())
def test_every_value_is_accepted(name: str, component: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # no .env file
    given = environment(rendered(name), component)
    for variable, value in given.items():
        # Kafka's settings read the authority at once; here stands another one.
        monkeypatch.setenv(variable, certifi.where() if value == "/etc/anyloop/kafka/ca.crt" else value)
    settings = {kind: kind() for kind in READ_BY.get(component, EVERY_PROCESS)}
    shared = settings[Settings]
    assert isinstance(shared, Settings)
    assert (shared.metrics_port, str(shared.home)) == (9100, "/var/lib/anyloop")
    if component != "decoders":
        assert KafkaAddress.from_url(shared.log_url).servers
    if component in ("policy", "policy-lab", "critique", "decoders", "controller"):
        assert shared.health_port == 8086


def test_a_renamed_setting_would_be_found() -> None:
    assert "ANYLOOP_POLICY_TARGET" in variables([Settings])
    assert "ANYLOOP_NO_SUCH_SETTING" not in variables([Settings, KafkaSettings, TrainerSettings, GateSettings])


@pytest.mark.parametrize("component", ["gateway", "policy", "policy-lab", "critique", "decoders", "trainer", "gate"])
def test_ports_that_are_dialled_are_ports_that_are_listened_on(component: str) -> None:
    """`dns:///anyloop-policy.demo.svc:50051`: there is such a Service, and its pods listen on that port."""
    objects = rendered("everything")
    services = {each["metadata"]["name"]: each for each in objects if each["kind"] == "Service"}
    targets = {name: value for name, value in environment(objects, component).items() if name.endswith("_TARGET")}
    assert bool(targets) == (component != "decoders")
    for value in targets.values():
        found = re.fullmatch(r"dns:///([a-z0-9-]+)\.demo\.svc:(\d+)", value)
        assert found, value
        service = services[found[1]]
        (port,) = [port for port in service["spec"]["ports"] if port["port"] == int(found[2])]
        dialled = pod_specs(objects)[service["spec"]["selector"]["app.kubernetes.io/component"]]
        offered = {each["name"]: each["containerPort"] for each in dialled["containers"][0]["ports"]}
        assert offered[port["targetPort"]] == int(found[2])
        assert service["spec"]["clusterIP"] == "None"


def test_trainer_and_gate_ask_the_lab_where_there_is_one_and_the_gateway_never_does() -> None:
    for name, pool in (("defaults", "policy-lab"), ("laptop", "policy")):
        for component, asked in (("trainer", pool), ("gate", pool), ("gateway", "policy")):
            given = environment(rendered(name), component)
            assert given["ANYLOOP_POLICY_TARGET"] == f"dns:///anyloop-{asked}.demo.svc:50051"


def test_the_gate_leaves_promotions_to_the_controller_only_where_there_is_one() -> None:
    assert environment(rendered("defaults"), "gate")["ANYLOOP_GATE_PROMOTION"] == "rollout"
    alone = render({"rollouts": {"enabled": False}})
    assert environment(alone, "gate")["ANYLOOP_GATE_PROMOTION"] == "direct"
    assert "controller" not in pod_specs(alone)


def test_a_components_settings_win_over_those_of_all_and_both_over_the_charts() -> None:
    values = {
        "settings": {"ANYLOOP_ENGINE_SLOTS": "8", "ANYLOOP_LOG_LEVEL": "DEBUG"},
        "policy": {"settings": {"ANYLOOP_ENGINE_SLOTS": "64"}},
    }
    objects = render(values)
    assert environment(objects, "policy")["ANYLOOP_ENGINE_SLOTS"] == "64"
    assert environment(objects, "critique")["ANYLOOP_ENGINE_SLOTS"] == "8"
    assert environment(objects, "policy")["ANYLOOP_LOG_LEVEL"] == "DEBUG"


def test_secrets_are_referred_to_and_never_rendered() -> None:
    objects = rendered("many-nodes")
    assert not [each for each in objects if each["kind"] == "Secret"]
    given = environment(objects, "gate")
    assert given["ANYLOOP_KAFKA_SASL_PASSWORD"] == "secret:anyloop-kafka/password"
    assert given["AWS_SECRET_ACCESS_KEY"] == "secret:anyloop-objects/secret-access-key"
    assert not [name for name in environment(objects, "decoders") if "KAFKA" in name]
    told = {part for part in pod_specs(objects) if [name for name in environment(objects, part) if "AWS" in name]}
    assert told == {"gateway", "decoders", "gate", "bootstrap"}


def test_those_who_open_the_media_store_have_it_and_nobody_else() -> None:
    parts = {"gateway": "services/gateway", "decoders": "services/decoders", "gate": "trainer/gate"}
    places = {*parts.values(), "services/policy", "services/critique", "services/replica"}
    opening = {
        place
        for place in places
        if any("effective_media_url" in path.read_text(encoding="utf-8") for path in (ROOT / place).rglob("*.py"))
    }
    assert opening == set(parts.values())
    for name, mounted in (("defaults", True), ("many-nodes", False)):
        objects = rendered(name)
        told = {part for part in pod_specs(objects) if "ANYLOOP_MEDIA_URL" in environment(objects, part)}
        assert told == set(parts)
        for part, spec in pod_specs(objects).items():
            volumes = {volume["name"] for volume in spec.get("volumes", [])}
            assert ("media" in volumes) is (mounted and part in parts)
