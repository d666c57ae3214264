"""What a packet of MJPEG, VP9 or AV1 is, without decoding it. Only headers are read; nothing here raises."""

from __future__ import annotations

from typing import Final

from .bits import BitReader, BitsExhaustedError
from .units import Begin, Inspector, Kind, Unit

_SOI: Final = b"\xff\xd8"
_EOI: Final = b"\xff\xd9"
_NO_LENGTH: Final = frozenset((0x01, *range(0xD0, 0xD9)))
_SOF: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def jpeg_size(data: bytes, begin: int = 0) -> tuple[int, int] | None:
    """Width and height in pixels that a JPEG's frame header announces."""
    position, size = begin + 2, len(data)
    while position + 9 <= size and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker in _NO_LENGTH:
            position += 2
        elif marker in _SOF:
            height, width = (int.from_bytes(data[position + k : position + k + 2], "big") for k in (5, 7))
            return width, height
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


class MjpegInspector(Inspector):
    """JPEG pictures; each stands alone, so damage never reaches beyond one. Several in one record are told apart."""

    one_in_one_out = True

    def starts(self, data: bytes) -> bool:
        return data.startswith(_SOI)

    def inspect(self, data: bytes) -> list[Unit]:
        if not data.startswith(_SOI):
            return [Unit(0, len(data), Kind.INVALID, why="no JPEG start marker")]
        units: list[Unit] = []
        begin = 0
        while begin >= 0:
            seam = data.find(_EOI + _SOI, begin)
            end = len(data) if seam < 0 else seam + 2
            size = jpeg_size(data, begin)
            unit = Unit(begin, end, Kind.PICTURE, Begin.CLEAN, size, intra=True, disposable=True)
            if size is None or 0 in size:
                unit.kind, unit.begins, unit.why = Kind.INVALID, Begin.NO, "no JPEG frame header"
            elif data.rfind(_EOI, begin, end) < 0:
                unit.kind, unit.begins, unit.why = Kind.INVALID, Begin.NO, "cut: no JPEG end marker"
            units.append(unit)
            begin = end if seam >= 0 else -1
        return units


def vp9_frames(data: bytes) -> list[tuple[int, int]]:
    """Begin and end of the frames in a VP9 packet: those of its superframe index, or the packet itself."""
    marker = data[-1]
    if marker & 0xE0 == 0xC0:
        count, width = (marker & 7) + 1, ((marker >> 3) & 3) + 1
        index = len(data) - 2 - count * width
        if index >= 0 and data[index] == marker:
            spans, position = [], 0
            for i in range(count):
                at = index + 1 + i * width
                length = int.from_bytes(data[at : at + width], "little")
                spans.append((position, position + length))
                position += length
            if position <= index:
                return [span for span in spans if span[1] > span[0]]
    return [(0, len(data))]


def _vp9_size(bits: BitReader, profile: int) -> tuple[int, int]:
    if bits.u(24) != 0x498342:
        raise BitsExhaustedError
    if profile >= 2:
        bits.skip(1)
    if bits.u(3) != 7:
        bits.skip(1)
        if profile in (1, 3):
            bits.skip(3)
    elif profile in (1, 3):
        bits.skip(1)
    return bits.u(16) + 1, bits.u(16) + 1


def vp9_frame(data: bytes) -> Unit:
    """What one VP9 frame is, from its uncompressed header."""
    unit = Unit(0, len(data), Kind.PICTURE)
    try:
        bits = BitReader(data[:32])
        if bits.u(2) != 2:
            raise BitsExhaustedError
        profile = bits.u(1) | bits.u(1) << 1
        if profile == 3:
            bits.skip(1)
        if bits.flag():  # shows a picture decoded before
            return unit
        inter, shown = bits.flag(), bits.flag()
        bits.skip(1)
        if not shown:
            unit.kind = Kind.HIDDEN
        if not inter:
            unit.size, unit.begins, unit.intra = _vp9_size(bits, profile), Begin.CLEAN, True
    except BitsExhaustedError:
        unit.kind, unit.why = Kind.INVALID, "no VP9 frame header"
    return unit


class Vp9Inspector(Inspector):
    """VP9 frames and superframes."""

    one_in_one_out = True

    def starts(self, data: bytes) -> bool:
        return self.inspect(data)[0].begins is Begin.CLEAN

    def inspect(self, data: bytes) -> list[Unit]:
        spans = vp9_frames(data)
        frames = [vp9_frame(data[begin : min(end, begin + 32)]) for begin, end in spans]
        if not frames:
            return [Unit(0, len(data), Kind.INVALID, why="empty VP9 superframe")]
        unit = frames[0]
        unit.end_byte = len(data)
        if any(frame.kind is Kind.INVALID for frame in frames):
            unit.kind, unit.begins, unit.why = Kind.INVALID, Begin.NO, "no VP9 frame header"
        elif any(frame.kind is Kind.PICTURE for frame in frames):
            unit.kind = Kind.PICTURE
        return [unit]


