"""Bits of codec headers: start codes, emulation prevention, Exp-Golomb numbers.

Only headers are read here, never pixels: a few dozen bytes of each packet.
"""

from __future__ import annotations

from collections.abc import Iterator

START_CODE = b"\x00\x00\x01"


class BitsExhaustedError(Exception):
    """A header is shorter than it says. Stays inside this room: the packet is then *invalid*."""


class BitReader:
    """Reads most significant bits first.

    Args:
        data: At most a few hundred bytes: they are held as one integer.
    """

    __slots__ = ("_left", "_value")

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = len(data) * 8

    @property
    def left(self) -> int:
        """Bits not read yet."""
        return self._left

    def u(self, n: int) -> int:
        """The next ``n`` bits as an unsigned number."""
        self._left -= n
        if self._left < 0:
            raise BitsExhaustedError
        return (self._value >> self._left) & ((1 << n) - 1)

    def flag(self) -> bool:
        """The next bit."""
        return self.u(1) == 1

    def skip(self, n: int) -> None:
        """Pass over ``n`` bits."""
        self._left -= n
        if self._left < 0:
            raise BitsExhaustedError

    def ue(self) -> int:
        """An unsigned Exp-Golomb number (at most 32 bits)."""
        rest = self._value & ((1 << self._left) - 1)
        zeros = self._left - rest.bit_length()
        if rest == 0 or zeros > 32:
            raise BitsExhaustedError
        self._left -= zeros
        return self.u(zeros + 1) - 1

    def se(self) -> int:
        """A signed Exp-Golomb number."""
        code = self.ue()
        return (code + 1) // 2 if code & 1 else -(code // 2)


def unescape(payload: bytes) -> bytes:
    """Remove the emulation prevention bytes (``00 00 03`` -> ``00 00``) of an H.264 or HEVC NAL unit's payload."""
    if b"\x00\x00\x03" not in payload:
        return payload
    out = bytearray()
    position = 0
    while (found := payload.find(b"\x00\x00\x03", position)) >= 0:
        out += payload[position : found + 2]
        position = found + 3
    out += payload[position:]
    return bytes(out)


def nal_units(data: bytes) -> Iterator[tuple[int, int]]:
    """Positions of the NAL units of an Annex B packet.

    Yields:
        ``(start, first)``: where the unit's start code begins (its leading zero byte included) and where its first
        header byte is. A start code at the very end of the packet is not yielded.
    """
    size = len(data)
    position = data.find(START_CODE)
    while position >= 0:
        first = position + 3
        if first >= size:
            return
        yield (position - 1 if position > 0 and data[position - 1] == 0 else position), first
        position = data.find(START_CODE, first)


def nal_bytes(data: bytes, first: int) -> bytes:
    """The NAL unit whose first header byte is at ``first``, with a start code before it."""
    end = data.find(START_CODE, first)
    unit = data[first:] if end < 0 else data[first:end]
    return b"\x00" + START_CODE + unit.rstrip(b"\x00")


def is_annex_b(data: bytes) -> bool:
    """Whether the packet begins with a start code."""
    return data.startswith((b"\x00\x00\x01", b"\x00\x00\x00\x01"))


def length_prefixed_to_annex_b(data: bytes, length_size: int) -> bytes | None:
    """Turn NAL units with a length before each (AVCC, HVCC) into Annex B; ``None`` where the lengths do not add up."""
    out: list[bytes] = []
    position, size = 0, len(data)
    while position < size:
        first = position + length_size
        length = int.from_bytes(data[position:first], "big")
        if first + length > size or length == 0:
            return None
        out += (b"\x00\x00\x00\x01", data[first : first + length])
        position = first + length
    return b"".join(out)
