"""The same clips decoded in threads and in processes: the same pictures, indices, identities, books and damage."""

from __future__ import annotations

import contextlib
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
from processes_kit import clip, seen, send

from comux import Comux
from comux.multiplexer.decoding import Decoding
from comux.transport import TopicSpec

Packets = Iterable[tuple[Any, bytes]]


def whole(packets: Iterable[Any]) -> Packets:
    return [(packet, packet.data) for packet in packets]


def hurt(packets: Iterable[Any]) -> Packets:
    """Lost, cut, flipped, doubled, swapped; each far enough from the next that some pictures are right."""
    rows = list(whole(packets))
    rng = random.Random(1)
    packet, data = rows[20]
    rows[20] = (packet, data[: len(data) // 2])
    packet, data = rows[50]
    spot = rng.randrange(len(data) // 2, len(data))
    rows[50] = (packet, data[:spot] + bytes([data[spot] ^ 0x10]) + data[spot + 1 :])
    rows[70], rows[71] = rows[71], rows[70]
    rows.insert(80, rows[79])
    del rows[35]
    return rows


@contextlib.contextmanager
def counted() -> Iterator[dict[str, dict[str, int]]]:
    """Filled at the end of each source with what its decoder had counted, which nobody can ask for any more then."""
    damage: dict[str, dict[str, int]] = {}
    give_up = Decoding.give_up

    def note(self: Decoding, cause: str) -> None:
        if self.decoder is not None:
            damage[str(self._cam_id)] = self.damage
        give_up(self, cause)

    with mock.patch.object(Decoding, "give_up", note):
        yield damage


def both(
    address: str,
    topic: Callable[..., Any],
    rows: dict[str, Packets],
    *,
    foreign: bool = False,
    **options: Any,
) -> tuple[dict[str, list[Any]], Any]:
    """Publish, take everything both ways, compare; returns what came and the books."""
    for cam, packets in rows.items():
        producer = topic(cam)
        for packet, data in packets:
            send(producer, packet, data=data, foreign=foreign)
        producer.end()
    found = []
    for processes in (0, 2):
        settings = {"start": "beginning", "mode": "every_frame", "decode_threads": 1, **options}
        setting = {"address": address, "decode_processes": processes, **settings}
        with counted() as damage, Comux(list(rows), **setting) as mux:
            got = seen(mux)
            sizes = {cam: mux._core.find(cam).size for cam in rows}
        found.append((got, mux.accounts(), damage, sizes))
    (here, books, damage, sizes), there = found
    assert there[0] == here
    assert there[1] == books
    assert there[2] == damage
    assert damage.keys() == rows.keys()
    assert there[3] == sizes
    assert all(book.balanced and not book.held_total for book in books.values())
    return here, books


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("h264", {}),
        ("h264", {"W": 80, "H": 60}),
        ("h264", {"array_format": "rgb24"}),
        ("h264", {"array_format": "gray"}),
        ("h264", {"array_format": "planes"}),
        ("h264", {"decode_threads": 2}),
        ("hevc", {}),
        ("hevc", {"W": 96, "H": 50, "array_format": "gray"}),
        ("mjpeg", {}),
        ("vp9", {}),
    ],
)
def test_every_picture_is_the_same(address: str, topic: Any, codec: str, options: dict[str, Any]) -> None:
    packets = clip(codec, 45)
    got, books = both(address, topic, {"a": whole(packets), "b": whole(packets)}, codec=codec, **options)
    assert len(got["a"]) == len(got["b"]) == 45
    assert books["a"].delivered == 45


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("on_damage", ["drop", "deliver"])
@pytest.mark.parametrize("codec", ["h264", "hevc", "mjpeg"])
def test_damage_is_the_same(address: str, topic: Any, codec: str, on_damage: str, foreign: bool) -> None:
    rows = {"a": hurt(clip(codec)), "b": whole(clip(codec))}
    got, books = both(address, topic, rows, codec=codec, on_damage=on_damage, foreign=foreign)
    assert len(got["b"]) == 90
    assert 30 < len(got["a"]) <= 90
    assert foreign or books["a"].dropped_total > 0


@pytest.mark.parametrize("rate", [20.0, 7.0, 2.0, 1.0])
@pytest.mark.parametrize("options", [{"bframes": 2}, {"bframes": 0}, {"bframes": 2, "open_gop": 1}])
def test_a_rate_takes_the_same_pictures_and_leaves_out_the_same_packets(
    address: str, topic: Any, rate: float, options: dict[str, Any]
) -> None:
    got, books = both(address, topic, {"a": whole(clip("h264", 240, **options))}, rate=rate)
    assert 8 * rate - 2 <= len(got["a"]) <= 8 * rate + 2
    assert books["a"].dropped["rate"] == 240 - len(got["a"])


def test_a_stream_of_bytes_is_the_same(address: str, topic: Any) -> None:
    """Records that cut packets anywhere: several pictures begin in one record, and none in another."""
    packets = clip("h264", 60)
    stream = b"".join(packet.data for packet in packets)
    rng = random.Random(3)
    rows = []
    at = n = 0
    while at < len(stream):
        size = rng.choice((100, 3000, 40_000))
        rows.append((packets[n % 60], stream[at : at + size]))
        at, n = at + size, n + 1
    got, _ = both(address, topic, {"a": rows}, framing="bytestream", foreign=True)
    assert len(got["a"]) >= 55
    assert len({row[1] for row in got["a"]}) == len(got["a"]), "each has an identity of its own"


def test_refused_packets_are_the_same(address: str, topic: Any) -> None:
    packets = clip("h264", 30)
    got, books = both(address, topic, {"a": whole(packets)}, max_pixels=100)
    assert got == {}
    assert books["a"].dropped["too_large"] > 0
    garbage = [(packet, b"\x00garbage" * 30) for packet in packets]
    got, books = both(address, topic, {"b": garbage}, foreign=True)
    assert got == {}
    assert books["b"].dropped_total == 30


def test_raw_arrays_stay_where_they_are(address: str, broker: Any) -> None:
    """There is nothing to decode: another process would only copy them once more, and none is started for them."""
    broker.create_topic(TopicSpec("raw_a", records=64, dtype="uint16", shape=(4, 5), metadata={"finite": True}))
    producer = broker.producer("raw_a")
    for n in range(20):
        producer.send(np.full((4, 5), n, np.uint16))
    producer.end()
    found = []
    for processes in (0, 2):
        with Comux(["a"], address=address, codec="raw", start="beginning", decode_processes=processes) as mux:
            found.append([int(item.array[0, 0]) for batch in mux for item in batch if item.array is not None])
            assert mux._core.processes.pids() == []
    assert found[0] == found[1] == list(range(20))


def test_freshest_and_stacked(address: str, topic: Any) -> None:
    """What is left out is a matter of time; what comes is right, rises, and stacks."""
    packets = clip("h264", 90)
    rows = {cam: whole(packets) for cam in ("a", "b")}
    reference, _ = both(address, topic, rows)
    right = {row[0]: row[6] for row in reference["a"]}
    with Comux(["a", "b"], address=address, start="beginning", mode="freshest", decode_processes=1) as mux:
        last = -1
        for batch in mux:
            stacked = batch.stack()[0] if all(item.array is not None for item in batch) else None
            for n, item in enumerate(batch):
                if item.array is None:
                    continue
                if item.cam_id == "a":
                    assert item.timestamps.capture > last
                    last = item.timestamps.capture
                assert zlib.crc32(item.array) == right[item.index]
                if stacked is not None:
                    assert np.array_equal(stacked[n], item.array)
    books = mux.accounts()
    assert all(book.received == book.delivered + book.dropped_total == 90 for book in books.values())
