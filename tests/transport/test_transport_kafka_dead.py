"""Addresses where no cluster answers: one clear error, quickly, whatever the number of cameras; nothing is left."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from comux import Comux
from comux.errors import ClosedError, ComuxError, ConnectError, DeliveryError
from comux.transport import TopicSpec, connect

CAMERAS = [f"cam{number}" for number in range(30)]


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nobody listens, and nobody will: the port is taken, without ``listen``."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address where connections are accepted and nothing is ever answered."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"127.0.0.1:{server.getsockname()[1]}"


def _seconds(call: Callable[[], object]) -> float:
    begin = time.monotonic()
    call()
    return time.monotonic() - begin


def test_thirty_cameras_where_nobody_listens_are_one_error_at_once(nobody: str) -> None:
    def start() -> None:
        with pytest.raises(ConnectError, match=r"30 sources cannot start.*nobody listens.*strict_on_fail") as refused:
            Comux(CAMERAS, address=f"kafka://{nobody}").start()
        assert nobody in str(refused.value)

    assert _seconds(start) < 5


def test_thirty_cameras_where_nobody_answers_are_one_error_after_one_time_out(silent: str) -> None:
    def start() -> None:
        with pytest.raises(ComuxError, match="30 sources cannot start"):
            Comux(CAMERAS, address=f"kafka://{silent}", connect_timeout=1.0).start()

    assert _seconds(start) < 8  # 30 would be 30 seconds


@pytest.mark.parametrize("produce", [False, True], ids=["packets", "packets and results"])
def test_thirty_cameras_that_are_not_strict_start_and_wait(nobody: str, produce: bool) -> None:
    cameras = Comux(CAMERAS, address=f"kafka://{nobody}", strict_on_fail=False)
    if produce:
        cameras.setup_producer(bootstrap_servers=[nobody])
    with cameras:
        deadline = time.monotonic() + 10
        while {str(item.status) for item in cameras.get_batch(timeout=0.2)} != {"reconnecting"}:
            assert time.monotonic() < deadline, cameras.status()
        assert _seconds(lambda: cameras.get_batch(timeout=0.2)) < 2
        assert _seconds(cameras.status) < 2
        assert all(books.balanced for books in cameras.accounts().values())
        reasons = {source["reason"] for source in cameras.status()["sources"].values()}
        assert all("nobody listens" in reason for reason in reasons), reasons
        assert _seconds(cameras.close) < 5


def test_closing_while_sources_connect_where_nobody_answers(silent: str) -> None:
    cameras = Comux(CAMERAS[:8], address=f"kafka://{silent}", strict_on_fail=False, connect_timeout=2.0)
    cameras.start()
    cameras.get_batch(timeout=0.1)
    assert _seconds(cameras.close) < 8
    with pytest.raises(ClosedError):
        cameras.get_batch(timeout=0)


def test_closing_from_another_thread_while_start_connects(silent: str) -> None:
    cameras = Comux(CAMERAS[:8], address=f"kafka://{silent}", connect_timeout=2.0)
    outcome: list[BaseException] = []
    begun = threading.Event()

    def start() -> None:
        begun.set()
        try:
            cameras.start()
        except ComuxError as error:
            outcome.append(error)

    thread = threading.Thread(target=start, name="test-start")
    thread.start()
    begun.wait()
    assert _seconds(cameras.close) < 8
    thread.join(10)
    assert not thread.is_alive()
    assert len(outcome) == 1
    assert isinstance(outcome[0], (ConnectError, ClosedError, TimeoutError)), outcome


def test_ctrl_c_while_connecting(silent: str) -> None:
    """And neither thread nor connection stays behind (see the fixture of all tests)."""
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            connect(f"kafka://{silent}", connect_timeout=30)
    finally:
        timer.join()


def test_results_for_a_cluster_that_is_not_there_hold_the_loop_up_once(silent: str) -> None:
    """Every send fails, and says so later; one of them waits for the connection, not each."""
    with connect("memory://dead-results") as broker:
        broker.create_topic(TopicSpec("raw_cam", dtype=np.uint8, shape=(4, 4, 3)))
        with (
            broker.producer("raw_cam") as producer,
            Comux(
                ["cam"],
                address="memory://dead-results",
                produce_address=f"kafka://{silent}?connect_timeout=1",
                codec="raw",
                mode="every_frame",
            ) as cameras,
        ):
            failed: dict[object, BaseException] = {}
            begin = time.monotonic()
            for number in range(20):
                producer.send(np.full((4, 4, 3), number, np.uint8))
                item = cameras.read("cam")
                while True:
                    try:
                        cameras.send(item, {"number": number})
                        break
                    except DeliveryError as error:
                        failed |= dict(error.failures)
            assert time.monotonic() - begin < 8  # twenty time-outs would be 20 seconds
            with pytest.raises(DeliveryError) as raised:
                cameras.flush(10)
            failed |= dict(raised.value.failures)
            assert set(failed) == {("cam", number) for number in range(20)}
            assert cameras.status()["results"]["dropped"] == {"failed": 20}
        broker.delete_topic("raw_cam", force=True)
