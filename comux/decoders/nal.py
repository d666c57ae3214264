"""What an H.264 packet is, without decoding it.

Problem. A lost H.264 packet is not seen by the codec: it conceals, and delivers the wrong pictures of the rest of the
GOP without a word. What can be seen from outside are the numbers in the slice headers.

What is read. Start codes are found with ``bytes.find``; of each access unit the parameter sets, the recovery-point
message and the header of the *first* slice are parsed (some 60 bytes), of further slices only one bit
(``first_mb_in_slice == 0``: the next picture starts).

``frame_num`` (7.4.3): rises by one, modulo ``MaxFrameNum``, after each *reference* picture. A picture whose number is
not the successor of the last reference picture's follows a loss, a repetition or a swap, with these exceptions, so that
a correct stream never raises an alarm: the parameter set allows gaps; a second field has its first field's number; an
IDR picture restarts at 0; so does a picture that carries memory management operation 5. That operation stands at the
end of a slice header, behind half a dozen loops; it is looked for only when an alarm is about to be raised. A lost
non-reference picture leaves no gap, and harms none.

Invariants. N1: ``inspect`` never raises, whatever the bytes. N2: a packet's units cover it without overlap, in order.
N3: ``starts`` changes nothing, so it may look at packets far ahead of the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .bits import BitReader, BitsExhaustedError, is_annex_b, length_prefixed_to_annex_b, nal_bytes, nal_units, unescape
from .units import Begin, Inspector, Kind, Unit

_SLICE, _PARTITION_A, _IDR, _SEI, _SPS, _PPS, _AUD = 1, 2, 5, 6, 7, 8, 9
_STARTS_UNIT: Final = frozenset((_SEI, _SPS, _PPS, _AUD, 14, 15, 16, 17, 18))
_MAX_REPEAT_ALARMS: Final = 8
_SLICE_BYTES: Final = 128
_HEADER_BYTES: Final = 256
_HIGH_PROFILES: Final = frozenset((100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135))
_MAX_DIMENSION: Final = 1 << 17


@dataclass(slots=True, frozen=True)
class SequenceParameters:
    """What later headers need of an H.264 sequence parameter set. Sizes in pixels, cropped."""

    width: int
    height: int
    frame_num_bits: int
    poc_type: int
    poc_lsb_bits: int
    poc_delta_zero: bool
    frame_mbs_only: bool
    gaps_allowed: bool
    separate_planes: bool
    chroma: int


@dataclass(slots=True, frozen=True)
class PictureParameters:
    """What later headers need of an H.264 picture parameter set."""

    sequence: int
    poc_present: bool
    references: tuple[int, int]
    weighted_pred: bool
    weighted_bipred: int
    redundant_present: bool


@dataclass(slots=True, frozen=True)
class SliceHeader:
    """The beginning of an H.264 slice header; ``rest`` reads on where it stopped."""

    first_mb: int
    slice_type: int
    frame_num: int
    field: bool
    bottom: bool
    redundant: int
    sps: SequenceParameters
    pps: PictureParameters
    rest: BitReader


def _skip_scaling_lists(bits: BitReader, chroma: int) -> None:
    for i in range(8 if chroma != 3 else 12):
        if not bits.flag():
            continue
        last = following = 8
        for _ in range(16 if i < 6 else 64):
            if following != 0:
                following = (last + bits.se() + 256) % 256
            last = following if following != 0 else last


def parse_sps(payload: bytes) -> tuple[int, SequenceParameters]:
    """Read a sequence parameter set (its NAL header byte left out).

    Raises:
        BitsExhaustedError: it is shorter than it says, or says what cannot be.
    """
    bits = BitReader(unescape(payload))
    profile = bits.u(8)
    bits.skip(16)
    number = bits.ue()
    chroma, separate = 1, False
    if profile in _HIGH_PROFILES:
        chroma = bits.ue()
        if chroma == 3:
            separate = bits.flag()
        bits.ue(), bits.ue()
        bits.skip(1)
        if bits.flag():
            _skip_scaling_lists(bits, chroma)
    frame_num_bits = bits.ue() + 4
    poc_type, poc_bits, delta_zero = bits.ue(), 0, False
    if poc_type == 0:
        poc_bits = bits.ue() + 4
    elif poc_type == 1:
        delta_zero = bits.flag()
        bits.se(), bits.se()
        for _ in range(min(bits.ue(), 256)):
            bits.se()
    bits.ue()
    gaps = bits.flag()
    width, height = (bits.ue() + 1) * 16, (bits.ue() + 1) * 16
    frame_mbs_only = bits.flag()
    if not frame_mbs_only:
        bits.skip(1)
        height *= 2
    bits.skip(1)
    if bits.flag():
        unit_x = 2 if chroma in (1, 2) and not separate else 1
        unit_y = (2 if chroma == 1 and not separate else 1) * (1 if frame_mbs_only else 2)
        left, right, top, bottom = bits.ue(), bits.ue(), bits.ue(), bits.ue()
        width, height = width - (left + right) * unit_x, height - (top + bottom) * unit_y
    plausible = 0 < width <= _MAX_DIMENSION and 0 < height <= _MAX_DIMENSION
    if number > 31 or frame_num_bits > 16 or poc_bits > 16 or chroma > 3 or not plausible:
        raise BitsExhaustedError
    return number, SequenceParameters(
        width,
        height,
        frame_num_bits,
        poc_type,
        poc_bits,
        delta_zero,
        frame_mbs_only,
        gaps,
        separate,
        0 if separate else chroma,
    )


def parse_pps(payload: bytes) -> tuple[int, PictureParameters | None]:
    """Number and content of a picture parameter set (its NAL header byte left out); ``None``: it uses slice groups."""
    bits = BitReader(unescape(payload))
    number, sequence = bits.ue(), bits.ue()
    bits.skip(1)
    poc_present = bits.flag()
    if bits.ue() != 0:
        return number, None
    references = (bits.ue() + 1, bits.ue() + 1)
    weighted_pred, weighted_bipred = bits.flag(), bits.u(2)
    bits.se(), bits.se(), bits.se()
    bits.skip(2)
    redundant = bits.flag()
    if number > 255 or sequence > 31 or max(references) > 32:
        raise BitsExhaustedError
    return number, PictureParameters(sequence, poc_present, references, weighted_pred, weighted_bipred, redundant)


def recovery_point(payload: bytes) -> int | None:
    """``recovery_frame_cnt`` of the recovery-point message in an SEI unit (NAL header left out), where there is one."""
    data = unescape(payload[:_HEADER_BYTES])
    position, size = 0, len(data)
    while position + 2 <= size and data[position] != 0x80:
        sizes = []
        for _ in range(2):
            value = 0
            while position < size and data[position] == 0xFF:
                value, position = value + 255, position + 1
            if position >= size:
                return None
            sizes.append(value + data[position])
            position += 1
        if sizes[0] == 6:
            try:
                return BitReader(data[position : position + min(sizes[1], 8)]).ue()
            except BitsExhaustedError:
                return None
        position += sizes[1]
    return None


def _skip_list_modification(bits: BitReader) -> None:
    if not bits.flag():
        return
    for _ in range(66):
        if bits.ue() == 3:
            return
        bits.ue()
    raise BitsExhaustedError


def _skip_weights(bits: BitReader, counts: tuple[int, ...], chroma: int) -> None:
    bits.ue()
    if chroma:
        bits.ue()
    for count in counts:
        for _ in range(count):
            if bits.flag():
                bits.se(), bits.se()
            if chroma and bits.flag():
                bits.se(), bits.se(), bits.se(), bits.se()


def restarts_numbers(header: SliceHeader) -> bool:
    """Whether a reference picture that is no IDR carries memory management operation 5. Reads ``header.rest``."""
    bits, pps = header.rest, header.pps
    kind = header.slice_type % 5
    is_b, is_intra = kind == 1, kind in (2, 4)
    references = pps.references
    if is_b:
        bits.skip(1)
    if not is_intra and bits.flag():
        references = (bits.ue() + 1, bits.ue() + 1 if is_b else references[1])
    if max(references) > 32:
        raise BitsExhaustedError
    if not is_intra:
        _skip_list_modification(bits)
    if is_b:
        _skip_list_modification(bits)
    if (pps.weighted_pred and kind in (0, 3)) or (pps.weighted_bipred == 1 and is_b):
        _skip_weights(bits, references if is_b else references[:1], header.sps.chroma)
    if not bits.flag():
        return False
    for _ in range(66):
        operation = bits.ue()
        if operation == 0:
            return False
        if operation == 5:
            return True
        if operation in (1, 2, 3, 4, 6):
            bits.ue()
        if operation == 3:
            bits.ue()
    return False


class H264Inspector(Inspector):
    """H.264 in Annex B, or length-prefixed where ``extradata`` (avcC) says so."""

    repeats_are_duplicates = True
    open_by_display = True

    def __init__(self) -> None:
        self._sps: dict[int, SequenceParameters] = {}
        self._pps: dict[int, PictureParameters] = {}
        self._sets: dict[tuple[int, int], bytes] = {}  # as they came, by kind and number
        self._length_size = 0
        self._known: set[int] = set()
        self._last_reference: Unit | None = None
        self._repeats = 0
        self._first_field: tuple[int, bool] | None = None  # frame_num and parity of a field that waits for the other

    def parameters(self, extradata: bytes) -> bytes:
        if is_annex_b(extradata):
            self.inspect(extradata)
            return extradata
        if len(extradata) < 7 or extradata[0] != 1:
            return b""
        self._length_size = (extradata[4] & 3) + 1
        sets: list[bytes] = []
        position, count = 6, extradata[5] & 31
        for _ in range(2):
            for _ in range(count):
                length = int.from_bytes(extradata[position : position + 2], "big")
                sets.append(b"\x00\x00\x00\x01" + extradata[position + 2 : position + 2 + length])
                position += 2 + length
            count = extradata[position] if position < len(extradata) else 0
            position += 1
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
            kind = data[first] & 31
            if kind == _IDR:
                return True
            if kind in (_SLICE, _PARTITION_A):
                return False
            if kind == _SEI and recovery_point(data[first + 1 : first + _HEADER_BYTES]) is not None:
                return True
        return False

    def inspect(self, data: bytes) -> list[Unit]:
        units: list[Unit] = []
        opened: int | None = None  # where the unit being read begins
        has_picture = False
        size: tuple[int, int] | None = None
        sets: frozenset[int] = frozenset()
        recovery: int | None = None
        cut: int | None = None  # where the next unit begins, once its non-slice part was seen
        for begin, first in nal_units(data):
            kind = data[first] & 31
            if opened is None:
                opened = begin
            if kind in _STARTS_UNIT:
                if has_picture and cut is None:
                    cut, size, sets, recovery = begin, None, frozenset(), None
                if kind in (_SPS, _PPS):
                    sets |= {kind}
                    self._known.add(kind)
                    size = self._take_parameters(kind, nal_bytes(data, first)) or size
                elif kind == _SEI and recovery is None:
                    recovery = recovery_point(data[first + 1 : first + _HEADER_BYTES])
                continue
            if kind not in (_SLICE, _PARTITION_A, _IDR):
                continue
            if has_picture and cut is None and not (first + 1 < len(data) and data[first + 1] & 0x80):
                continue  # a further slice of the same picture: its first macroblock is not 0
            unit = self._slice_unit(data, begin, first, recovery, units[-1] if has_picture else None)
            if unit is None:
                cut = None
                continue
            if has_picture:
                units[-1].end_byte = opened = cut if cut is not None else begin
            unit.begin_byte, unit.size, unit.sets = opened, size, sets
            units.append(unit)
            has_picture, cut, size, sets, recovery = True, None, None, frozenset(), None
        return self._close(data, units, opened, cut, Unit(0, len(data), Kind.PARAMETERS, size=size, sets=sets))

    @staticmethod
    def _close(data: bytes, units: list[Unit], opened: int | None, cut: int | None, parameters: Unit) -> list[Unit]:
        if opened is None:
            return [Unit(0, len(data), Kind.INVALID, why="no NAL unit in it")]
        if not units:
            return [parameters]
        units[0].begin_byte = 0
        if cut is not None:
            units[-1].end_byte = parameters.begin_byte = cut
            units.append(parameters)
        else:
            units[-1].end_byte = len(data)
        return units

    def parameter_sets(self) -> bytes:
        return b"".join(self._sets[key] for key in sorted(self._sets))

    def has_parameters(self) -> bool:
        return {_SPS, _PPS} <= self._known

    def _take_parameters(self, kind: int, unit: bytes) -> tuple[int, int] | None:
        payload = unit[5 : 5 + _HEADER_BYTES]
        try:
            if kind == _SPS:
                number, sps = parse_sps(payload)
                self._sps[number] = sps
                self._sets[kind, number] = unit
                return sps.width, sps.height
            number, pps = parse_pps(payload)
            self._sets[kind, number] = unit
            if pps is not None:
                self._pps[number] = pps
        except BitsExhaustedError:
            pass  # the codec judges it; slices that refer to it are then not checked
        return None

    def _header(self, nal: bytes) -> SliceHeader | None:
        """Parse the beginning of a slice NAL; ``None`` where its parameter sets are unknown."""
        bits = BitReader(unescape(nal[1:]))
        first_mb, slice_type, pps_number = bits.ue(), bits.ue(), bits.ue()
        pps = self._pps.get(pps_number)
        sps = self._sps.get(pps.sequence) if pps is not None else None
        if pps is None or sps is None:
            return None
        if sps.separate_planes:
            bits.skip(2)
        frame_num = bits.u(sps.frame_num_bits)
        is_field = not sps.frame_mbs_only and bits.flag()
        bottom = is_field and bits.flag()
        if nal[0] & 31 == _IDR:
            bits.ue()
        if sps.poc_type == 0:
            bits.skip(sps.poc_lsb_bits)
            if pps.poc_present and not is_field:
                bits.se()
        elif sps.poc_type == 1 and not sps.poc_delta_zero:
            bits.se()
            if pps.poc_present and not is_field:
                bits.se()
        redundant = bits.ue() if pps.redundant_present else 0
        return SliceHeader(first_mb, slice_type, frame_num, is_field, bottom, redundant, sps, pps, bits)

    def _slice_unit(
        self, data: bytes, begin: int, first: int, recovery: int | None, before: Unit | None
    ) -> Unit | None:
        """The unit that a picture's first slice begins; ``None`` where it belongs to the unit ``before``."""
        nal = data[first : first + _SLICE_BYTES]
        idr = nal[0] & 31 == _IDR
        unit = Unit(begin, len(data), Kind.PICTURE, reference=nal[0] & 0x60 != 0)
        if idr:
            unit.begins = Begin.CLEAN
        elif recovery is not None:
            unit.begins = Begin.OPEN if recovery == 0 else Begin.REFRESH
        try:
            bits = BitReader(unescape(nal[1:12]))
            bits.ue()
            unit.intra = bits.ue() % 5 in (2, 4)
            header = self._header(nal)
        except BitsExhaustedError:
            header = None
        if header is None:
            return unit
        if header.redundant:
            return None
        unit.number, unit.head = header.frame_num, nal
        # Of a field the other one may come in a packet of its own, which the codec could not place without this one.
        unit.disposable = not (unit.reference or header.field) and unit.begins is Begin.NO
        pair = (header.frame_num, header.bottom)
        if header.field and self._first_field == (header.frame_num, not header.bottom):
            self._first_field = None
            if before is not None:
                return None
            unit.kind = Kind.COMPLEMENT
        else:
            self._first_field = pair if header.field else None
        if not header.sps.gaps_allowed:
            unit.modulus = 1 << header.sps.frame_num_bits
        return unit

    def begin(self, unit: Unit) -> None:
        self._last_reference = unit

    def continuity(self, unit: Unit) -> str:
        if unit.number is None:
            return ""
        why = ""
        last = self._last_reference
        if last is not None and unit.begins is not Begin.CLEAN and unit.modulus and last.number is not None:
            follows = (last.number + 1) % unit.modulus
            complement = unit.kind is Kind.COMPLEMENT and unit.number == last.number
            if unit.number != follows and not complement and self._alarm(last, unit):
                why = f"frame_num {unit.number} follows reference {last.number} (of {unit.modulus})"
        if unit.reference:
            self._last_reference = unit
        return why

    def _alarm(self, last: Unit, unit: Unit) -> bool:
        if self._restarted(last):
            return unit.number != 1
        if unit.number == last.number and not unit.reference:
            # Encoders exist that do not count here as the standard says: after some alarms nobody is alarmed.
            self._repeats += 1
            return self._repeats <= _MAX_REPEAT_ALARMS
        return True

    def _restarted(self, last: Unit) -> bool:
        if last.begins is Begin.CLEAN or not last.head:
            return False
        try:
            header = self._header(last.head)
            return header is not None and restarts_numbers(header)
        except BitsExhaustedError:
            return True  # cannot be told: no alarm, for a correct stream must never raise one
