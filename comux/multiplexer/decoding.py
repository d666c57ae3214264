"""A source's decoder, and the packets in it: held at ``decoder`` by the books until it is known what they became.

A source that is replaced by another one (``update``) hands both over, so that the packets between two keyframes go on
making pictures: another size or format of the arrays asks for no other decoder. Used by one source's thread at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from comux.account import Account
from comux.decoders.interface import Decoder, DecoderOptions, Outcome, Picture
from comux.decoders.rate import RateLimiter
from comux.options import CamId
from comux.processes import Mover
from comux.records import Record

_log = logging.getLogger("comux.multiplexer")

PLACE: Final = "decoder"


class Decoding:
    """See the module.

    Args:
        cam_id: Of the source.
        account: Its books.
        limiter: Says which pictures the source will not take; is shown every packet.
        mover: Sees whether another process should decode; ``None``: that is settled.

    Attributes:
        decoder: ``None`` before there is one, and after it was given up.
        hurried: It leaves out what it can, to catch up.
        inherited: It was another source's, and ``open`` has not seen yet whether it will do.
        threads: With how many threads that one decodes, where this one may go on so; 0: choose.
    """

    def __init__(self, cam_id: CamId, account: Account, limiter: RateLimiter, mover: Mover | None = None) -> None:
        self.decoder: Decoder | None = None
        self._cam_id = cam_id
        self._account = account
        self._limiter = limiter
        self._mover = mover
        self._moves = False  # before the next packet is fed
        self._packets = 0  # in the decoder; mirrors the books, so that one that is given up leaves nothing behind
        self._options: DecoderOptions | None = None
        self._converting = True
        self.hurried = False
        self.inherited = False
        self.threads = 0

    @property
    def resyncing(self) -> bool:
        """There is a decoder, and it waits for a clean keyframe."""
        return self.decoder is not None and self.decoder.resyncing

    @property
    def damage(self) -> dict[str, int]:
        """How often the decoder saw doubt, by reason."""
        decoder = self.decoder
        return {} if decoder is None else dict(decoder.damage)

    def open(self, make: Callable[[DecoderOptions], Decoder], options: DecoderOptions) -> None:
        """See to it that there is a decoder. One that was taken over, and cannot go on so, is given up, ``updated``.

        Raises:
            ComuxError: as ``make``.
        """
        if self.inherited and not self._goes_on(options):
            self.give_up("updated")
        self.inherited, self.threads = False, 0
        if self.decoder is None:
            self.decoder = make(options)
            self._converting, self.hurried = True, False
        self.decoder.select(self._limiter)
        self._options = options

    def _goes_on(self, wanted: DecoderOptions) -> bool:
        old = self._options
        if self.decoder is None or old is None:
            return False
        if replace(wanted, width=old.width, height=old.height, array_format=old.array_format) != old:
            return False
        return wanted == old or self.decoder.reshape(wanted.width, wanted.height, wanted.array_format)

    def take_over(self, other: Decoding, *, threads: bool) -> None:
        """Go on with the decoder of another, whose thread has ended, and with what is in it; ``threads``: as many."""
        self.decoder, other.decoder = other.decoder, None
        self._packets, other._packets = other._packets, 0
        self._options, self._converting, self.inherited = other._options, other._converting, True
        self.hurried = other.hurried
        self.threads = self._options.threads if threads and self._options is not None else 0

    def accept(self, record: Record) -> list[Outcome]:
        """A packet is here from now on, and ``feed`` comes next. What is known of earlier ones before it goes in: the
        last pictures of a decoder that will be another process's from it on."""
        self._account.move("queue", PLACE)
        self._packets += 1
        if self._mover is None or self.decoder is None or not self._mover.due(self.decoder, record):
            return []
        self._moves = True
        return self.decoder.drain()

    def feed(self, record: Record) -> list[Outcome]:
        """The packet goes in; what is known of it and of earlier ones now."""
        assert self.decoder is not None
        if self._moves:
            self._move(self.decoder, record)
        self._limiter.observe(record.timestamp_ns)
        return self.decoder.feed(record) if self._mover is None else self._mover.feed(self.decoder, record)

    def _move(self, here: Decoder, record: Record) -> None:
        self._moves = False
        assert self._mover is not None
        there = self._mover.move(here, record)
        if there is None:
            return
        self.decoder, self._mover = there, None
        self._close(here)
        there.select(self._limiter)
        if not self._converting:
            there.set_converting(False)
        if self.hurried:
            there.hurry(True)

    def takes(self, picture: Picture) -> bool:
        """Whether the rate lets a picture pass that came out; asked once of each, in their order."""
        return self._limiter.take(picture.record.timestamp_ns) if picture.passed is None else picture.passed

    def stored(self) -> None:
        """A packet's picture was taken, and its place in the books with it."""
        self._packets -= 1

    def absorb(self) -> None:
        """A packet held no picture, and was none to hold one."""
        self._packets -= 1
        self._account.absorb(PLACE)

    def drop(self, cause: str) -> None:
        """A packet became nothing."""
        self._packets -= 1
        self._account.drop(PLACE, cause)

    def convert(self, converting: bool, *, hurried: bool) -> None:
        """Whether pictures are worth converting, and those that no other one refers to not even decoding; see
        ``Decoder.set_converting`` and ``Decoder.hurry``."""
        if self.decoder is None:
            return
        if self._converting is not converting:
            self._converting = converting
            self.decoder.set_converting(converting)
        if self.hurried is not hurried:
            self.hurried = hurried
            self.decoder.hurry(hurried)

    def give_up(self, cause: str) -> None:
        """Close the decoder; what is in it is dropped."""
        decoder, self.decoder = self.decoder, None
        self._account.drop(PLACE, cause, self._packets)
        self._packets = 0
        self._moves = False
        if decoder is not None:
            self._close(decoder)

    def _close(self, decoder: Decoder) -> None:
        try:
            decoder.close()
        except Exception:  # noqa: BLE001 - a plug-in's failure to close must not end the source
            _log.exception("source %r: the decoder could not be closed", self._cam_id)
