"""Deleted sources stay in the totals, in memory that does not grow with every deletion."""

from __future__ import annotations

from typing import Any

from comux import Comux
from comux.multiplexer.past import EARLIER


def test_a_source_that_comes_and_goes_keeps_one_sum(address: str, feed: Any, fake: Any) -> None:
    f = feed("a", gop=1)
    with Comux(["b"], address=address, decoder_factory=fake, mode="every_frame", strict_on_fail=False) as mux:
        for _ in range(30):
            mux.create("a")
            f.send(2)
            assert mux.read("a", timeout=10)
            mux.delete("a")
        books = mux.accounts()["a"]
        assert (books.received, books.balanced, books.held_total) == (60, True, 0)
        assert books.delivered + books.dropped["removed"] == 60
        assert len(mux._core._past._open) <= 2 and len(mux._core._past._sums) == 1
        mux.create("a")
        f.send(1)
        assert mux.read("a", timeout=10)
        assert mux.accounts()["a"].received == 61


def test_the_oldest_ids_are_folded_together(address: str, fake: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("comux.multiplexer.past._IDS", 5)
    with Comux(["b"], address=address, decoder_factory=fake, strict_on_fail=False) as mux:
        for number in range(20):
            mux.create(f"x{number}")
            mux.delete(f"x{number}")
        accounts = mux.accounts()
    assert EARLIER in accounts and "x19" in accounts and "x0" not in accounts
    assert len(accounts) <= 8
