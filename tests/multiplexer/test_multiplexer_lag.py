"""The lag rule and the pacing: pure decisions."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from comux.decoders.rate import RateLimiter
from comux.multiplexer.lag import LagLimits, LagRule, Step
from comux.multiplexer.pacing import PeriodMeter


def test_no_limits_never_acts() -> None:
    rule = LagRule(LagLimits(None, None))
    assert rule.decide(10**6, 10**6, 0, lambda: 5) == (Step.GO, None)


def test_jumps_forward_only_and_rearms_at_half() -> None:
    rule = LagRule(LagLimits(20))
    assert rule.decide(20, 0, 100, lambda: 110) == (Step.GO, None)
    assert rule.decide(21, 0, 100, lambda: 110) == (Step.JUMP, 110)
    rule.gave_picture()
    assert rule.decide(11, 0, 110, lambda: 110) == (Step.GO, None)
    assert not rule.armed
    assert rule.decide(10, 0, 111, lambda: 110) == (Step.GO, None)
    assert rule.armed


def test_a_keyframe_at_or_behind_the_position_is_no_target() -> None:
    for keyframe in (99, 100, None):
        rule = LagRule(LagLimits(20))
        assert rule.decide(30, 0, 100, lambda keyframe=keyframe: keyframe) == (Step.CATCH_UP, None)
        assert rule.decide(15, 0, 115, lambda: None) == (Step.CATCH_UP, None), "until half of the limit"
        assert rule.decide(10, 0, 120, lambda: None) == (Step.GO, None)


def test_after_a_jump_the_landing_picture_comes_out_before_anything_else() -> None:
    rule = LagRule(LagLimits(5))
    assert rule.decide(29, 0, 0, lambda: 10)[0] is Step.JUMP
    assert rule.decide(19, 0, 10, lambda: 25) == (Step.GO, None), "no second jump before a picture"
    rule.gave_picture()
    assert rule.decide(18, 0, 11, lambda: 25) == (Step.JUMP, 25)
    rule.gave_picture()
    assert rule.decide(9, 0, 26, lambda: 25) == (Step.CATCH_UP, None)


def test_past_the_age_it_waits_for_a_keyframe_once() -> None:
    rule = LagRule(LagLimits(None, 1.0))
    assert rule.decide(3, 2.0, 7, lambda: None) == (Step.WAIT, None)
    assert rule.decide(3, 2.0, 8, lambda: None) == (Step.GO, None), "the next picture is given out"
    rule.gave_picture()
    assert rule.decide(3, 2.0, 9, lambda: None) == (Step.CATCH_UP, None), "no second wait"
    assert rule.decide(0, 0.0, 12, lambda: None) == (Step.GO, None)
    assert rule.decide(3, 2.0, 13, lambda: None) == (Step.WAIT, None), "armed again"


@settings(max_examples=60, deadline=None)
@given(
    limit=st.integers(1, 40), gop=st.sampled_from([1, 7, 30, 250]), speed=st.floats(0.3, 3.0), start=st.integers(0, 600)
)
def test_never_backwards_and_no_livelock_whatever_limit_gop_and_speed(
    limit: int, gop: int, speed: float, start: int
) -> None:
    """A model of a source: per step one record is read and ``1 / speed`` records are appended."""
    rule = LagRule(LagLimits(limit))
    head, position, waiting, pictures, jumps, steps = float(start), 0, True, 0, 0, 3000
    for _ in range(steps):
        head += 1 / speed
        newest = int(head) - 1
        if position > newest:
            continue
        keyframe = newest // gop * gop
        step, target = rule.decide(
            newest + 1 - position, 0, position, lambda k=keyframe, p=position: k if k >= p else None
        )
        if step is Step.JUMP:
            assert target is not None
            assert target > position
            assert target % gop == 0
            position, waiting, jumps = target, True, jumps + 1
        waiting = waiting and position % gop != 0
        if not waiting and step is not Step.CATCH_UP:
            rule.gave_picture()
            pictures += 1
        position += 1
    assert pictures >= jumps, "every jump yields a picture"
    if speed < 1 or start > limit + gop:
        assert jumps > 0 or pictures > 0
    if speed > 1.5:
        assert pictures > steps / 8, "a decoder that is fast enough catches up and stays"


def offer(limiter: RateLimiter, capture_ns: int) -> bool:
    """A packet comes, and its picture at once."""
    limiter.observe(capture_ns)
    return limiter.take(capture_ns)


def test_rate_keeps_the_average_and_all_where_it_suffices() -> None:
    def passed(rate: float, fps: float, jitter_ns: int = 0, count: int = 3000) -> int:
        limiter = RateLimiter(rate)
        return sum(offer(limiter, 10**18 + int(n * 1e9 / fps) + (jitter_ns if n % 2 else 0)) for n in range(count))

    assert abs(passed(10, 30) - 1000) <= 2
    assert abs(passed(20, 30) - 2000) <= 4
    assert passed(30, 30, jitter_ns=5_000_000) >= 2990, "jitter must not halve a rate that suffices"
    assert passed(60, 30) == 3000
    assert abs(passed(7, 25) - 840) <= 3


def test_rate_earns_no_burst_in_a_pause_and_survives_a_clock_that_leaps() -> None:
    limiter = RateLimiter(10)
    start = 10**18
    assert offer(limiter, start)
    later = start + 60_000_000_000
    assert sum(offer(limiter, later + n * 10_000_000) for n in range(100)) <= 11
    assert offer(limiter, start), "a new clock begins anew"
    assert not offer(limiter, start + 10_000_000)


def test_due_times_move_to_a_keyframe_later_and_not_by_jitter() -> None:
    def next_due(first: float, key: float) -> float | None:
        limiter = RateLimiter(2)
        assert offer(limiter, 10**18 + round(first * 1e9))
        limiter.align(10**18 + round(key * 1e9))
        due = limiter.not_before(())
        return None if due is None else round((due - 10**18) / 1e9, 3)

    assert next_due(0.2, 0.4) == 0.9, "0.7 moves to half a second after the keyframe"
    assert next_due(0.2, 0.65) == 0.7, "jitter"
    assert next_due(0.2, 0.25) == 0.7
    assert next_due(0.2, 0.7) == 0.7, "it is due itself"
    assert next_due(0.2, 0.8) == 0.7, "the next is due before it"
    nothing = RateLimiter(None)
    nothing.align(0)
    assert nothing.not_before(()) is None and nothing.take(0)


def test_period_is_measured_and_begins_anew_after_a_gap() -> None:
    meter = PeriodMeter()
    assert meter.period_ns is None
    for n in range(20):
        meter.tick(n * 40_000_000)
    assert meter.period_ns == 40_000_000
    meter.tick(20_000_000_000)
    assert meter.period_ns is None
    assert meter.rate(21_000_000_000) == 0.0


def test_a_source_is_overdue_after_three_of_its_own_periods() -> None:
    meter = PeriodMeter()
    assert not meter.overdue(10**12), "nothing is known yet"
    for i in range(8):
        meter.tick(i * 50_000_000)
    last = 7 * 50_000_000
    assert not meter.overdue(last + 150_000_000)
    assert meter.overdue(last + 150_000_001)
    fast = PeriodMeter()
    for i in range(8):
        fast.tick(i * 1_000_000)
    assert not fast.overdue(7_000_000 + 100_000_000), "100 ms at least: pictures come in bursts"
