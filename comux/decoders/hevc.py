"""What an HEVC packet is, without decoding it.

HEVC says more by itself than H.264: random access pictures have NAL types of their own, and so have the pictures that
cannot be decoded after a start at one (RASL). Its codec knows every picture's references by their numbers and flags
what it decodes without one, so that no numbers are checked here. Only sizes and the number of temporal sub-layers are
parsed, from the sequence parameter set. Units of other layers (``nuh_layer_id`` > 0) are passed along with the picture
they follow.

Nobody refers to a *sub-layer non-reference picture* (the even types below 16: TRAIL_N, TSA_N, STSA_N, RADL_N, RASL_N
and the reserved ones) of the highest sub-layer: pictures of its own sub-layer do not by definition, those of lower ones
must not refer upwards (ITU-T H.265, 7.4.2.2 and table 7-1), and there is no higher one. How many there can be is what
``sps_max_sub_layers_minus1`` says (7.4.3.2.1); pictures of a lower one are left alone, and so are all where a set could
not be read.

Not supported: starting at a gradual refresh (recovery-point message without a random access picture).
"""

from __future__ import annotations

from typing import Final

from .bits import BitReader, BitsExhaustedError, is_annex_b, length_prefixed_to_annex_b, nal_bytes, nal_units, unescape
from .units import Begin, Inspector, Kind, Unit

_IDR: Final = (19, 20)
_IRAP_FIRST, _IRAP_LAST = 16, 23
_RASL: Final = (8, 9)
_NON_REFERENCE: Final = frozenset(range(0, 16, 2))
_VPS, _SPS, _PPS = 32, 33, 34
_STARTS_UNIT: Final = frozenset((32, 33, 34, 35, 39, *range(41, 45), *range(48, 56)))
_HEADER_BYTES: Final = 256
_MAX_DIMENSION: Final = 1 << 17


def parse_sps(payload: bytes) -> tuple[int, tuple[int, int], int]:
    """Number, width and height in pixels (cropped), and highest temporal sub-layer (from 0) of a sequence parameter set
    (its two header bytes left out).

    Raises:
        BitsExhaustedError: it is shorter than it says, or says what cannot be.
    """
    bits = BitReader(unescape(payload))
    bits.skip(4)
    sub_layers = bits.u(3)
    bits.skip(1)
    bits.skip(96)  # general profile (88 bits) and level (8)
    present = [(bits.flag(), bits.flag()) for _ in range(sub_layers)]
    if sub_layers:
        bits.skip(2 * (8 - sub_layers))
    for profile, level in present:
        bits.skip(88 * profile + 8 * level)
    number = bits.ue()
    chroma = bits.ue()
    separate = chroma == 3 and bits.flag()
    width, height = bits.ue(), bits.ue()
    if bits.flag():
        unit_x = 2 if chroma in (1, 2) and not separate else 1
        unit_y = 2 if chroma == 1 and not separate else 1
        left, right, top, bottom = bits.ue(), bits.ue(), bits.ue(), bits.ue()
        width, height = width - (left + right) * unit_x, height - (top + bottom) * unit_y
    if not (0 < width <= _MAX_DIMENSION and 0 < height <= _MAX_DIMENSION):
        raise BitsExhaustedError
    return number, (width, height), sub_layers


