"""A broker comes late, dies and comes back under running cameras: the loop turns, the books balance, all is seen."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from kafka_rooms import Room, Watch, room
from service_fixtures import OwnKafkaCluster, Services, until

from comux import Comux
from comux.errors import DeliveryError, WaitTimeoutError
from comux.multiplexer.results import ResultFuture

CAMERAS = 8
TURN = 0.5  # seconds that get_batch may take
SLACK = 1.0  # and what a busy machine may add


def _camera(number: int) -> str:
    return f"synthetic://160x120@15?camera={number}&seed={number}&gop=15"


class Loop:
    """A user's loop over all cameras that sends a result for each picture."""

    def __init__(self, cameras: Comux) -> None:
        self.cameras = cameras
        self.turns = 0
        self.longest = 0.0
        self.delivered: Counter[str] = Counter()
        self.indices: dict[str, set[int]] = defaultdict(set)
        self.statuses: dict[str, str] = {}
        self.sent: list[ResultFuture] = []
        self.surfaced: dict[tuple[Any, int], BaseException] = {}
        self.refused = 0

    def turn(self) -> dict[str, str]:
        """One batch; gives the status of each item."""
        begin = time.monotonic()
        batch = self.cameras.get_batch(timeout=TURN)
        self.longest = max(self.longest, time.monotonic() - begin)
        self.turns += 1
        assert batch.cam_ids == tuple(self.cameras.cam_ids)
        self.statuses = {str(item.cam_id): str(item.status) for item in batch}
        for item in batch.fresh:
            self.delivered[str(item.cam_id)] += 1
            self.indices[str(item.cam_id)].add(item.index)
            self._send(item)
        return self.statuses

    def _send(self, item: Any) -> None:
        while True:
            try:
                self.sent.append(self.cameras.send(item, {"index": item.index}))
                return
            except DeliveryError as error:  # of earlier ones; this one was not accepted
                self.surfaced |= dict(error.failures)
            except WaitTimeoutError:
                self.refused += 1
                return

    def until(self, condition: Any, what: str, timeout: float) -> None:
        """Turn until a condition on the newest statuses holds."""
        deadline = time.monotonic() + timeout
        while not condition(self.turn()):
            assert time.monotonic() < deadline, f"not within {timeout:.0f} s: {what}; {self.statuses}"

    def for_seconds(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self.until(lambda _: time.monotonic() >= end, "the time", seconds + 30)

    def flush(self) -> None:
        try:
            self.cameras.flush(60)
        except DeliveryError as error:
            self.surfaced |= dict(error.failures)


class _Background:
    """A call in a thread, so that the loop turns meanwhile."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._pool = ThreadPoolExecutor(1, "test-background")
        self._future = self._pool.submit(call)

    def done(self) -> bool:
        return self._future.done()

    def result(self) -> Any:
        with self._pool:
            return self._future.result(120)


def _early_address(services: Services) -> str:
    """Where the broker will listen that is being started."""

    def there() -> str | None:
        try:
            return str(services.entry("kafka-plain")["bootstrap"])
        except (FileNotFoundError, KeyError):
            return None

    return str(until(there, "the broker's address", 60))


def missing(cameras: Comux) -> list[bool]:
    """Whether each source knows that its topic is missing: then it is read from its beginning, else from where it ends
    when the source comes to it."""
    return ["no topic" in source["reason"] for source in cameras.status()["sources"].values()]


def _all(*statuses: str) -> Callable[[dict[str, str]], bool]:
    return lambda now: set(now.values()) <= set(statuses)


def _life(
    services: Services, *, outages: int, before: float, gone: float, after: float, group: str | None = None
) -> None:
    """Cameras without a broker; it comes; it is killed and started again; the feeds end."""
    cams = [f"cam{number}" for number in range(1, CAMERAS + 1)]
    coming = _Background(lambda: OwnKafkaCluster(services, "kafka-plain"))
    with room(_early_address(services)) as there:
        options = {"mode": "every_frame", "send_timeout": 0.2, "max_in_flight": 4000, "group": group}
        with Comux(cams, address=there.address, strict_on_fail=False, **options) as cameras:
            loop, watch = Loop(cameras), Watch(cameras)
            loop.until(_all("reconnecting"), "all wait for the broker", 20)
            loop.until(lambda _: coming.done(), "the broker", 120)
            own_kafka = coming.result()
            loop.until(lambda _: all(missing(cameras)), "all see that their topic is not there yet", 60)
            feeds = {cam: there.feed(_camera(number), f"raw_{cam}") for number, cam in enumerate(cams, 1)}
            for _ in range(outages):
                loop.until(_all("fresh", "no_new_frame"), "all cameras run", 60)
                loop.for_seconds(before)
                _outage(own_kafka, loop, gone)
            loop.for_seconds(after)
            for feed in feeds.values():
                feed.stop.set()
            records = {cam: feed.join().records for cam, feed in feeds.items()}
            loop.until(_all("ended"), "every camera's end", 60)
            loop.flush()
            watch.stop()
            _check(there, loop, watch, records)
            own_kafka.kill()
            begin = time.monotonic()
            cameras.close()
            assert time.monotonic() - begin < 10, "closing waited for a broker that is dead"


def _check(there: Room, loop: Loop, watch: Watch, records: dict[str, int]) -> None:
    """What holds after the run: no turn that waited for the network, nothing retained that was not delivered."""
    most = TURN + SLACK + 2 * watch.late  # a machine that has no time for us is not the broker's fault
    assert loop.longest < most, f"a batch took {loop.longest:.2f} s of {TURN}; {watch.late:.2f} s late: the machine"
    for cam, books in loop.cameras.accounts().items():
        count = records[str(cam)]
        assert len(there.plain(f"raw_{cam}")) == count + 1  # the end of the stream is a record on Kafka
        assert loop.indices[str(cam)] == set(range(count))
        assert (books.absorbed, books.held_total, books.delivered) == (0, 0, loop.delivered[str(cam)])
        if there.broker.groups(f"raw_{cam}"):  # at least once: what was not acknowledged comes again
            assert books.dropped.keys() <= {"duplicate", "resync", "failed"}
            assert there.broker.groups(f"raw_{cam}")[0].committed >= count
        else:
            assert (books.received, dict(books.dropped)) == (count, {})
    _check_results(there, loop, loop.cameras.status()["results"])


def _outage(own_kafka: OwnKafkaCluster, loop: Loop, gone: float) -> None:
    turns, begin = loop.turns, time.monotonic()
    own_kafka.kill()
    loop.until(_all("reconnecting"), "all say reconnecting", 20)
    loop.for_seconds(gone)
    back = _Background(own_kafka.start)
    loop.until(lambda _: back.done(), "the broker", 120)
    assert loop.turns - turns > (time.monotonic() - begin) / TURN / 2, "the loop stood still while the broker was gone"
    back.result()
    seen = Counter(loop.delivered)
    cams = loop.cameras.cam_ids
    loop.until(lambda _: all(loop.delivered[str(cam)] > seen[str(cam)] for cam in cams), "all cameras are back", 60)


def _check_results(there: Room, loop: Loop, books: dict[str, Any]) -> None:
    """Every accepted result is in its topic, or its failure was raised."""
    cams = sorted({str(future.cam_id) for future in loop.sent})
    there_are = {(cam, int(dict(r.headers)["index"])) for cam in cams for r in there.plain(f"stream_{cam}")}
    for future in loop.sent:
        place = (future.cam_id, future.index)
        error = future.exception(0)
        assert (place in there_are) if error is None else (place in loop.surfaced), (place, error)
    assert books["received"] == len(loop.sent)
    assert books["delivered"] == sum(future.exception(0) is None for future in loop.sent)
    assert books["held"] == 0
    assert books["delivered"] > 0


def test_eight_cameras_outlive_a_broker_that_comes_late_dies_and_comes_back(services: Services) -> None:
    _life(services, outages=1, before=2.0, gone=0.0, after=1.0)


@pytest.mark.torture
def test_a_broker_that_hangs_is_seen_to_be_gone_and_comes_back(own_kafka: OwnKafkaCluster) -> None:
    """Its connections stand and nothing is answered: requests time out, the loop and everything else does not."""
    (broker,) = own_kafka.brokers
    with room(own_kafka.bootstrap) as there:
        feeds = [there.feed(_camera(number), f"raw_cam{number}") for number in range(4)]
        until(lambda: len(there.broker.topics()) == 4, "the feeds' topics")
        client = {"request_timeout_ms": 4000}
        cams = [f"cam{number}" for number in range(4)]
        with Comux(
            cams,
            address=there.address,
            client_options=client,
            mode="every_frame",
            start="beginning",
            max_in_flight=4000,
        ) as cameras:
            loop, watch = Loop(cameras), Watch(cameras)
            loop.until(_all("fresh", "no_new_frame"), "all cameras run", 60)
            os.kill(own_kafka.pid(broker), signal.SIGSTOP)
            loop.until(_all("reconnecting"), "all say reconnecting", 30)
            begin = time.monotonic()
            cameras.status()
            assert time.monotonic() - begin < SLACK + watch.late
            loop.for_seconds(5)
            os.kill(own_kafka.pid(broker), signal.SIGCONT)
            loop.until(_all("fresh", "no_new_frame"), "all cameras are back", 60)
            for feed in feeds:
                feed.stop.set()
            records = {f"cam{number}": feed.join().records for number, feed in enumerate(feeds)}
            loop.until(_all("ended"), "every camera's end", 60)
            loop.flush()
            watch.stop()
            _check(there, loop, watch, records)
            os.kill(own_kafka.pid(broker), signal.SIGSTOP)
            begin = time.monotonic()
            cameras.close()
            assert time.monotonic() - begin < 15, "closing waited for a broker that hangs"


@pytest.mark.torture
def test_eight_cameras_outlive_three_outages_in_a_minute(services: Services) -> None:
    _life(services, outages=3, before=8.0, gone=5.0, after=5.0)


@pytest.mark.torture
def test_a_group_outlives_an_outage_and_commits_everything(services: Services) -> None:
    _life(services, outages=1, before=3.0, gone=3.0, after=3.0, group="viewers")
