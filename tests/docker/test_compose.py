"""The compose file runs what the tests run: the same broker, set up in the ways that AnyLoop depends on; and the
services as a cluster would run them."""

import json
import re
from pathlib import Path
from typing import Any

import botocore.configprovider
import pytest
import yaml

from anyloop.cli.kafka.artifacts import broker_version
from anyloop.cli.kafka.broker import LocalBroker
from anyloop.config import Settings
from tests.docker.compose_project import DOCKER, InvalidCompose, load

OURS = ("bootstrap", "triton", "policy", "critique", "decoders", "gateway", "trainer", "gate")


@pytest.fixture(scope="module")
def kafka(project: dict[str, Any]) -> dict[str, Any]:
    service: dict[str, Any] = project["services"]["kafka"]
    return service


def _settings(kafka: dict[str, Any]) -> dict[str, str]:
    """As the image's entry point makes them of its environment."""
    return {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in kafka["environment"].items()
        if name.startswith("KAFKA_") and not name.startswith("KAFKA_HEAP")
    }


def test_the_image_is_the_version_that_the_tests_run_on(kafka: dict[str, Any]) -> None:
    assert kafka["image"] == f"apache/kafka:{broker_version()}"


def test_every_listener_is_mapped_and_advertised_and_only_this_machine_reaches_it(kafka: dict[str, Any]) -> None:
    settings = _settings(kafka)
    listeners = {entry.partition("://")[0] for entry in settings["listeners"].split(",")}
    mapped = {entry.partition(":")[0] for entry in settings["listener.security.protocol.map"].split(",")}
    advertised = {entry.partition("://")[0] for entry in settings["advertised.listeners"].split(",")}
    assert mapped == listeners
    assert advertised == listeners - {settings["controller.listener.names"]}
    assert _published(kafka) == ["127.0.0.1:9092"]


def test_data_are_on_a_volume_and_the_broker_is_watched(kafka: dict[str, Any], project: dict[str, Any]) -> None:
    assert ("kafka-data", _settings(kafka)["log.dirs"]) in _volumes(kafka)
    assert "kafka-data" in project["volumes"]
    assert kafka["healthcheck"]["test"][0] == "CMD"


def test_what_it_sets_apart_from_addresses_is_what_the_broker_of_the_tests_has(
    kafka: dict[str, Any], tmp_path: Path
) -> None:
    ours = dict(line.split("=", 1) for line in LocalBroker(tmp_path)._properties().splitlines())
    addresses = {"listeners", "advertised.listeners", "listener.security.protocol.map", "inter.broker.listener.name"}
    addresses |= {"controller.quorum.voters", "log.dirs"}
    theirs = {name: value for name, value in _settings(kafka).items() if name not in addresses}
    assert {name: ours.get(name) for name in theirs} == theirs


def test_without_a_profile_kafka_alone_starts(project: dict[str, Any]) -> None:
    assert [name for name, service in project["services"].items() if not service.get("profiles")] == ["kafka"]