class HevcInspector(Inspector):
    """HEVC in Annex B, or length-prefixed where ``extradata`` (hvcC) says so."""

    repeats_are_duplicates = True

    def __init__(self) -> None:
        self._sets: dict[tuple[int, int], bytes] = {}  # as they came, by kind and number
        self._length_size = 0
        self._known: set[int] = set()
        self._highest: dict[int, int] = {}  # temporal sub-layer, by the number of the set that states it
        self._unread = False

    def parameters(self, extradata: bytes) -> bytes:
        if is_annex_b(extradata):
            self.inspect(extradata)
            return extradata
        if len(extradata) < 23 or extradata[0] != 1:
            return b""
        self._length_size = (extradata[21] & 3) + 1
        sets: list[bytes] = []
        position = 23
        for _ in range(extradata[22]):
            count = int.from_bytes(extradata[position + 1 : position + 3], "big")
            position += 3
            for _ in range(count):
                length = int.from_bytes(extradata[position : position + 2], "big")
                sets.append(b"\x00\x00\x00\x01" + extradata[position + 2 : position + 2 + length])
                position += 2 + length
        found = b"".join(sets)
        self.inspect(found)
        return found

    def normalise(self, data: bytes) -> bytes | None:
        if not self._length_size:
            return data
        # Lengths first: one of 256 to 511 bytes looks like a start code.
        converted = length_prefixed_to_annex_b(data, self._length_size)
        return data if converted is None and is_annex_b(data) else converted

    def starts(self, data: bytes) -> bool:
        for _, first in nal_units(data):
            kind = (data[first] >> 1) & 63
            if kind < 32:
                return _IRAP_FIRST <= kind <= _IRAP_LAST
        return False

    def inspect(self, data: bytes) -> list[Unit]:
        units: list[Unit] = []
        opened: int | None = None
        cut: int | None = None
        size: tuple[int, int] | None = None
        sets: frozenset[int] = frozenset()
        for begin, first in nal_units(data):
            if first + 2 >= len(data):
                break
            kind = (data[first] >> 1) & 63
            layer = ((data[first] & 1) << 5) | (data[first + 1] >> 3)
            if opened is None:
                opened = begin
            if layer:
                continue
            if kind in _STARTS_UNIT:
                if units and cut is None:
                    cut, size, sets = begin, None, frozenset()
                if kind in (_VPS, _SPS, _PPS):
                    sets |= {kind}
                    self._known.add(kind)
                    size = self._take_parameters(kind, nal_bytes(data, first)) or size
                continue
            if kind >= 32 or (units and cut is None and not data[first + 2] & 0x80):
                continue  # a message behind the picture, or a further segment of it
            if units:
                units[-1].end_byte = opened = cut if cut is not None else begin
            unit = self._picture(opened, len(data), kind, size, sets)
            unit.disposable = kind in _NON_REFERENCE and self._is_highest((data[first + 1] & 7) - 1)
            units.append(unit)
            cut, size, sets = None, None, frozenset()
        if opened is None:
            return [Unit(0, len(data), Kind.INVALID, why="no NAL unit in it")]
        if not units:
            return [Unit(0, len(data), Kind.PARAMETERS, size=size, sets=sets)]
        units[0].begin_byte = 0
        if cut is not None:
            units[-1].end_byte = cut
            units.append(Unit(cut, len(data), Kind.PARAMETERS, size=size, sets=sets))
        return units

    def parameter_sets(self) -> bytes:
        return b"".join(self._sets[key] for key in sorted(self._sets))

    def has_parameters(self) -> bool:
        return {_SPS, _PPS} <= self._known

    def _take_parameters(self, kind: int, unit: bytes) -> tuple[int, int] | None:
        payload = unit[6 : 6 + _HEADER_BYTES]
        size: tuple[int, int] | None = None
        try:
            if kind == _VPS:
                number = BitReader(payload[:2]).u(4)
            elif kind == _SPS:
                number, size, self._highest[number] = parse_sps(payload)
            else:
                number = BitReader(payload[:8]).ue()
            self._sets[kind, number] = unit
        except BitsExhaustedError:
            self._unread = self._unread or kind == _SPS  # the codec judges it
        return size

    def _is_highest(self, sub_layer: int) -> bool:
        """Whether no picture of the stream can lie in a higher temporal sub-layer, whichever set is in force."""
        return bool(self._highest) and not self._unread and sub_layer >= max(self._highest.values())

    @staticmethod
    def _picture(begin: int, end: int, kind: int, size: tuple[int, int] | None, sets: frozenset[int]) -> Unit:
        irap = _IRAP_FIRST <= kind <= _IRAP_LAST
        return Unit(
            begin,
            end,
            Kind.PICTURE,
            begins=Begin.CLEAN if irap else Begin.NO,
            size=size,
            leading=kind in _RASL,
            intra=irap,
            sets=sets,
        )
