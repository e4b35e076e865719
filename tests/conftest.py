"""A real Kafka broker for the tests that ask for one: one for each process of the run, started by the first such test.

`ANYLOOP_TEST_KAFKA=host:port` names a broker that runs already. Where neither it nor Java and Maven are there, these
tests are skipped, and say so; with CI=true they fail.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from anyloop.cli.exits import CommandError
from anyloop.cli.kafka.broker import LocalBroker


@pytest.fixture(scope="session")
def kafka_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of a broker that tests share; kill one of your own instead."""
    existing = os.environ.get("ANYLOOP_TEST_KAFKA")
    if existing:
        yield existing
        return
    with contextlib.closing(_started(tmp_path_factory.mktemp("kafka"))) as broker:
        yield broker.address


@pytest.fixture
def kafka_url(kafka_servers: str) -> Iterator[str]:
    """A log URL with a prefix of its own: a new, empty log. Its topics and groups are deleted after the test."""
    prefix = f"t{uuid.uuid4().hex[:12]}."
    yield f"kafka://{kafka_servers}/{prefix}"
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=kafka_servers)) as admin:
        if topics := [name for name in admin.list_topics() if name.startswith(prefix)]:
            admin.delete_topics(topics)
        if groups := [group["group_id"] for group in admin.list_groups() if group["group_id"].startswith(prefix)]:
            admin.delete_groups(groups)


class _Closing(LocalBroker):
    close = LocalBroker.erase


def _started(folder: Path) -> _Closing:
    broker = _Closing(folder)
    try:
        broker.start()
    except CommandError as error:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(f"CI needs a Kafka broker: {error}", pytrace=False)
        pytest.skip(f"NO KAFKA BROKER, so nothing on Kafka is tested: {error}; or set ANYLOOP_TEST_KAFKA=host:port")
    return broker
