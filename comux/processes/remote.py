"""The program's side of one decoder: a ``Decoder`` whose work a process does, one request at a time."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from comux.decoders import create_decoder
from comux.decoders.arrays import dtype_from_text
from comux.decoders.interface import ArrayFormat, Decoder, DecoderOptions, Identity, Outcome, Picture, Selection
from comux.decoders.picture import value_bytes
from comux.decoders.rate import RateLimiter
from comux.errors import ClosedError, ConfigError, DecodeError, DecoderLostError
from comux.processes.slots import SlotPool, memory_of
from comux.processes.wire import MESSAGE_BYTES, packed, plain_options, receive, send
from comux.records import Record

_AHEAD: Final = 2  # slots that the process has before it needs them
_AREA_LEAST: Final = 1 << 18


class Link(Protocol):
    """A process that decodes, as a decoder sees it."""

    @property
    def channel(self) -> socket.socket:
        """Connected to a thread of the process that serves this decoder alone."""

    def lost(self, why: str, *, hung: bool) -> str:
        """The process is not heard any more: what became of it, for people. One that hung is killed."""

    def close(self) -> None:
        """The decoder needs it no longer. Idempotent."""


class RemotePicture(Picture):
    """A picture that a process decoded, and converted where it will be taken."""

    def __init__(self, facts: dict[str, Any], record: Record, ready: npt.NDArray[Any] | None) -> None:
        self.record = record
        self.identity = Identity(*facts["identity"])
        self.width, self.height = facts["size"]
        self.degraded = facts["degraded"]
        self.decoded_ns = facts["decoded_ns"]
        self.passed = facts["passed"]
        self.ready = ready
        self._trouble: str | None = facts.get("trouble")

    def to_array(self, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        array = self._made()
        if out is None:
            return array.copy()
        if out.shape != array.shape or out.dtype != array.dtype or not out.flags.c_contiguous:
            raise ValueError(f"out is {out.dtype} {out.shape}, needs C-contiguous {array.dtype} {array.shape}")
        np.copyto(out, array)
        return out

    def array_spec(self) -> tuple[tuple[int, ...], np.dtype[Any]]:
        array = self._made()
        return array.shape, array.dtype

    @property
    def nbytes(self) -> int:
        return (0 if self.ready is None else int(self.ready.nbytes)) + value_bytes(self.record)

    def _made(self) -> npt.NDArray[Any]:
        if self.ready is None:
            raise DecodeError(self._trouble or "nobody was to take it, so it was not converted")
        return self.ready


class RemoteDecoder(Decoder):
    """Decodes one stream in another process. See ``Decoder`` for the contract; used by one thread at a time.

    Args:
        options: Checked by the process.
        connect: Opens a link; raises ``DecoderLostError`` where there is no process just now.

    Every call waits for the process and raises ``DecoderLostError`` where it has ended, or does not answer; then the
    decoder is of no use any more and ``close`` is all that is left. Pictures given out stay valid.

    Raises:
        ConfigError: as ``create_decoder``. DecoderLostError.
    """

    def __init__(self, options: DecoderOptions, connect: Callable[[], Link]) -> None:
        self.options = options
        self.damage: Counter[str] = Counter()
        self._damage_before: Counter[str] = Counter()
        self.resyncing = True
        self._in_flight = 0
        self._records: dict[int, Record] = {}
        self._token = 0
        self._slots = SlotPool()
        self._area: mmap.mmap | None = None
        self._buffer = bytearray(MESSAGE_BYTES)
        self._limiter: RateLimiter | None = None
        self._changes = -1
        # Never fed: it only says where a stream can be started at, which is asked of many packets at a time.
        self._probe = create_decoder(replace(options, threads=1, hwaccel=None))
        self._link: Link | None = connect()
        try:
            self._ask({"op": "open", "options": plain_options(options)})
        except BaseException:
            self.close()
            raise

    # -- the contract ----------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def shared_bytes(self) -> int:
        """Memory shared with the process, in bytes."""
        return self._slots.nbytes + (0 if self._area is None else len(self._area))

    def known_damage(self, damage: Mapping[str, int]) -> None:
        """What another decoder of this stream has counted before."""
        self._damage_before = Counter(damage)
        self.damage = self._damage_before + self.damage

    def starts_at(self, record: Record) -> bool:
        return self._probe.starts_at(record)

    def feed(self, record: Record) -> list[Outcome]:
        if self._link is None:
            raise ClosedError(f"topic {record.topic!r} offset {record.offset}: the decoder was closed; make a new one")
        token, self._token = self._token, self._token + 1
        self._records[token] = record
        facts, buffers = packed(record)
        message = {"op": "feed", "token": token, **facts}
        fds: list[int] = []
        self._fill(message, fds, buffers)
        limiter = self._limiter
        if limiter is not None and limiter.changes != self._changes:
            self._changes = limiter.changes
            message["period_ns"] = limiter.period_ns
        gone = self._slots.trim()
        if gone:
            message["gone"] = gone
        return self._outcomes(message, fds)

    def drain(self) -> list[Outcome]:
        return self._outcomes({"op": "drain"}, [])

    def reset(self, cause: str = "resync") -> list[Outcome]:
        return self._outcomes({"op": "reset", "cause": cause}, [])

    def set_converting(self, converting: bool) -> None:
        self._ask({"op": "set_converting", "value": converting})

    def hurry(self, hurried: bool) -> bool:
        """See ``Decoder``."""
        return bool(self._ask({"op": "hurry", "value": hurried})["result"])

    def reshape(self, width: int | None, height: int | None, array_format: ArrayFormat) -> bool:
        """See ``Decoder``."""
        asked = {"op": "reshape", "width": width, "height": height, "array_format": array_format}
        done = bool(self._ask(asked)["result"])
        if done:
            self.options = replace(self.options, width=width, height=height, array_format=array_format)
        return done

    def select(self, selection: Selection | None) -> bool:
        """See ``Decoder``. A ``RateLimiter``'s state is copied to the process, which says from then on which pictures
        pass (``Picture.passed``); what it learns comes back. Of any other selection nothing is left out."""
        limiter = selection if isinstance(selection, RateLimiter) else None
        self._limiter = limiter
        self._changes = -1 if limiter is None else limiter.changes
        state = None if limiter is None else limiter.state()
        return bool(self._ask({"op": "select", "limiter": state})["result"])

    def close(self) -> None:
        """Let go of the process's thread and of the memory; what is in flight gets no outcome."""
        link, self._link = self._link, None
        if link is not None:
            link.close()
        self._probe.close()
        self._records.clear()

    # -- requests --------------------------------------------------------------------------------------------------

    def _fill(self, message: dict[str, Any], fds: list[int], buffers: list[Any]) -> None:
        """Write a packet into the memory that the process reads it from."""
        size = sum(len(buffer) for buffer in buffers)
        area = self._area
        if area is None or len(area) < size:
            room = max(_AREA_LEAST, 1 << (size - 1).bit_length())
            area, fd = memory_of(room)
            self._area = area
            message["area"] = room
            fds.append(fd)
        at = 0
        for buffer in buffers:
            area[at : at + len(buffer)] = bytes(buffer) if isinstance(buffer, memoryview) else buffer
            at += len(buffer)

    def _grant(self, message: dict[str, Any], fds: list[int], size: int) -> None:
        slots, segments, more = self._slots.grant(_AHEAD, size)
        fds += more
        if slots:
            message["slots"] = slots
        if segments:
            message["segments"] = segments

    def _outcomes(self, message: dict[str, Any], fds: list[int]) -> list[Outcome]:
        """Ask for what makes pictures, and give it slots until it needs no more."""
        out: list[Outcome] = []
        size = 0
        while True:
            try:
                self._grant(message, fds, size)
            except OSError:
                for fd in fds:
                    os.close(fd)
                raise
            answer = self._ask(message, fds)
            try:
                out += [self._outcome(facts) for facts in answer["outcomes"]]
                for token in answer.get("forget", ()):
                    self._records.pop(token, None)
                if "damage" in answer:
                    self.damage = self._damage_before + Counter(answer["damage"])
                self.resyncing, self._in_flight = answer["resyncing"], answer["in_flight"]
                if self._limiter is not None and "due_ns" in answer:
                    self._limiter.due_ns = answer["due_ns"]
                need = answer.get("need")
                if need is None:
                    return out
                size = need
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise self._lost(f"it answered nonsense: {type(error).__name__}: {error}") from error
            message, fds = {"op": "more"}, []

    def _outcome(self, facts: list[Any]) -> Outcome:
        token, cause, detail, first, shown = facts
        record = self._records[token]
        picture = None
        if shown is not None:
            ready = None
            if shown.get("slot") is not None:
                ready = self._slots.take(shown["slot"], tuple(shown["shape"]), dtype_from_text(shown["dtype"]))
            picture = RemotePicture(shown, self._records[shown["token"]], ready)
        return Outcome(record, picture, cause, detail, first)

    def _ask(self, message: dict[str, Any], fds: list[int] | None = None) -> dict[str, Any]:
        if self._link is None:
            raise ClosedError("the decoder was closed; make a new one")
        try:
            try:
                send(self._link.channel, message, fds)
            finally:
                for fd in fds or ():
                    os.close(fd)
            answer, _ = receive(self._link.channel, self._buffer)
        except (OSError, ValueError) as error:
            raise self._lost(str(error), hung=isinstance(error, BlockingIOError)) from error
        if not isinstance(answer, dict):
            raise self._lost("it let go")
        if "error" in answer:
            kind = ConfigError if answer.get("config") else DecodeError
            raise kind(str(answer["error"]))
        return answer

    def _lost(self, why: str, *, hung: bool = False) -> DecoderLostError:
        assert self._link is not None
        with contextlib.suppress(OSError):
            self._link.channel.shutdown(socket.SHUT_RDWR)
        return DecoderLostError(self._link.lost(why, hung=hung))