def test_no_port_is_open_to_other_machines(project: dict[str, Any]) -> None:
    published = [port for service in project["services"].values() for port in _published(service)]
    assert len(published) == 6
    assert all(port.startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("name", OURS)
def test_our_services_run_as_in_a_cluster(project: dict[str, Any], name: str) -> None:
    service = project["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "user", "network_mode", "pid"} & service.keys()
    written = {place for _, place in _volumes(service)} | {entry.partition(":")[0] for entry in service["tmpfs"]}
    # The image's homes: what is not mounted there cannot be written.
    assert {"/tmp", "/var/lib/anyloop"} <= written or name == "bootstrap"
    if service["environment"]["ANYLOOP_MEDIA_URL"].startswith("file:") and name != "bootstrap":
        assert "/var/lib/anyloop-media" in written


@pytest.mark.parametrize("name", OURS)
def test_settings_are_ones_that_our_programs_read(project: dict[str, Any], name: str) -> None:
    ours = {key for key in project["services"][name]["environment"] if key.startswith("ANYLOOP_")}
    assert ours <= {f"ANYLOOP_{field.upper()}" for field in Settings.model_fields}


def test_triton_has_the_time_that_it_takes_to_end_and_its_log_is_the_containers(project: dict[str, Any]) -> None:
    assert _seconds(project["services"]["triton"]["stop_grace_period"]) >= 15  # its exit timeout is 10
    (command,) = re.findall(r"^CMD (\[.*\])$", (DOCKER / "triton" / "Dockerfile").read_text(), re.MULTILINE)
    assert project["services"]["triton"].get("command") is None
    assert "--log-to-stdout" in json.loads(command)


def _seconds(duration: str) -> float:
    minutes = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert minutes, duration
    return 60 * int(minutes[1] or 0) + int(minutes[2] or 0)


def test_the_region_is_told_by_the_name_that_the_s3_client_reads(project: dict[str, Any]) -> None:
    names = set(project["services"]["gateway"]["environment"])
    assert botocore.configprovider.BOTOCORE_DEFAUT_SESSION_VARIABLES["region"][1] in names
    assert {name for name in names if "REGION" in name} == {"AWS_DEFAULT_REGION"}


def test_targets_are_services_of_the_project(project: dict[str, Any]) -> None:
    environment = project["services"]["gateway"]["environment"]
    hosts = {value.partition(":")[0] for key, value in environment.items() if key.endswith(("_TARGET", "_TRITON_URL"))}
    assert hosts == {"policy", "critique", "decoders", "triton"}
    assert hosts <= project["services"].keys()
    assert environment["AWS_ENDPOINT_URL"] == "http://storage:7070"
    for key, value in environment.items():
        if key.endswith("_TARGET"):
            default = getattr(Settings(), key.removeprefix("ANYLOOP_").lower())
            assert value.rpartition(":")[2] == default.rpartition(":")[2], key


def test_images_are_pinned_and_built_from_files_that_exist(project: dict[str, Any]) -> None:
    for name, service in project["services"].items():
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*(@sha256:[0-9a-f]{64})?", service["image"]), name
        if "build" in service:
            assert service["image"].startswith("anyloop/")
            assert (Path(service["build"]["context"]) / service["build"]["dockerfile"]).exists()
            assert all(service["build"]["args"].values())


def test_prometheus_scrapes_every_service_by_its_metrics_port(project: dict[str, Any]) -> None:
    jobs = yaml.safe_load((DOCKER / "compose" / "prometheus.yml").read_text())["scrape_configs"]
    targets = {target for job in jobs for group in job["static_configs"] for target in group["targets"]}
    expected = {f"{name}:{8002 if name == 'triton' else 9100}" for name in OURS if name != "bootstrap"}
    assert targets == expected
    assert expected <= {f"{name}:{port}" for name in project["services"] for port in (8002, 9100)}


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_what_prometheus_and_grafana_are_given_is_there(project: dict[str, Any], name: str) -> None:
    given = [Path(volume["source"]) for volume in project["services"][name]["volumes"] if volume["type"] == "bind"]
    assert len(given) >= 2
    for path in given:
        assert path.is_file() or any(path.iterdir()), path


def test_the_datasource_is_the_prometheus_of_the_project() -> None:
    (source,) = yaml.safe_load((DOCKER / "compose/grafana/datasources/prometheus.yaml").read_text())["datasources"]
    assert (source["url"], source["isDefault"]) == ("http://prometheus:9090", True)


def test_a_gpu_is_added_by_a_file_of_its_own(project: dict[str, Any]) -> None:
    with_gpu = load(DOCKER / "compose.yaml", DOCKER / "compose" / "gpu.yaml")["services"]
    have = [name for name, service in with_gpu.items() if "deploy" in service]
    assert sorted(have) == ["trainer", "triton"]
    assert [name for name, service in project["services"].items() if "deploy" in service] == []


def test_a_misspelt_key_is_refused(project: dict[str, Any], tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("name: a\nservices: {a: {image: 'a:1', read_onyl: true}}\n")
    with pytest.raises(InvalidCompose, match="read_onyl"):
        load(wrong)


def _published(service: dict[str, Any]) -> list[str]:
    return [f"{port.get('host_ip', '')}:{port['published']}" for port in service.get("ports", [])]


def _volumes(service: dict[str, Any]) -> list[tuple[str, str]]:
    return [(volume["source"], volume["target"]) for volume in service.get("volumes", [])]
