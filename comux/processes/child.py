"""A process that decodes for a program: ``python -m comux.processes.child CONTROL_FD PARENT_PID``.

The program sends the end of a channel over the control socket for each decoder it opens; a thread of its own serves
each. The process ends when the control socket does, and when its parent has ended. It reads no topic and keeps nothing.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import sys
import threading
import traceback
import weakref
from collections import deque
from math import prod
from typing import Any

from comux.decoders import create_decoder
from comux.decoders.arrays import dtype_to_text
from comux.decoders.interface import Decoder, Outcome, Picture
from comux.decoders.rate import RateLimiter
from comux.errors import ComuxError, ConfigError
from comux.lifecycle import end_with_parent
from comux.processes.slots import Slots, mapped
from comux.processes.wire import DETAIL_CHARACTERS, MESSAGE_BYTES, options_of, packet_of, receive, send


class Session:
    """One decoder, served to one channel.

    Args:
        channel: Ours; closed at the end.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._buffer = bytearray(MESSAGE_BYTES)
        self._decoder: Decoder | None = None
        self._limiter: RateLimiter | None = None
        self._slots = Slots()
        self._area: mmap.mmap | None = None
        self._pending: deque[Outcome] = deque()
        self._passes: bool | None = None  # of the picture at the head of ``_pending``, once it was asked
        self._forget: deque[int] = deque()
        self._damage: dict[str, int] = {}

    def run(self) -> None:
        """Answer until the other end is closed. What a decoder raises ends it: the program sees the channel close."""
        try:
            while True:
                message, fds = receive(self._channel, self._buffer)
                if message is None:
                    return
                send(self._channel, self._answer(message, fds))
        except OSError:
            pass  # the program has gone, or lets go just now
        except Exception:  # noqa: BLE001 - told where the program's own errors are told; it opens another decoder
            traceback.print_exc()
        finally:
            self._channel.close()
            if self._decoder is not None:
                self._decoder.close()

    def _answer(self, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        if "area" in message:
            self._area = mapped(fds.pop(0), message["area"])
        self._slots.update(message, fds)
        op = message["op"]
        if op == "open":
            return self._open(message)
        decoder = self._opened()
        if op == "feed":
            self._feed(decoder, message)
        elif op == "drain":
            self._pending.extend(decoder.drain())
        elif op == "reset":
            self._pending.extend(decoder.reset(message["cause"]))
        elif op != "more":
            return {"result": self._set(decoder, op, message)}
        return self._outcomes(decoder)

    def _opened(self) -> Decoder:
        if self._decoder is None:
            raise ValueError("the decoder was not opened")
        return self._decoder

    def _open(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            self._decoder = create_decoder(options_of(message["options"]))
        except ComuxError as error:
            return {"error": str(error), "config": isinstance(error, ConfigError)}
        return {}

    def _set(self, decoder: Decoder, op: str, message: dict[str, Any]) -> bool:
        if op == "set_converting":
            decoder.set_converting(message["value"])
            return True
        if op == "hurry":
            return decoder.hurry(message["value"])
        if op == "reshape":
            return decoder.reshape(message["width"], message["height"], message["array_format"])
        if op == "select":
            self._limiter = None
            if message["limiter"] is not None:
                self._limiter = RateLimiter(None)
                self._limiter.restore(message["limiter"])
            return decoder.select(self._limiter)
        raise ValueError(f"there is no request {op!r}")

    def _feed(self, decoder: Decoder, message: dict[str, Any]) -> None:
        assert self._area is not None
        with memoryview(self._area) as area:
            packet = packet_of(message, area, message["token"])
        weakref.finalize(packet, self._forget.append, packet.token)
        if self._limiter is not None:
            if "period_ns" in message:
                period = message["period_ns"]
                self._limiter.set_rate(1e9 / period if period else None)
            self._limiter.observe(packet.timestamp_ns)
        self._pending.extend(decoder.feed(packet))

    def _outcomes(self, decoder: Decoder) -> dict[str, Any]:
        """What became of packets, as far as there are slots for the pictures."""
        out: list[Any] = []
        answer: dict[str, Any] = {"outcomes": out}
        while self._pending and len(out) < 64:
            outcome = self._pending[0]
            shown = None
            if outcome.picture is not None:
                shown = self._shown(outcome.picture)
                if isinstance(shown, int):
                    answer["need"] = shown
                    break
            self._pending.popleft()
            self._passes = None
            token = outcome.record.token  # type: ignore[attr-defined]  # decoders give back what they were fed
            out.append([token, outcome.cause, outcome.detail[:DETAIL_CHARACTERS], outcome.first, shown])
            del outcome
        if self._pending and "need" not in answer:
            answer["need"] = 0
        if self._limiter is not None:
            answer["due_ns"] = self._limiter.due_ns
        if dict(decoder.damage) != self._damage:
            self._damage = answer["damage"] = dict(decoder.damage)
        answer["resyncing"], answer["in_flight"] = decoder.resyncing, decoder.in_flight
        if self._forget:
            answer["forget"] = [self._forget.popleft() for _ in range(len(self._forget))]
        return answer

    def _shown(self, picture: Picture) -> dict[str, Any] | int:
        """A picture, converted into the next slot; the bytes it needs where there is none."""
        if self._passes is None:
            self._passes = self._limiter is None or self._limiter.take(picture.record.timestamp_ns)
        facts: dict[str, Any] = {
            "token": picture.record.token,  # type: ignore[attr-defined]
            "identity": list(picture.identity),
            "size": [picture.width, picture.height],
            "degraded": picture.degraded,
            "decoded_ns": picture.decoded_ns,
            "passed": self._passes,
        }
        if not self._passes:
            return facts
        try:
            shape, dtype = picture.array_spec()
            size = prod(shape) * dtype.itemsize
            place = self._slots.next_for(size)
            if place is None:
                return size
            picture.to_array(out=self._slots.array(place, shape, dtype))
        except Exception as error:  # noqa: BLE001 - a picture that cannot be converted is told of as such
            facts["trouble"] = f"{type(error).__name__}: {error}"[:DETAIL_CHARACTERS]
            return facts
        self._slots.used()
        facts |= {"slot": place, "shape": list(shape), "dtype": dtype_to_text(dtype)}
        return facts


def main() -> int:
    """See the module."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program's to act upon; it ends us
    control = socket.socket(fileno=int(sys.argv[1]))
    if not end_with_parent(int(sys.argv[2]), patience=2.0):
        return 0
    buffer = bytearray(MESSAGE_BYTES)
    try:
        send(control, {"ready": True})
    except OSError:
        return 0
    while True:
        try:
            message, fds = receive(control, buffer)
        except OSError:
            return 0
        if message is None:
            return 0
        for fd in fds:
            session = Session(socket.socket(fileno=fd))
            threading.Thread(target=session.run, name=f"comux-decode-{message.get('name')}", daemon=True).start()


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # threads may be in the middle of a picture that nobody waits for
