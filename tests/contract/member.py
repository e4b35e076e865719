"""Run by the contract suite: joins a group, prints the ids it got, then holds them uncommitted until a line comes in;
with a last argument it then commits and prints what became of it."""

import json
import sys

from anyloop.log import RESPONSES, LogError
from tests.contract.backends import open_backend

kind, address, group, timeout, *then = sys.argv[1:]
with open_backend(kind, address, float(timeout)) as log, log.consumer(group, [RESPONSES]) as consumer:
    records = []
    while len(records) < 20:
        records += consumer.poll(timeout=1.0)
    print(json.dumps([record.event.id for record in records]), flush=True)
    sys.stdin.readline()
    if then:
        try:
            consumer.commit()
            print("committed")
        except LogError as error:
            print(type(error).__name__)
