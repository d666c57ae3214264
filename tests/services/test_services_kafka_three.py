"""Three brokers, one of them killed: with ``acks="all"`` nothing is lost, and readers go on."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from kafka_rooms import Room, Watch, room
from service_fixtures import OwnKafkaCluster, until

from comux import Comux
from comux.transport import Consumer, SendFuture, connect

RATE = 300.0


class Sender:
    """Sends numbered records at ``RATE`` until told to stop."""

    def __init__(self, there: Room) -> None:
        self.futures: list[SendFuture] = []
        self._broker = connect(there.address, acks="all")
        self._producer = self._broker.producer("numbers")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="test-sender")
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(1 / RATE):
            self.futures.append(self._producer.send(b"%d" % len(self.futures)))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)
        self._producer.flush(60)
        account = self._producer.account()
        assert account.balanced
        assert (account.delivered, account.dropped_total) == (len(self.futures), 0)
        self._broker.close()


class Reader:
    """Reads in a thread, whatever happens, and keeps the numbers in their order."""

    def __init__(self, consumer: Consumer) -> None:
        self.numbers: list[int] = []
        self.longest = 0.0  #: seconds without a record
        self.troubles: list[str] = []
        self._consumer = consumer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="test-reader")
        self._thread.start()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stop.is_set():
            try:
                records = self._consumer.poll(0.2, 100)
            except ConnectionError as error:  # while another broker takes over
                self.troubles.append(str(error))
                self._stop.wait(0.1)
                continue
            self.numbers += [int(record.value) for record in records]
            if records:
                self.longest = max(self.longest, time.monotonic() - last)
                last = time.monotonic()
            if self._consumer.group is not None:
                self._consumer.commit()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)


def _leader(there: Room, topic: str) -> int:
    (described,) = there.admin().describe_topics([there.full(topic)])
    return int(described["partitions"][0]["leader_id"])


def _run(kafka3: OwnKafkaCluster, there: Room, *, before: float, after: float, deaths: int) -> None:
    there.topic("numbers")
    cams = [f"cam{number}" for number in range(3)]
    feeds = [
        there.feed(f"synthetic://160x120@15?camera={n}&seed={n}&gop=15", f"raw_{cam}") for n, cam in enumerate(cams)
    ]
    until(lambda: {f"raw_{cam}" for cam in cams} <= set(there.broker.topics()), "the feeds' topics")
    with (
        Comux(cams, address=there.address, mode="every_frame", start="beginning") as cameras,
        connect(there.address) as broker,
        broker.consumer("numbers", start="beginning") as consumer,
    ):
        watch, sender, reader = Watch(cameras), Sender(there), Reader(consumer)
        for _ in range(deaths):
            seen = len(reader.numbers)
            until(lambda seen=seen: len(reader.numbers) >= seen + RATE * before, "records", 60)
            dead = f"kafka3-{_leader(there, 'numbers')}"
            kafka3.kill(dead)
            seen = len(sender.futures)
            until(lambda seen=seen: len(reader.numbers) >= seen + RATE * after, "records behind the death", 60)
            delivered = {cam: books.delivered for cam, books in cameras.accounts().items()}

            def all_go_on(delivered: dict[Any, int] = delivered) -> bool:
                cameras.get_batch(timeout=0.2)
                return all(books.delivered > delivered[cam] for cam, books in cameras.accounts().items())

            until(all_go_on, "every camera goes on", 60)
            if deaths > 1:
                kafka3.start(dead)
        sender.stop()
        count = len(sender.futures)
        assert sorted(future.result(0) or 0 for future in sender.futures) == list(range(count))
        until(lambda: len(reader.numbers) >= count, "the last record", 60)
        reader.stop()
        assert reader.numbers == list(range(count)), "each once, in order"
        print(
            f"{count} records, {len(reader.troubles)} times without a leader, at most {reader.longest:.1f} s of nothing"
        )
        for feed in feeds:
            feed.stop.set()
        made = [feed.join().records for feed in feeds]
        until(lambda: {str(i.status) for i in cameras.get_batch(timeout=0.2)} == {"ended"}, "every camera's end", 60)
        watch.stop()
        for books, records in zip(cameras.accounts().values(), made, strict=True):
            assert (books.received, books.delivered, dict(books.dropped)) == (records, records, {})


def test_nothing_is_lost_with_a_leader_and_everybody_goes_on(kafka3: OwnKafkaCluster) -> None:
    with room(kafka3.bootstrap) as there:
        _run(kafka3, there, before=1.0, after=1.0, deaths=1)


@pytest.mark.torture
def test_nothing_is_lost_with_one_leader_after_the_other(kafka3: OwnKafkaCluster) -> None:
    with room(kafka3.bootstrap) as there:
        _run(kafka3, there, before=4.0, after=4.0, deaths=4)
