"""kafka-python's errors as those of the log: what happened, whether the same call may succeed later, the way out."""

from collections.abc import Iterator
from contextlib import contextmanager

from kafka import errors as kafka

from anyloop.log.errors import CommitFailed, EventTooLarge, LogError

# Of errors that kafka-python calls fatal, those that a later call may overcome: the client builds itself anew.
_RETRIABLE = (
    kafka.UnknownError,
    kafka.UnknownBrokerIdError,
    kafka.BrokerNotAvailableError,
    kafka.OutOfOrderSequenceNumberError,
    kafka.UnknownProducerIdError,
    kafka.InvalidProducerEpochError,
    kafka.InvalidProducerIdMappingError,
    kafka.ProducerFencedError,
    kafka.TransactionAbortedError,
    kafka.RebalanceInProgressError,
    kafka.MemberIdRequiredError,
    kafka.CorruptRecordError,
    kafka.StaleControllerEpochError,
)
_SILENT = (kafka.KafkaTimeoutError, kafka.NodeNotReadyError, kafka.KafkaConnectionError, OSError)
_MOVED = (
    kafka.CommitFailedError,
    kafka.IllegalGenerationError,
    kafka.UnknownMemberIdError,
    kafka.FencedInstanceIdError,
)
_WAYS_OUT: tuple[tuple[type[Exception], str], ...] = (
    (
        kafka.SaslAuthenticationFailedError,
        "check ANYLOOP_KAFKA_SASL_USERNAME, ANYLOOP_KAFKA_SASL_PASSWORD and ANYLOOP_KAFKA_SASL_MECHANISM",
    ),
    (kafka.UnsupportedSaslMechanismError, "set ANYLOOP_KAFKA_SASL_MECHANISM to one that the brokers have enabled"),
    (kafka.IllegalSaslStateError, "set ANYLOOP_KAFKA_SECURITY_PROTOCOL to what this listener of the broker speaks"),
    (kafka.TopicAuthorizationFailedError, "give this user Describe, Read and Write on the topics (ACLs)"),
    (kafka.GroupAuthorizationFailedError, "give this user Read on the consumer group (ACLs)"),
    (kafka.ClusterAuthorizationFailedError, "give this user IdempotentWrite and Describe on the cluster (ACLs)"),
    (
        kafka.InvalidSessionTimeoutError,
        "set ANYLOOP_KAFKA_SESSION_TIMEOUT_S between the brokers' group.min.session.timeout.ms and "
        "group.max.session.timeout.ms",
    ),
    (
        kafka.InconsistentGroupProtocolError,
        "another program, or another release, uses this consumer group: give each a prefix of its own in the log URL",
    ),
    (kafka.InvalidTopicError, "topic names hold letters, digits, '.', '_' and '-': check the prefix in the log URL"),
    (kafka.UnsupportedVersionError, "AnyLoop needs Apache Kafka 2.5 or later"),
)


def translate(error: Exception, doing: str) -> LogError:
    """`doing` says what was tried and where, for example "kafka b1:9092: append to anyloop.feedback.v1"."""
    if isinstance(error, LogError):
        return error
    if isinstance(error, (kafka.MessageSizeTooLargeError, kafka.RecordListTooLargeError)):
        return EventTooLarge(f"{doing}: the event is larger than the topic takes (max.message.bytes): {_words(error)}")
    if isinstance(error, _MOVED):
        return CommitFailed(f"{doing}: the partitions went to another consumer; poll again ({_words(error)})")
    way_out = next((advice for kind, advice in _WAYS_OUT if isinstance(error, kind)), None)
    if way_out is not None:
        return LogError(f"{doing}: {_words(error)}; {way_out}", retriable=False)
    if isinstance(error, _SILENT):
        return LogError(
            f"{doing}: no answer in time ({_words(error)}); is a broker up there, and is "
            "ANYLOOP_KAFKA_SECURITY_PROTOCOL what its port speaks?",
            retriable=True,
        )
    return LogError(f"{doing}: {_words(error)}", retriable=is_retriable(error))


def is_retriable(error: Exception) -> bool:
    """RuntimeError and IllegalStateError come from a client that another thread has just closed."""
    if isinstance(error, kafka.KafkaError):
        return bool(error.retriable) or isinstance(error, (*_RETRIABLE, kafka.IllegalStateError))
    return isinstance(error, (OSError, RuntimeError))


@contextmanager
def log_errors(doing: str) -> Iterator[None]:
    """Errors of kafka-python inside leave as LogError."""
    try:
        yield
    except (kafka.KafkaError, OSError, RuntimeError) as error:
        raise translate(error, doing) from error


def _words(error: Exception) -> str:
    text = str(error)
    name = type(error).__name__
    return text if name in text else f"{name}: {text}" if text else name
