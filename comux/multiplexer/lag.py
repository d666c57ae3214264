"""When a source that is behind jumps, and where to: pure decisions, no clocks, no threads.

**Problem.** A camera's loop must show the present. A source that has fallen behind can win time in two ways only: go on
at a later point at which a decoder can start (a keyframe), or decode everything but skip converting and delivering.

**Rule.** Behind means more than ``records`` records, or ``age`` seconds, between the position and the newest record.

======================================  ============================================================================
behind, a keyframe lies ahead           ``JUMP`` there, never backwards; what is passed over is counted ``jumped``
behind, none ahead                      ``CATCH_UP``: decode without converting, and not even decode what no other
                                        picture refers to; all are counted ``lag``
behind ``age`` seconds, none ahead      ``WAIT``: forget the stream up to the next keyframe
more than half, kept ``freshest``       what no other picture refers to is not decoded (``hurries``), counted ``lag``
at most half of the limits behind       ``GO`` on normally; the rule is armed again
in between                              as before
======================================  ============================================================================

**No livelock.** With a limit below the distance of keyframes the newest keyframe is itself behind by more than the
limit. After a jump the rule is disarmed: the picture at the landing point is always given out, and only then the source
may jump again, to a keyframe strictly ahead, or catches up. So every jump moves forward and every jump yields a
picture, whatever the limit. ``WAIT`` happens once until the rule is armed again: clocks that disagree by more than
``age`` cost pictures at the start of a stream, and not all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

DEFAULT_RECORDS: Final = 20


class Step(Enum):
    """What the source does next."""

    GO = "go"
    JUMP = "jump"
    CATCH_UP = "catch_up"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class LagLimits:
    """Limits of one source; ``None``: no limit of that kind.

    Attributes:
        records: Most records behind.
        age: Most seconds behind.
    """

    records: int | None = DEFAULT_RECORDS
    age: float | None = None

    @property
    def active(self) -> bool:
        """Whether there is any limit."""
        return self.records is not None or self.age is not None

    def over(self, records: int, age: float) -> bool:
        """Whether a source that far behind is behind."""
        return (self.records is not None and records > self.records) or self.too_old(age)

    def too_old(self, age: float) -> bool:
        """Whether the age alone is over its limit."""
        return self.age is not None and age > self.age

    def recovered(self, records: int, age: float) -> bool:
        """Whether the lag is at most half of every limit; the record that is looked at does not count as behind."""
        few = self.records is None or records <= max(1, self.records // 2)
        return few and (self.age is None or age <= self.age / 2)


class LagRule:
    """The rule with its memory. Used by one thread.

    Args:
        limits: May be replaced at any time (``limits`` attribute).
    """

    def __init__(self, limits: LagLimits) -> None:
        self.limits = limits
        self.armed = True
        self.catching_up = False
        self._waited = False
        self._landed = True
        self._asked = False

    def gave_picture(self) -> None:
        """A picture came out since the last jump: the next one is allowed."""
        self._landed = True

    def forget(self) -> None:
        """Another stream begins: as new."""
        self.armed = self._landed = True
        self.catching_up = self._waited = self._asked = False

    def asked(self) -> None:
        """Somebody chose the place, however far behind it is: no limit holds until the source has caught up."""
        self.forget()
        self._asked = True

    def hurries(self, records: int, age: float, mode: str) -> bool:
        """After ``decide``: whether to leave out pictures that no other one refers to: where pictures are kept
        ``freshest``, from half of the limits on, so that a decoder a little too slow need not jump; and catching up."""
        return self.catching_up or (mode == "freshest" and not self.limits.recovered(records, age))

    def decide(
        self, records: int, age: float, position: int, newest_keyframe: Callable[[], int | None]
    ) -> tuple[Step, int | None]:
        """Say what to do before the record at ``position`` is decoded.

        Args:
            records: Records behind.
            age: Seconds behind.
            position: Offset of the next record.
            newest_keyframe: Newest offset a decoder can start from; asked only when it matters.

        Returns:
            The step, and for ``JUMP`` the offset to go to, which is greater than ``position``.
        """
        limits = self.limits
        if not limits.active:
            self.armed, self.catching_up = True, False
            return Step.GO, None
        if not limits.over(records, age):
            self._asked = False
            if limits.recovered(records, age):
                self.armed, self.catching_up, self._waited = True, False, False
            return (Step.CATCH_UP if self.catching_up else Step.GO), None
        if self._asked:
            return Step.GO, None
        if self.armed or self._landed:
            target = newest_keyframe()
            if target is not None and target > position:
                self.armed = self._landed = self.catching_up = False
                return Step.JUMP, target
        self.armed = False
        if not self._landed:
            return Step.GO, None
        if limits.too_old(age) and not self._waited:
            self._waited = True
            self._landed = self.catching_up = False
            return Step.WAIT, None
        self.catching_up = True
        return Step.CATCH_UP, None
