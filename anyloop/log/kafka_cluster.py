"""What the cluster knows: the partitions of a topic, where they end, what a group has committed."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from kafka import IsolationLevel, KafkaAdminClient, OffsetSpec, TopicPartition
from kafka import errors as kafka

from anyloop.log.errors import LogError, UnknownTopic
from anyloop.log.kafka_clients import connect
from anyloop.log.kafka_errors import is_retriable, translate
from anyloop.log.kafka_events import milliseconds
from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings

T = TypeVar("T")

_PAUSE_SECONDS = 0.1  # between two attempts


class KafkaCluster:
    """Thread-safe. Connects at the first question; each is repeated for `timeout_s` while it may still be answered.

    Topics and groups go in and come out without the prefix of the log.
    """

    def __init__(self, address: KafkaAddress, settings: KafkaSettings) -> None:
        self._address = address
        self._settings = settings
        self._lock = threading.Lock()  # guards the client's construction
        self._client: KafkaAdminClient | None = None
        self._partitions: dict[str, int] = {}
        self._closed = False

    @property
    def where(self) -> str:
        """For messages."""
        return f"kafka {','.join(self._address.servers)}"

    def name(self, topic_or_group: str) -> str:
        """As the cluster calls it."""
        return self._address.prefix + topic_or_group

    def partitions(self, topic: str) -> int:
        """Their number. Raises UnknownTopic. Remembered: a topic never changes it (its keys would move)."""
        count = self._partitions.get(topic)
        if count is None:
            count = self._partitions[topic] = self._ask(lambda client: self._count(client, topic), topic)
        return count

    def forget(self, topic: str) -> None:
        """Asks again at the next call: the topic may have been deleted."""
        self._partitions.pop(topic, None)

    def _count(self, client: KafkaAdminClient, topic: str) -> int:
        (found,) = client.describe_topics([self.name(topic)])
        error = kafka.for_code(found["error_code"])
        if error is kafka.UnknownTopicOrPartitionError:
            raise UnknownTopic(topic)
        if error is kafka.TopicAuthorizationFailedError:
            raise error({topic})
        if error is not kafka.NoError:
            raise error(found["name"])
        return len(found["partitions"])

    def end_offsets(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        return self._offsets(topic, partitions, OffsetSpec.LATEST)

    def begin_offsets(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """Where the log begins, past what retention has removed."""
        return self._offsets(topic, partitions, OffsetSpec.EARLIEST)

    def offsets_since(self, topic: str, partitions: Iterable[int], since: datetime) -> dict[int, int]:
        """The first record appended at or after `since` (milliseconds); a partition without one is left out."""
        found = self._offsets(topic, partitions, max(0, milliseconds(since)))
        return {part: offset for part, offset in found.items() if offset >= 0}

    def _offsets(self, topic: str, partitions: Iterable[int], which: OffsetSpec | int) -> dict[int, int]:
        asked = {TopicPartition(self.name(topic), part): which for part in partitions}
        if not asked:
            return {}
        try:
            found = self._ask(
                lambda client: client.list_partition_offsets(asked, isolation_level=IsolationLevel.READ_COMMITTED),
                topic,
            )
        except UnknownTopic:
            self.forget(topic)
            raise
        return {tp.partition: answer.offset for tp, answer in found.items()}

    def committed(self, group: str, topic: str) -> dict[int, int]:
        asked = [TopicPartition(self.name(topic), part) for part in range(self.partitions(topic))]
        name = self.name(group)
        found: Mapping[str, Mapping[TopicPartition, Any]] = self._ask(
            lambda client: client.list_group_offsets({name: asked}), topic
        )
        return {tp.partition: answer.offset for tp, answer in found.get(name, {}).items() if answer.offset >= 0}

    def ask(self, question: Callable[[KafkaAdminClient], T], about: str) -> T:
        """The answer of the admin client, asked again while it may come. Raises LogError."""
        return self._ask(question, about)

    def _ask(self, question: Callable[[KafkaAdminClient], T], about: str) -> T:
        deadline = time.monotonic() + self._settings.timeout_s
        while True:
            client = None
            try:
                client = self._connected(deadline)
                return question(client)
            except kafka.UnknownTopicOrPartitionError as error:
                raise UnknownTopic(about) from error
            except (kafka.KafkaError, OSError, RuntimeError) as error:
                if self._closed:
                    raise LogError(f"{self.where}: this log is closed") from error
                # A client that failed may remember a coordinator or a broker that is no more.
                self._drop(client)
                if not is_retriable(error) or time.monotonic() + _PAUSE_SECONDS >= deadline:
                    raise translate(error, f"{self.where}: {about}") from error
            time.sleep(_PAUSE_SECONDS)

    def _connected(self, deadline: float) -> KafkaAdminClient:
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise kafka.KafkaTimeoutError("another thread of this process still tries to connect")
        try:
            if self._closed:
                raise LogError(f"{self.where}: this log is closed")
            if self._client is None:
                left_ms = max(1, round((deadline - time.monotonic()) * 1000))
                config = self._settings.client() | {"bootstrap_timeout_ms": left_ms}
                client = self._client = connect(KafkaAdminClient, self._address, self._settings, config)
                if self._closed:  # while it was made: `close` may have missed it
                    self._client = None
                    with contextlib.suppress(Exception):
                        client.close()
                    raise LogError(f"{self.where}: this log is closed")
            return self._client
        finally:
            self._lock.release()

    def _drop(self, client: Any) -> None:
        if client is None:
            return
        with self._lock:
            if self._client is client:
                self._client = None
        with contextlib.suppress(Exception):
            client.close()

    def close(self) -> None:
        self._closed = True
        self._drop(self._client)
