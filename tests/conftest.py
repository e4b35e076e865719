"""Real Kafka brokers and a real Kubernetes control plane for the tests that ask for one. Without what they are made of
(Java and Maven; Go) such a test is skipped, and says so; with CI=true it fails.
"""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator

import pytest
from kafka import KafkaAdminClient

from anyloop.cli.exits import CommandError
from anyloop.cli.kafka.broker import LocalBroker
from tests.k8s.controlplane.build import ControlPlaneMissing
from tests.k8s.controlplane.cluster import ControlPlane

NewBroker = Callable[..., LocalBroker]


@pytest.fixture(scope="session")
def new_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewBroker]:
    """Starts a broker of the test's own, to be killed, stopped, set up in another way: takes what LocalBroker takes but
    for the folder. Erased at the end of the run, or before by the test."""
    with contextlib.ExitStack() as at_the_end:

        def start(**options: object) -> LocalBroker:
            broker = LocalBroker(tmp_path_factory.mktemp("kafka"), **options)  # type: ignore[arg-type]
            at_the_end.callback(broker.erase)
            try:
                return broker.start()
            except CommandError as error:
                if _in_ci():
                    pytest.fail(f"CI needs a Kafka broker: {error}", pytrace=False)
                pytest.skip(f"NO KAFKA BROKER, nothing of this is tested: {error}")

        yield start


@pytest.fixture(scope="session")
def kafka_servers(request: pytest.FixtureRequest) -> str:
    """`host:port` of a broker that tests share, started by the first of them in each process of the run.
    `ANYLOOP_TEST_KAFKA=host:port` names one that runs already; it needs group.min.session.timeout.ms=1000."""
    existing = os.environ.get("ANYLOOP_TEST_KAFKA")
    return existing or request.getfixturevalue("new_broker")().address


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


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """kube-apiserver on etcd, shared by the tests of a process: take a namespace of your own. A machine's first run
    builds them (`python -m tests.k8s.controlplane`), which takes minutes."""
    with contextlib.ExitStack() as at_the_end:
        try:
            plane = at_the_end.enter_context(ControlPlane(tmp_path_factory.mktemp("control-plane")))
        except ControlPlaneMissing as error:
            if _in_ci():
                pytest.fail(f"CI needs a Kubernetes control plane: {error}", pytrace=False)
            pytest.skip(f"NO KUBERNETES API SERVER, nothing of this is tested: {error}")
        yield plane


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")
