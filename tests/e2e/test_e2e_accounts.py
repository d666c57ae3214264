"""The books balance at any instant they are read: every source, every handle, while everything changes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from comux import Comux, ring
from comux.account import AccountSnapshot
from comux.errors import WaitTimeoutError

FAULTS = "gap@31,missing@43+2,duplicate@57,swap@61,corrupt@71,cut@83,nokey@1s+0.5s,stall@1s+0.2s"
FEED = "synthetic://160x120@100?gop=20&bframes=2&camera={camera}&seed={camera}&frames={frames}&faults={faults}"


class _Auditor:
    """Reads books in a thread as fast as it can; keeps the first that does not balance."""

    def __init__(self) -> None:
        self.looks: dict[str, Callable[[], list[AccountSnapshot]]] = {}
        self.counted: dict[str, int] = {}
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="comux-test-auditor")

    def _run(self) -> None:
        received: dict[str, int] = {}
        while not self._stop.wait(0.0005) and not self.wrong:
            for name, look in list(self.looks.items()):
                for place, books in enumerate(look()):
                    self.counted[name] = self.counted.get(name, 0) + 1
                    key = f"{name} {place}"
                    if not books.balanced:
                        self.wrong.append(f"{key} does not balance: {books}")
                    if books.received < received.get(key, 0):
                        self.wrong.append(f"{key}: received fell from {received[key]} to {books.received}")
                    received[key] = books.received

    def __enter__(self) -> _Auditor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _source_books(cameras: Comux) -> list[AccountSnapshot]:
    books = cameras.accounts()
    return [books[cam_id] for cam_id in sorted(books, key=str)]


def _status_is_wrong(status: dict[str, Any]) -> list[str]:
    accounts = {name: source["account"] for name, source in status["sources"].items()}
    accounts |= {"total": status["total"], "results": status["results"]}
    out = []
    for name, books in accounts.items():
        right = books["delivered"] + books["absorbed"] + sum(books["dropped"].values()) + books["held"]
        if not books["balanced"] or books["received"] != right or books["held"] != sum(books["held_by_place"].values()):
            out.append(f"{name}: {books}")
    return out


def _churn(cameras: Comux, round_: int) -> None:
    """One change of everything that can change while the loop runs."""
    step = round_ % 60
    if step == 5:
        cameras.create("late")
    elif step == 35:
        cameras.delete("late")
    elif step in (10, 40):
        cameras.set_rate("cam2", 15 if step == 10 else None)
    elif step == 15:
        cameras.pause("cam3")
    elif step == 25:
        cameras.resume("cam3")
    elif step in (20, 50):
        cameras.update("cam4", W=80 if step == 20 else 96, H=60)


def test_every_book_balances_at_every_instant_of_a_bad_day(place: Any) -> None:
    for cam in ("cam1", "cam2", "cam3", "cam4", "late"):
        # Small topics: what is slow is lapped, too.
        place.topic(f"raw_{cam}", records=32, policy="drop_oldest", metadata={"codec": "h264"})
    sources = [
        "cam1",
        {"cam_id": "cam2", "rate": 40.0, "mode": "every_frame", "store_bytes": 120_000},
        {"cam_id": "cam3", "max_offset_diff": 5},
        {"cam_id": "cam4", "on_damage": "deliver"},
    ]
    statuses: list[str] = []
    with Comux(sources, address=place.address) as cameras, _Auditor() as auditor:
        auditor.looks["sources"] = lambda: _source_books(cameras)
        feeds = [
            place.feed(FEED.format(camera=n, frames=300, faults=FAULTS), f"raw_{cam}", pace=130)
            for n, cam in enumerate(("cam1", "cam2", "cam3", "cam4", "late"), 1)
        ]
        rounds = 0
        while rounds <= 60 or not all(
            feed.report or feed.error for feed in feeds
        ):  # the churn comes round once at least
            batch = cameras.get_batch(timeout=0.05, mode=("auto", "every_frame", "freshest")[rounds // 20 % 3])
            cameras.send_batch(batch, lambda item: {"index": item.index})
            statuses += _status_is_wrong(cameras.status())
            _churn(cameras, rounds)
            rounds += 1
        reports = [feed.join() for feed in feeds]
        last = cameras.accounts()
    assert auditor.wrong == []
    assert statuses == []
    assert auditor.counted["sources"] > 200
    assert all(report.account.balanced for report in reports)
    assert {fault.kind for report in reports for fault in report.faults} >= {"gap", "missing", "duplicate", "swap"}
    after = cameras.accounts()
    assert last.keys() == after.keys() == {"cam1", "cam2", "cam3", "cam4", "late"}, (
        "a deleted source stays in the books"
    )
    for cam, books in after.items():
        assert books.balanced and books.held_total == 0 and books.received >= last[cam].received
    assert {cause for books in after.values() for cause in books.dropped} >= {"resync", "rate"}


def _work(number: int, handles: dict[str, Any]) -> None:
    """A little of everything that handles do."""
    value = b"x" * (number % 700)
    with contextlib.suppress(WaitTimeoutError):
        if number % 3:
            handles["producer"].send(value, timeout=0.2)
        else:
            handles["ring producer"].put(value, timeout=0.2)
    if number % 7 == 0:
        handles["lossy"].poll(0, 3)
        handles["ring reader"].poll(0)
    if number % 50 == 49:
        handles["lossy"].seek(handles["lossy"].end_offset())
    for name in ("first", "second"):
        member = handles[name]
        for record in member.poll(0, 2):
            (member.nack if record.offset % 11 == 0 and not record.redelivered else member.ack)(record)
    if (lease := handles["ring member"].take(0)) is not None:
        (lease.ack if number % 5 else lease.nack)()


@pytest.mark.core
def test_the_books_of_handles_balance_while_they_work(place: Any) -> None:
    place.topic("work", records=32, data_bytes=1 << 16, policy="drop_oldest")
    with (
        place.broker.producer("work") as producer,
        place.broker.consumer("work", start="beginning") as lossy,
        place.broker.consumer("work", group="g", start="beginning") as first,
        place.broker.consumer("work", group="g", start="beginning") as second,
        ring.attach("work", place.directory) as log,
        log.producer() as ring_producer,
        log.member("h", start="beginning") as ring_member,
        log.reader(start="beginning") as ring_reader,
        _Auditor() as auditor,
    ):
        handles: dict[str, Any] = {
            "producer": producer,
            "lossy": lossy,
            "first": first,
            "second": second,
            "ring producer": ring_producer,
            "ring member": ring_member,
            "ring reader": ring_reader,
        }
        auditor.looks = {name: lambda handle=handle: [handle.account()] for name, handle in handles.items()}
        deadline = time.monotonic() + 90
        number = 0
        while number < 1000 or min(auditor.counted.get(name, 0) for name in handles) < 100:
            assert time.monotonic() < deadline, f"{number} rounds, looked {auditor.counted} times: {auditor.wrong}"
            _work(number, handles)
            number += 1
        producer.end()
        final = {name: handle.account() for name, handle in handles.items()}
    assert auditor.wrong == []
    assert all(books.balanced for books in final.values())
    assert final["producer"].delivered + final["ring producer"].delivered == number
    assert final["ring reader"].dropped.get("lapped", 0) > 0 and final["lossy"].dropped.get("jumped", 0) > 0
    assert final["first"].delivered + final["second"].delivered > 0 and final["ring member"].delivered > 0
