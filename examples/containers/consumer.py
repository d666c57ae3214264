"""Another container: a member of the group. With --hold N it takes N records and keeps the last.

python consumer.py [--hold N]
"""

import os
import signal
import sys

from comux import connect

hold = int(sys.argv[2]) if sys.argv[1:2] == ["--hold"] else None
who = f"process {os.getpid()} of its namespace"
received = []

with connect("shm://") as broker, broker.consumer("work", group="workers") as consumer:
    for record in consumer:
        received.append(int(record.value))
        if len(received) == hold:
            print(f"consumer: {who}; holds record {record.offset}", flush=True)
            signal.pause()
        if record.redelivered:
            print(f"consumer: {who}; record {record.offset} comes again: whoever held it is dead", flush=True)
        consumer.ack(record)

print(f"consumer: {len(received)} records, {received[0]} to {received[-1]}", flush=True)
