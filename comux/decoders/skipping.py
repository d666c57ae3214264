"""Which pictures need not be decoded, because nobody will take them and nothing else needs them.

Problem. Of a camera with ``rate=2`` two pictures of thirty are taken, and a codec must decode every picture that those
refer to. Decoding the others as well costs as much as if all were taken.

Two kinds of packets can be left out, given what a ``Selection`` says of the pictures that will be taken:

* A **disposable** picture (``Unit.disposable``) that is not due. No other picture changes by it, so nothing is guessed.
* **The rest of a GOP**, up to the next keyframe, where nothing is due before it: the codec gives out what it holds, and
  goes on at the keyframe. That is *passing over*. A keyframe itself is passed over where nothing is due in its GOP. At
  rates of less than one picture per GOP only keyframes are taken: the first at or after each due time. Where a GOP's
  very last picture is due, the keyframe after it is taken in its place, so that jitter of the time stamps does not make
  the codec decode a GOP to its end for nothing.

**When a GOP ends** is a guess from those before: the longest of the last ``_REMEMBERED``, and only where ``_REGULAR``
of them were that long, since a GOP that turns out longer costs the pictures that were due in its rest. Encoders with a
largest GOP reach it again and again, however many shorter ones come in between; one that knows none is decoded whole.
Only intra pictures that the stream itself says one can start at count; not a gradual refresh, nor a record's flag
alone. Both will do where the keyframe that was waited for is missing.

**Too much at once.** A length is learned by decoding whole GOPs. Where many cameras start together there is no time for
that: each is made to jump before it has seen one to its end, again and again. So after the second jump in a row only
keyframes are taken until lengths are known, where they came close enough to each other that this costs few pictures.

**Phase.** Two of thirty are cheapest at a keyframe and half way: a picture late in a GOP costs all before it. A stream
that is joined at a keyframe is counted from there; where the count begins elsewhere (a new rate, a pause), it is moved
at the next keyframe, if GOPs are a whole number of its periods long.

**Order.** Capture times rise as pictures are shown, and packets come in decoding order. So the rest of a GOP is passed
over only at a picture that is later than all that wait in the decoder: then those shown before them have come as well.
Pure: no clocks, no codec. Used by one thread.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from .interface import Selection
from .units import Unit

_REMEMBERED: Final = 8
_REGULAR: Final = 3
_JUMPS: Final = 2
_CLOSE: Final = 4  # periods of the selection between keyframes


class Skipper:
    """Knows a stream's GOPs and decides for each of its pictures.

    Attributes:
        selection: What will be taken; ``None``: everything.
        hurried: Disposable pictures are left out whether or not they are due.
    """

    def __init__(self) -> None:
        self.selection: Selection | None = None
        self.hurried = False
        self._gops: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)  # nanoseconds, pictures
        self._key_ns: int | None = None
        self._pictures = 0
        self._whole = False  # nothing of the GOP in hand was lost, so its length will count
        self._jumps = 0  # in which no length was learned
        self._newest_key_ns: int | None = None
        self._apart_ns: int | None = None  # least distance of keyframes, whatever lay between

    def see(self, capture_ns: int, *, key: bool) -> None:
        """A picture comes, whether or not it will be decoded; ``key``: a decoder can start at it and be right."""
        if key:
            if self._whole and self._key_ns is not None and capture_ns > self._key_ns:
                self._gops.append((capture_ns - self._key_ns, self._pictures))
                if len(self._gops) >= _REGULAR:
                    self._jumps = 0
            if self._newest_key_ns is not None and capture_ns > self._newest_key_ns:
                apart = capture_ns - self._newest_key_ns
                self._apart_ns = apart if self._apart_ns is None else min(apart, self._apart_ns)
            self._newest_key_ns = capture_ns
            self._key_ns, self._pictures, self._whole = capture_ns, 0, True
            self._align(capture_ns)
        self._pictures += 1

    def _align(self, capture_ns: int) -> None:
        known = self._expected()
        period = 0 if self.selection is None else self.selection.period_ns
        if known is None or not period or self.selection is None:
            return
        length, distance = known
        taken = round(length / period)
        if taken > 1 and abs(length - taken * period) <= distance:
            self.selection.align(capture_ns)

    def interrupted(self) -> None:
        """Something is missing: the GOP in hand has no length."""
        self._whole = False

    def forget_place(self, *, jumped: bool = False) -> None:
        """The stream goes on elsewhere; ``jumped``: further on, with pictures passed over unseen."""
        self._jumps += jumped
        self._key_ns = None
        self._whole = False

    def _expected(self) -> tuple[int, int] | None:
        """Length of a GOP, and distance of its pictures, in nanoseconds; ``None``: it cannot be told."""
        if len(self._gops) < _REGULAR:
            return None
        length, pictures = max(self._gops)
        least = length - length // 64 - length // pictures
        full = [gop for gop in self._gops if gop[0] >= least]
        if len(full) < _REGULAR:
            return None
        length = sum(gop[0] for gop in full)  # the mean: jitter of the time stamps makes each one longer or shorter
        return length // len(full), max(1, length // sum(gop[1] for gop in full))

    def leaves_out(self, unit: Unit, capture_ns: int) -> str:
        """Whether this picture alone can be left out: the cause, ``rate`` or ``lag``; ``""``: no."""
        if not unit.disposable or unit.sets:
            return ""
        earliest = None if self.selection is None else self.selection.not_before(())
        if earliest is not None and capture_ns < earliest:
            return "rate"
        return "lag" if self.hurried else ""

    def passes_over(self, capture_ns: int, waiting: list[int]) -> bool:
        """Whether this picture, and everything up to the next keyframe, can be left out.

        Args:
            capture_ns: Of this picture, later than all that wait.
            waiting: As for ``Selection.not_before``.
        """
        if self.selection is None or self._key_ns is None:
            return False
        known = self._expected()
        earliest = self.selection.not_before(waiting)
        if earliest is None:
            return False
        if known is None:
            close = self._apart_ns is not None and self._apart_ns <= _CLOSE * self.selection.period_ns
            return self._jumps >= _JUMPS and close and self._key_ns < capture_ns < earliest
        length, distance = known
        end_ns = self._key_ns + length
        if capture_ns > end_ns + distance:
            return False  # longer than any before: nobody knows when it ends
        if self.selection.period_ns + distance >= length:
            return capture_ns > self._key_ns or capture_ns < earliest
        return capture_ns < earliest and end_ns - 2 * distance < earliest

    def keyframe_is_missing(self, capture_ns: int, *, doubtful: bool) -> bool:
        """Whether, while passing over, a keyframe that was waited for has not come: this picture is due, and the GOP
        too long. That is longer than those before where something is missing in it (``doubtful``), else twice as long,
        counted in pictures: it may have changed, and clocks leap.
        """
        earliest = None if self.selection is None else self.selection.not_before(())
        if earliest is not None and capture_ns < earliest:
            return False
        known = self._expected()
        if known is None or self._key_ns is None:
            return True
        length, distance = known
        if doubtful:
            return capture_ns > self._key_ns + length + 2 * distance
        return self._pictures > 2 * length // distance + 2
