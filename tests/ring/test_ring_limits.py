"""Two deadlines the ring promises, held with a wide margin; ``benchmarks/ipc`` says what they are here."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from comux import ring

pytestmark = pytest.mark.core


@pytest.mark.parametrize("shape", [{"data_bytes": 8 << 20}, {"dtype": "u1", "shape": (64,)}], ids=["variable", "fixed"])
def test_a_ring_of_a_hundred_thousand_slots_is_made_at_once(ring_dir: Path, shape: dict[str, Any]) -> None:
    """Promised: below a second."""
    began = time.monotonic()
    with ring.create(ring.RingSpec("t", slots=100_000, **shape), directory=ring_dir) as r:
        assert time.monotonic() - began < 10
        assert r.spec.slots == 100_000


def test_a_killed_holders_record_reaches_a_sleeping_member_soon(ring_dir: Path) -> None:
    """Promised: 0.2 s after the kill; nobody calls anything meanwhile."""
    with ring.create(ring.RingSpec("t", slots=8), directory=ring_dir) as r, r.member("g", start="beginning") as member:
        told, tell = os.pipe()
        holder = os.fork()
        if holder == 0:
            with ring.attach("t", ring_dir) as mine, mine.member("g") as other:
                os.write(tell, b"y" if other.take(20) else b"n")
                signal.pause()
        try:
            with r.producer() as producer:
                producer.put(b"x")
            assert os.read(told, 1) == b"y"
        finally:
            os.kill(holder, signal.SIGKILL)
        began = time.monotonic()
        lease = member.take(20)
        assert lease is not None and lease.redelivered and time.monotonic() - began < 5
        lease.ack()
        os.waitpid(holder, 0)
        os.close(told)
        os.close(tell)
