"""Results that cannot be delivered: an outage longer than the client's patience, and more under way than may be."""

from __future__ import annotations

import time

import pytest
from service_fixtures import OwnKafkaCluster, until

from comux import Comux
from comux.errors import ComuxError, ConnectError, DeliveryError, WaitTimeoutError
from comux.options import SourceOptions
from comux.transport import TopicSpec, connect
from comux.transport.memory import discard

RAW = {"codec": "raw", "dtype": "u1", "shape": [4], "start": "beginning", "on_end": "wait"}
PATIENCE_MS = 1500


@pytest.mark.torture
def test_an_outage_longer_than_the_delivery_timeout(own_kafka: OwnKafkaCluster) -> None:
    with connect("memory://delivery") as local:
        local.create_topic(TopicSpec("raw_a"))
        cameras = Comux([SourceOptions(cam_id="a", address="memory://delivery")], send_timeout=0.5, **RAW)
        cameras.setup_producer(
            own_kafka.bootstrap, delivery_timeout_ms=PATIENCE_MS, buffer_bytes=100_000, reconnect_backoff_max_ms=200
        )
        with cameras, local.producer("raw_a") as producer:
            producer.send(b"1234")
            item = cameras.read("a", timeout=10)
            assert cameras.send(item, {"n": 0}).result(10) == 0
            own_kafka.kill()

            begun = time.monotonic()
            lost = cameras.send(item, {"n": 1})
            assert time.monotonic() - begun < 0.5  # it waits for no broker
            error = lost.exception(20)
            assert isinstance(error, DeliveryError) and "('a', 0)" in str(error)
            assert own_kafka.bootstrap in str(error) and "\n" not in str(error)

            with pytest.raises(DeliveryError) as caught:  # told once, by the next send
                cameras.send(item, {"n": 2})
            assert [where for where, _ in caught.value.failures] == [("a", 0)]
            _more_than_may_be_under_way(cameras, item)
            with pytest.raises(DeliveryError) as caught:
                cameras.flush(20)
            assert [where for where, _ in caught.value.failures] == [("a", 0)]

            producer.send(b"5678")  # packets go on meanwhile
            assert cameras.read("a", timeout=10).array.tolist() == [53, 54, 55, 56]
            own_kafka.start()
            until(lambda: _delivered(cameras, item), "results are delivered again")
            books = cameras.status()["results"]
            assert books["balanced"] and not books["held"]
            assert books["received"] == books["delivered"] + sum(books["dropped"].values())
            assert books["dropped"]["failed"] >= 2 and books["dropped"]["refused"] == 1
        discard("delivery")


def _more_than_may_be_under_way(cameras: Comux, item: object) -> None:
    """``send`` waits for room, and then says what there is none of, and why."""
    large = "x" * 60_000
    cameras.send(item, {"large": large})
    begun = time.monotonic()
    with pytest.raises(WaitTimeoutError) as caught:
        cameras.send(item, {"large": large})
    assert 0.4 < time.monotonic() - begun < 5
    text = str(caught.value)
    assert "buffer_bytes=100000" in text and "within 0.5 s" in text
    assert "nobody listens there" in text and caught.value.retriable


def _delivered(cameras: Comux, item: object) -> bool:
    try:
        return cameras.send(item, {"n": 3}).exception(20) is None
    except ComuxError as error:  # of an earlier one
        assert isinstance(error, (DeliveryError, ConnectError, WaitTimeoutError))
        return False