_OBU_SEQUENCE, _OBU_DELIMITER, _OBU_FRAME_HEADER, _OBU_FRAME = 1, 2, 3, 6


def _leb128(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        if position >= len(data):
            raise BitsExhaustedError
        byte = data[position]
        position += 1
        value |= (byte & 127) << (7 * i)
        if not byte & 128:
            return value, position
    raise BitsExhaustedError


def av1_obus(data: bytes) -> list[tuple[int, int, int, int]]:
    """The units of an AV1 packet: ``(type, begin, payload begin, end)``.

    Raises:
        BitsExhaustedError: the lengths do not add up, or a forbidden bit is set.
    """
    out = []
    position, size = 0, len(data)
    while position < size:
        begin, head = position, data[position]
        if head & 0x81:
            raise BitsExhaustedError
        position += 2 if head & 4 else 1
        if head & 2:
            length, position = _leb128(data, position)
        else:
            length = size - position
        if length < 0 or position + length > size:
            raise BitsExhaustedError
        out.append(((head >> 3) & 15, begin, position, position + length))
        position += length
    return out


def _skip_operating_points(bits: BitReader) -> None:
    decoder_model, delay_bits = False, 0
    if bits.flag():  # timing information
        bits.skip(64)
        if bits.flag():
            bits.ue()
        decoder_model = bits.flag()
        if decoder_model:
            delay_bits = bits.u(5) + 1
            bits.skip(42)
    initial_delay = bits.flag()
    for _ in range(bits.u(5) + 1):
        bits.skip(12)
        if bits.u(5) > 7:
            bits.skip(1)
        if decoder_model and bits.flag():
            bits.skip(2 * delay_bits + 1)
        if initial_delay and bits.flag():
            bits.skip(4)


def av1_sequence_size(payload: bytes) -> tuple[tuple[int, int], bool]:
    """Largest width and height of an AV1 sequence header, and whether its frame headers are reduced (still picture).

    Raises:
        BitsExhaustedError: it is shorter than it says.
    """
    bits = BitReader(payload[:128])
    bits.skip(4)
    reduced = bits.flag()
    if reduced:
        bits.skip(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.u(4) + 1, bits.u(4) + 1
    return (bits.u(width_bits) + 1, bits.u(height_bits) + 1), reduced


class Av1Inspector(Inspector):
    """AV1 temporal units in the low-overhead format; several in one record are told apart by their delimiters."""

    one_in_one_out = True

    def starts(self, data: bytes) -> bool:
        return self.inspect(data)[0].begins is Begin.CLEAN

    def inspect(self, data: bytes) -> list[Unit]:
        try:
            obus = av1_obus(data)
        except BitsExhaustedError:
            return [Unit(0, len(data), Kind.INVALID, why="AV1 unit lengths do not add up")]
        groups: list[list[tuple[int, int, int, int]]] = [[]]
        for obu in obus:
            if obu[0] == _OBU_DELIMITER and groups[-1]:
                groups.append([])
            groups[-1].append(obu)
        return [self._temporal_unit(data, group) for group in groups]

    @staticmethod
    def _temporal_unit(data: bytes, obus: list[tuple[int, int, int, int]]) -> Unit:
        unit = Unit(obus[0][1], obus[-1][3], Kind.PARAMETERS)
        reduced = False
        shown = seen = False
        try:
            for kind, _, begin, end in obus:
                if kind == _OBU_SEQUENCE:
                    unit.size, reduced = av1_sequence_size(data[begin:end])
                elif kind in (_OBU_FRAME_HEADER, _OBU_FRAME):
                    bits = BitReader(data[begin : min(end, begin + 4)])
                    if reduced:
                        shown, key = True, True
                    elif bits.flag():
                        shown, key = True, False
                    else:
                        key = bits.u(2) == 0
                        this_shown = bits.flag()
                        shown, key = shown or this_shown, key and this_shown
                    if not seen and key and unit.size is not None:
                        unit.begins, unit.intra = Begin.CLEAN, True
                    seen = True
        except BitsExhaustedError:
            unit.kind, unit.begins, unit.why = Kind.INVALID, Begin.NO, "AV1 header cut short"
            return unit
        if seen:
            unit.kind = Kind.PICTURE if shown else Kind.HIDDEN
        return unit
