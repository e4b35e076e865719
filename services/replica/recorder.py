"""Events on their way to the log: durable on this machine before the answer that they record is finished."""

import asyncio

from google.protobuf.message import Message

from anyloop.log import Event
from anyloop.log.spool import SpooledWriter


class Recorder:
    """The client waits for one local write, never for the log behind it."""

    def __init__(self, spool: SpooledWriter, source: str) -> None:
        self._spool = spool
        self._source = source

    async def record(self, topic: str, message: Message, key: str, event_id: str) -> None:
        """On disk when it returns. Raises SpoolFull. Written even when the caller is cancelled meanwhile."""
        event = Event.wrap(message, key=key, source=self._source, id=event_id)
        await asyncio.shield(asyncio.to_thread(self._spool.put, topic, event))
