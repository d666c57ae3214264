"""Faults: what the text says, what happens to packets, and that everything that happened is told."""

from __future__ import annotations

from collections import Counter

import crc32c
import pytest

from comux.errors import ConfigError
from comux.feeds import Fault, FeedPacket, inject, parse_faults


def stream(count, fps=10.0):
    packets = []
    for n in range(count):
        data = bytes([n % 251]) * 40
        packets.append(FeedPacket(data, n, crc32c.crc32c(data), n, n / fps, n / fps, n % 10 == 0))
    return packets


def run(text, count=200, seed=1):
    return list(inject(stream(count), parse_faults(text), seed))


def published(packets):
    return [p for p in packets if "missing" not in p.faults]


def test_text():
    assert parse_faults("") == ()
    assert parse_faults("stall@5s+3s,corrupt@p0.25,missing@100+2,gap@2s+5,swap@9,nokey@10s+4s") == (
        Fault("stall", every_s=5, for_s=3),
        Fault("corrupt", probability=0.25, amount=8),
        Fault("missing", every=100, amount=2),
        Fault("gap", every_s=2, amount=5),
        Fault("swap", every=9),
        Fault("nokey", every_s=10, for_s=4),
    )


@pytest.mark.parametrize(
    "text",
    [
        "melt@5", "stall", "stall@5", "stall@5s", "stall@5s+3", "stall@-5s+3s", "corrupt@", "corrupt@p0", "corrupt@p2",
        "corrupt@1", "corrupt@0", "corrupt@five", "cut@5+2", "swap@5+", "missing@5+0", "missing@5+2s", "gap@nans",
        "stall@infs+1s", "corrupt@pnan",
    ],
)  # fmt: skip
def test_wrong_text_is_one_clear_error(text):
    with pytest.raises(ConfigError, match="fault '") as error:
        parse_faults(text)
    assert "\n" not in str(error.value)


def test_without_faults_nothing_changes():
    assert run("") == stream(200)


def test_seeded():
    text = "corrupt@p0.1,cut@p0.1,swap@p0.1,missing@p0.1,duplicate@p0.1"
    assert run(text, seed=3) == run(text, seed=3)
    assert run(text, seed=3) != run(text, seed=4)


def test_missing_consumes_its_number():
    packets = run("missing@10+3")
    lost = [p.seq for p in packets if "missing" in p.faults]
    assert lost[:6] == [10, 11, 12, 20, 21, 22]
    assert sorted([p.seq for p in published(packets)] + lost) == list(range(200))


def test_duplicate_comes_twice():
    packets = run("duplicate@50")
    assert len(packets) == 203
    counts = Counter(p.seq for p in packets)
    assert [seq for seq, n in counts.items() if n == 2] == [50, 100, 150]
    assert Counter(k for p in packets for k in p.faults) == {"duplicate": 3}
    at = [n for n, p in enumerate(packets) if p.seq == 50]
    assert at[1] == at[0] + 1 and packets[at[0]].data == packets[at[1]].data


def test_swap_changes_places():
    packets = run("swap@50")
    order = [p.seq for p in packets]
    assert sorted(order) == list(range(200))
    assert order[49:53] == [49, 51, 50, 52]
    assert [p.seq for p in packets if p.faults == ("swap",)] == [50, 100, 150]


def test_swap_at_the_very_end_is_none():
    packets = run("swap@5", count=6)
    assert [p.seq for p in packets] == list(range(6)) and not any(p.faults for p in packets)


def test_corrupt_and_cut_betray_themselves():
    packets = run("corrupt@20+4,cut@30")
    for p in packets:
        damaged = crc32c.crc32c(p.data) != p.crc
        assert damaged == bool(p.faults)
        if "cut" in p.faults:
            assert 0 < len(p.data) < 40
        elif p.faults:
            assert (
                len(p.data) == 40
                and 1 <= sum(a != b for a, b in zip(p.data, bytes([p.seq % 251]) * 40, strict=True)) <= 4
            )
    assert {k for p in packets for k in p.faults} == {"corrupt", "cut"}


def test_stall_moves_everything_after_it():
    packets = run("stall@5s+3s")
    stalled = [p.seq for p in packets if "stall" in p.faults]
    assert stalled == [50, 100, 150]
    for p in packets:
        late = 3.0 * sum(p.seq >= s for s in stalled)
        assert p.release_s == pytest.approx(p.seq / 10 + late) and p.capture_s == p.release_s
        assert crc32c.crc32c(p.data) == p.crc


def test_probability_is_kept_roughly():
    hits = sum(bool(p.faults) for p in run("cut@p0.2", count=5000))
    assert 800 < hits < 1200


def test_the_first_packet_is_left_alone():
    for kind in ("missing", "corrupt", "cut", "swap", "duplicate"):
        packets = list(inject(stream(50), parse_faults(f"{kind}@p1"), 1))
        assert packets[0].seq == 0 and packets[0].faults == ()
