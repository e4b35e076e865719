"""What can go wrong with the log. `retriable` tells retry loops whether the same call may succeed later."""


class LogError(Exception):
    retriable: bool = False

    def __init__(self, message: str, *, retriable: bool | None = None) -> None:
        super().__init__(message)
        if retriable is not None:
            self.retriable = retriable


class UnknownTopic(LogError):
    """The topic does not exist. Topics are created by `apply_topics` (`anyloop topics apply`), never by an append."""

    retriable = True

    def __init__(self, topic: str) -> None:
        super().__init__(f"topic {topic!r} does not exist: create the topics once with `anyloop topics apply`")
        self.topic = topic


class EventTooLarge(LogError):
    """The event exceeds `MAX_EVENT_BYTES`. Media never travels in an event: store it and send its reference."""


class PoisonEvent(LogError):
    """The bytes of an event are not a message of its type. Send the record to the dead letters."""


class CommitFailed(LogError):
    """A partition named in a commit belongs to another consumer by now: its records will be delivered there.

    Poll again; what was processed since the last commit may be processed a second time by the new owner.
    """


class SpoolFull(LogError):
    """The local outbox has reached its bound: the log has been away for too long."""

    retriable = True
