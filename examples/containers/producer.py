"""One container: makes a topic that a group reads, and publishes numbers on it.

python producer.py [RECORDS]
"""

import os
import sys

from comux import TopicSpec, connect

records = int(sys.argv[1]) if len(sys.argv) > 1 else 2000

with connect("shm://") as broker:  # $COMUX_DIR: the mount that the containers share
    broker.create_topic(TopicSpec("work", records=256, data_bytes=1 << 20), exist_ok=True)
    # The group is there before the first record: from now on nothing is overwritten that it has not finished.
    broker.consumer("work", group="workers", start="beginning", durable=True).close()
    print(f"producer: process {os.getpid()} of its namespace; the topic is there", flush=True)
    with broker.producer("work") as producer:
        for number in range(records):
            producer.send(str(number).encode())
        producer.end()
