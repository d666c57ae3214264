"""Three brokers, one of them killed: with ``acks="all"`` nothing is lost, and readers go on."""

from __future__ import annotations

import threading
import time
from typing import Self

import pytest
from kafka_rooms import Room, Watch, room
from service_fixtures import OwnKafkaCluster, until

from comux import Comux
from comux.options import CamId
from comux.transport import Consumer, Producer, SendFuture, connect

RATE = 300.0


class Worker:
    """Something done in a thread until ``stop``, which also comes where the test fails."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.run, name=f"test-{type(self).__name__}", daemon=True)
        self._thread.start()

    def run(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Sender(Worker):
    """Sends numbered records at ``RATE``."""

    def __init__(self, producer: Producer) -> None:
        self.futures: list[SendFuture] = []
        self._producer = producer
        super().__init__()

    def run(self) -> None:
        while not self._stop.wait(1 / RATE):
            self.futures.append(self._producer.send(b"%d" % len(self.futures)))

    def finish(self) -> int:
        """Stop and wait for the last acknowledgement; gives the number of records, all of which were delivered."""
        self.stop()
        self._producer.flush(60)
        account, count = self._producer.account(), len(self.futures)
        assert account.balanced
        assert (account.delivered, account.dropped_total) == (count, 0)
        assert sorted(future.result(0) or 0 for future in self.futures) == list(range(count))
        return count


class Reader(Worker):
    """Reads, whatever happens, and keeps the numbers in their order."""

    def __init__(self, consumer: Consumer) -> None:
        self.numbers: list[int] = []
        self.longest = 0.0  #: seconds without a record
        self.troubles = 0
        self._consumer = consumer
        super().__init__()

    def run(self) -> None:
        last = time.monotonic()
        while not self._stop.is_set():
            try:
                records = self._consumer.poll(0.2, 100)
            except ConnectionError:  # while another broker takes over
                self.troubles += 1
                self._stop.wait(0.1)
                continue
            self.numbers += [int(record.value) for record in records]
            if records:
                self.longest = max(self.longest, time.monotonic() - last)
                last = time.monotonic()


class Turning(Worker):
    """A loop over cameras; takes whatever comes."""

    def __init__(self, cameras: Comux) -> None:
        self.statuses: set[str] = set()
        self._cameras = cameras
        super().__init__()

    def run(self) -> None:
        while not self._stop.is_set():
            self.statuses = {str(item.status) for item in self._cameras.get_batch(timeout=0.2)}

    def until_more(self, cam: CamId, count: int) -> None:
        """Wait until more than so many pictures of a camera were taken."""
        deadline = time.monotonic() + 60
        while self._cameras.accounts()[cam].delivered <= count:
            assert self._thread.is_alive(), "the loop has ended"
            assert time.monotonic() < deadline, f"{cam} does not go on: {self._cameras.status()['sources'][str(cam)]}"
            self._stop.wait(0.02)


def _leader(there: Room, topic: str) -> int:
    (described,) = there.admin().describe_topics([there.full(topic)])
    return int(described["partitions"][0]["leader_id"])


def _in_sync(there: Room, topics: list[str]) -> bool:
    """Whether all three brokers have every record: who dies then takes nothing along."""
    described = there.admin().describe_topics([there.full(topic) for topic in topics])
    return all(len(topic["partitions"][0]["isr_nodes"]) == 3 for topic in described)


def _run(kafka3: OwnKafkaCluster, there: Room, *, before: float, after: float, deaths: int) -> None:
    there.topic("numbers")
    cams = [f"cam{number}" for number in range(3)]
    feeds = [
        there.feed(f"synthetic://160x120@15?camera={n}&seed={n}&gop=15", f"raw_{cam}") for n, cam in enumerate(cams)
    ]
    until(lambda: {f"raw_{cam}" for cam in cams} <= set(there.broker.topics()), "the feeds' topics")
    with (
        Comux(cams, address=there.address, mode="every_frame", start="beginning") as cameras,
        connect(there.address, acks="all") as broker,
        Sender(broker.producer("numbers")) as sender,
        Reader(broker.consumer("numbers", start="beginning")) as reader,
        Turning(cameras) as loop,
    ):
        watch = Watch(cameras)
        for _ in range(deaths):
            until(lambda: _in_sync(there, ["numbers", *(f"raw_{cam}" for cam in cams)]), "all have every record", 120)
            seen = len(reader.numbers)
            until(lambda seen=seen: len(reader.numbers) >= seen + RATE * before, "records", 60)
            dead = f"kafka3-{_leader(there, 'numbers')}"
            kafka3.kill(dead)
            seen = len(sender.futures)
            until(lambda seen=seen: len(reader.numbers) >= seen + RATE * after, "records behind the death", 60)
            for cam, count in _delivered(cameras).items():
                loop.until_more(cam, count)
            if deaths > 1:
                kafka3.start(dead)
        count = sender.finish()
        until(lambda: len(reader.numbers) >= count, "the last record", 60)
        reader.stop()
        assert reader.numbers == list(range(count)), "each once, in order"
        print(f"{count} records, {reader.troubles} polls without a leader, at most {reader.longest:.1f} s of nothing")
        for feed in feeds:
            feed.stop.set()
        made = [feed.join().records for feed in feeds]
        until(lambda: loop.statuses == {"ended"}, "every camera's end", 60)
        loop.stop()
        watch.stop()
        for books, records in zip(cameras.accounts().values(), made, strict=True):
            assert (books.received, books.delivered, dict(books.dropped)) == (records, records, {})


def _delivered(cameras: Comux) -> dict[CamId, int]:
    return {cam: books.delivered for cam, books in cameras.accounts().items()}


def test_nothing_is_lost_with_a_leader_and_everybody_goes_on(kafka3: OwnKafkaCluster) -> None:
    with room(kafka3.bootstrap) as there:
        _run(kafka3, there, before=1.0, after=1.0, deaths=1)


@pytest.mark.torture
def test_nothing_is_lost_with_one_leader_after_the_other(kafka3: OwnKafkaCluster) -> None:
    with room(kafka3.bootstrap) as there:
        _run(kafka3, there, before=4.0, after=4.0, deaths=4)
