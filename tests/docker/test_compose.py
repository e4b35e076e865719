"""The compose file runs what the tests run: the same broker, set up in the ways that AnyLoop depends on."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from anyloop.cli.kafka.artifacts import broker_version
from anyloop.cli.kafka.broker import LocalBroker

COMPOSE = Path(__file__).parents[2] / "docker" / "compose.yaml"


@pytest.fixture(scope="module")
def kafka() -> dict[str, Any]:
    service: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]["kafka"]
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
    assert kafka["ports"] == ["127.0.0.1:9092:9092"]


def test_data_are_on_a_volume_and_the_broker_is_watched(kafka: dict[str, Any]) -> None:
    assert f"kafka-data:{_settings(kafka)['log.dirs']}" in kafka["volumes"]
    assert "kafka-data" in yaml.safe_load(COMPOSE.read_text())["volumes"]
    assert kafka["healthcheck"]["test"][0] == "CMD"


def test_values_are_strings_as_environment_variables_are(kafka: dict[str, Any]) -> None:
    assert all(isinstance(value, str) for value in kafka["environment"].values())


def test_what_it_sets_apart_from_addresses_is_what_the_broker_of_the_tests_has(
    kafka: dict[str, Any], tmp_path: Path
) -> None:
    ours = dict(line.split("=", 1) for line in LocalBroker(tmp_path)._properties().splitlines())
    addresses = {"listeners", "advertised.listeners", "listener.security.protocol.map", "inter.broker.listener.name"}
    addresses |= {"controller.quorum.voters", "log.dirs"}
    theirs = {name: value for name, value in _settings(kafka).items() if name not in addresses}
    assert {name: ours.get(name) for name in theirs} == theirs
