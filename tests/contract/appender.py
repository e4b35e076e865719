"""Run by the contract suite: appends events and prints `partition:offset:id` of each once it is acknowledged."""

import sys

from anyloop.log import RESPONSES, Event
from protos.anyloop.v1 import events_pb2
from tests.contract.backends import open_backend

kind, address, name, count = sys.argv[1:]
with open_backend(kind, address) as log:
    for number in range(int(count)):
        message = events_pb2.ResponseEvent(response_id=f"{name}-{number}")
        event = Event.wrap(message, key=name, source="tests", id=f"{name}-{number}")
        position = log.append(RESPONSES, event)
        print(f"{position.partition}:{position.offset}:{event.id}", flush=True)
