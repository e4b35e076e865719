"""Which records of the log stand in the dead letters already, whoever sent them there."""

from anyloop.log import EventLog, dlq

Letter = tuple[int, int, str]  # partition and offset of the record, id of its event


class SentLetters:
    """What one consumer group has set aside.

    The dead-letter topics themselves say it, so neither a kill between a letter and what is remembered of it nor
    another trainer that takes over sends a letter again. They are read when it is first asked, and from there on after
    `look_again`: whoever holds a partition is the only one to set its records aside.
    """

    def __init__(self, event_log: EventLog, group: str) -> None:
        self._log, self._group = event_log, group
        self._sent: dict[str, set[Letter]] = {}
        self._read: dict[str, dict[int, int]] = {}  # next offset by partition, of dead-letter topics
        self._fresh: set[str] = set()

    def add(self, topic: str, letter: Letter) -> None:
        self._sent.setdefault(topic, set()).add(letter)

    def sent(self, topic: str, letter: Letter) -> bool:
        """May raise LogError."""
        if letter in self._sent.get(topic, ()):
            return True
        if topic in self._fresh:
            return False
        self._read_on(topic)
        return letter in self._sent.get(topic, ())

    def look_again(self) -> None:
        """Others may have sent letters meanwhile."""
        self._fresh.clear()

    def _read_on(self, topic: str) -> None:
        read = self._read.setdefault(topic, {})
        for partition, end in self._log.end_offsets(dlq(topic)).items():
            if read.get(partition, 0) > end:  # made anew
                read[partition] = 0
            if read.get(partition, 0) == end:
                continue
            for record in self._log.read(dlq(topic), partition=partition, offset=read.get(partition, 0)):
                said = record.event.extensions
                origin = said.get("dlqpartition", ""), said.get("dlqoffset", "")
                if (said.get("dlqgroup"), said.get("dlqtopic")) == (self._group, topic) and all(
                    map(str.isdigit, origin)
                ):
                    self.add(topic, (int(origin[0]), int(origin[1]), record.event.id))
                read[partition] = record.offset + 1
        self._fresh.add(topic)
