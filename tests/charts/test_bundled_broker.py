"""The bundled Kafka's settings start a real broker, and the bootstrap Job makes its topics there.

The image turns KAFKA_LISTENERS=... into listeners=...; the same is done here. Host names and ports are this machine's.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from anyloop.bootstrap import make_topics
from anyloop.cli.exits import CommandError
from anyloop.cli.kafka.broker import LocalBroker
from anyloop.config import Settings
from anyloop.log import TOPICS, open_log
from tests.charts.rendering import environment, rendered

pytestmark = pytest.mark.slow
# What the image's start script reads itself.
NOT_PROPERTIES = {"CLUSTER_ID", "KAFKA_HEAP_OPTS"}


class BundledBroker(LocalBroker):
    """A broker with the chart's settings in place of its own."""

    def _properties(self) -> str:
        given = environment(rendered("defaults"), "kafka")
        moved = {
            "anyloop-kafka-0.anyloop-kafka.demo.svc": "127.0.0.1",
            "CLIENTS://:": "CLIENTS://127.0.0.1:",
            "9092": str(self.port),
            "29093": str(self._controller_port),
            "/var/lib/kafka/data/log": str(self._folder / "data"),
        }
        lines = []
        for name, value in given.items():
            if name in NOT_PROPERTIES:
                continue
            for there, here in moved.items():
                value = value.replace(there, here)
            lines.append(f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={value}")
        return "\n".join(lines)

    def _run(self, command: list[str], log: object) -> None:
        # With voters in its settings the storage is formatted as the image does it.
        super()._run([part for part in command if part != "--standalone"], log)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    try:
        with BundledBroker(tmp_path_factory.mktemp("bundled")) as broker:
            yield broker
    except CommandError as error:
        if "ended at its start" in str(error) or "formatted" in str(error) or os.environ.get("CI") == "true":
            pytest.fail(str(error), pytrace=False)
        pytest.skip(f"NO KAFKA BROKER, nothing of this is tested: {error}")


def test_topics_are_made_once_and_only_by_the_bootstrap(broker: LocalBroker, tmp_path: Path) -> None:
    given = environment(rendered("defaults"), "bootstrap")
    settings = Settings(
        home=tmp_path,
        log_url=f"kafka://{broker.address}",
        log_partitions=int(given["ANYLOOP_LOG_PARTITIONS"]),
    )
    make_topics(settings, 30.0)
    with open_log(settings.effective_log_url) as log:
        assert {len(log.end_offsets(spec.name)) for spec in TOPICS} == {1, 4}
    make_topics(settings, 30.0)
