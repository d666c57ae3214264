"""Streams, fake decoders and engines of the multiplexer's tests."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from comux import Comux
from comux.decoders.interface import Decoder, DecoderOptions, Identity, Outcome, Picture
from comux.records import KEYFRAME, Record
from comux.transport import Broker, TopicSpec, connect
from comux.transport.memory import discard

_names = itertools.count()


class FakePicture(Picture):
    """Pixels filled with the packet's number modulo 251."""

    def __init__(self, record: Record, shape: tuple[int, ...]) -> None:
        self.record = record
        self.identity = Identity(record.epoch, record.offset)
        self.height, self.width = shape[0], shape[1]
        self.degraded = False
        self.decoded_ns = time.monotonic_ns()
        self._shape = shape

    def to_array(self, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        assert out is None or out.shape == self._shape
        array = np.empty(self._shape, np.uint8) if out is None else out
        array[:] = number_of(self.record.value) % 251
        return array

    def array_spec(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        return self._shape, np.dtype(np.uint8)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self._shape))


def number_of(packet: bytes) -> int:
    return int(bytes(packet).split(b":")[1])


class FakeDecoder(Decoder):
    """Understands ``b"K:<n>"`` (keyframe), ``b"P:<n>"``, ``b"S:0"`` (no picture); anything else is an error.

    Like a real one it needs a keyframe first, notices gaps, and can hold pictures back (``delay``). ``gate`` lets a
    test stop it; ``explode`` makes ``feed`` raise, which a decoder must not do.
    """

    delay = 0
    gate: threading.Event | None = None
    cost = 0.0

    def __init__(self, options: DecoderOptions) -> None:
        self.options = options
        self.resyncing = True
        self.damage: dict[str, int] = {}
        self.closed = False
        self._held: deque[Record] = deque()
        self._next: int | None = None
        self._converting = True

    def feed(self, record: Record) -> list[Outcome]:
        if self.gate is not None:
            assert self.gate.wait(20)
        if bytes(record.value) == b"explode":
            raise RuntimeError("the fake decoder explodes")
        gap = self._next is not None and record.offset != self._next
        self._next = record.offset + 1
        kind = bytes(record.value[:2])
        if kind == b"S:":
            return [Outcome(record, cause="absorbed")]
        if kind not in (b"K:", b"P:"):
            self.resyncing = True
            self.damage["codec"] = self.damage.get("codec", 0) + 1
            return [*self._flush("decode_error"), Outcome(record, cause="decode_error", detail="not a packet")]
        out: list[Outcome] = []
        if gap:
            out = self._flush("resync")
            self.resyncing = True
        if self.resyncing and kind != b"K:":
            return [*out, Outcome(record, cause="resync")]
        self.resyncing = False
        self._held.append(record)
        while len(self._held) > self.delay:
            out.append(self._give(self._held.popleft()))
        return out

    def _give(self, record: Record) -> Outcome:
        if not self._converting:
            return Outcome(record, cause="lag")
        shape = (self.options.height or 8, self.options.width or 16, 3)
        return Outcome(record, FakePicture(record, shape))

    def _flush(self, cause: str) -> list[Outcome]:
        out = [Outcome(record, cause=cause) for record in self._held]
        self._held.clear()
        return out

    def drain(self) -> list[Outcome]:
        out = [self._give(record) for record in self._held]
        self._held.clear()
        return out

    def reset(self, cause: str = "resync") -> list[Outcome]:
        self.resyncing = True
        self._next = None
        return self._flush(cause)

    def starts_at(self, record: Record) -> bool:
        return bytes(record.value[:2]) == b"K:"

    @property
    def in_flight(self) -> int:
        return len(self._held)

    def set_converting(self, converting: bool) -> None:
        self._converting = converting

    def close(self) -> None:
        self.closed = True


class Feed:
    """Publishes numbered fake packets into ``raw_<cam>``."""

    def __init__(self, broker: Broker, cam: str, *, gop: int = 10, flags: bool = True, **spec: Any) -> None:
        self.topic = f"raw_{cam}"
        broker.create_topic(TopicSpec(self.topic, **{"records": 4096, "policy": "drop_oldest", **spec}), exist_ok=True)
        self.producer = broker.producer(self.topic)
        self.gop = gop
        self.flags = flags
        self.sent = 0

    def send(self, count: int = 1, *, timestamp_ns: int | None = None, step_ns: int = 0) -> None:
        for _ in range(count):
            key = self.sent % self.gop == 0
            stamp = time.time_ns() if timestamp_ns is None else timestamp_ns + self.sent * step_ns
            self.raw(
                (b"K:%d" if key else b"P:%d") % self.sent, flags=KEYFRAME if key and self.flags else 0, stamp=stamp
            )
            self.sent += 1

    def raw(self, value: bytes, *, flags: int = 0, stamp: int | None = None) -> None:
        self.producer.send(value, key=b"key", headers=(("h", b"1"),), flags=flags, timestamp_ns=stamp).result(5)

    def end(self) -> None:
        self.producer.end()


def wait_for(condition: Callable[[], Any], seconds: float = 10.0, what: str = "") -> Any:
    """Wait until ``condition`` is true; its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        threading.Event().wait(0.005)
    return value


@pytest.fixture(name="wait_for")
def _wait_for() -> Callable[..., Any]:
    return wait_for


@pytest.fixture
def address() -> Iterator[str]:
    """A store of the in-memory engine for this test alone."""
    name = f"mux{os.getpid()}x{next(_names)}"
    yield f"memory://{name}"
    discard(name)


@pytest.fixture
def broker(address: str) -> Iterator[Broker]:
    with connect(address) as opened:
        yield opened


@pytest.fixture
def feed(broker: Broker) -> Callable[..., Feed]:
    """Makes a feed: ``feed("cam1", gop=10)``."""
    return lambda cam, **options: Feed(broker, cam, **options)


@pytest.fixture
def fake() -> type[FakeDecoder]:
    """A fresh class of fake decoders, so that a test may set ``delay`` and ``gate`` on it."""
    return type("TestDecoder", (FakeDecoder,), {})


@pytest.fixture
def started(address: str) -> Iterator[Callable[..., Comux]]:
    """Starts managers: ``started(["cam1"], mode="every_frame")``; their books are checked at the end."""
    opened: list[Comux] = []

    def make(ids: list[str], **options: Any) -> Comux:
        mux = Comux(ids, address=address, **options)
        opened.append(mux)
        mux.start()
        return mux

    yield make
    for mux in opened:
        mux.close()
        for cam_id, account in mux.accounts().items():
            assert account.balanced, (cam_id, account)
            assert account.held_total == 0, (cam_id, account)


@pytest.fixture
def start(started: Callable[..., Comux], fake: Any) -> Callable[..., Comux]:
    """The same with the decoder that decodes nothing."""
    return lambda ids, **options: started(ids, decoder_factory=fake, **options)


@pytest.fixture
def number() -> Callable[[bytes], int]:
    return number_of
