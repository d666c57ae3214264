"""``VideoDecoder``: H.264, HEVC, MJPEG, VP9 and AV1 packets in, pictures out, every packet answered exactly once.

Problem. A codec after a lost packet goes on delivering pictures, wrong ones, without a word; it gives pictures out in
display order, some packets later, and not one per packet. The source above needs three things all the same: whose
picture is this, is it right, and what became of the packets that gave none.

Four modes::

    WAIT      nothing is decoded; packets come out as ``resync`` until one that a decoder can start at
    RECOVER   started at an open-GOP or intra-refresh point: what is shown before the point is dropped
    CLEAN     pictures are right
    PASS      nobody will take a picture before the next keyframe: packets are judged, not decoded (``skipping``)

A *token* (a number that only rises) goes into the codec with each access unit and comes back with its picture. Until
then the unit is a ``Piece`` in ``_flight``, in decoding order. Pictures that came out wait in ``_arrived``, in display
order, until nothing decoded before them can still turn out to be damaged: a B-picture is shown, so given out, before
the P-picture it refers to, and only when that P-picture comes out does the codec flag it. Packets that carry our
sequence number and checksum are *trusted* and never make another wait; without B-pictures nobody waits.

At a doubt (before a packet is fed) the codec is drained first: what it holds was decoded from good packets and is
delivered. When the codec itself reports an error on token t, only pictures with a smaller token than t, and than any
token that gave no picture, are delivered; the rest is dropped, and the codec made anew. Either way the mode is WAIT.
The codec is drained too before packets are passed over. A doubt in those is remembered: it matters when the keyframe
that is waited for does not come.

Invariants. V1: a fed record is unresolved until its first outcome, and resolved for ever afterwards. V2: ``_flight``
holds exactly the units fed to the codec and not answered. V3: ``_unproved`` is the untrusted part of ``_flight`` that
has not come out, oldest first. V4: outside RECOVER and ``on_damage="deliver"`` no picture that refers to a doubtful one
leaves.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import replace
from enum import Enum
from typing import Final

import av

from comux.errors import ClosedError
from comux.records import Record

from .codec import Codec
from .convert import Converter, converter
from .damage import Doubt, ParameterWatch, Watch
from .flight import Fed, Piece
from .framing import Framer
from .interface import ABSORBED, ArrayFormat, Decoder, DecoderOptions, Identity, Outcome, Selection
from .packets import begins_anew, inspector_for, packet_bytes, starts
from .picture import VideoPicture
from .skipping import Skipper
from .units import Begin, Kind, Unit

_MAX_PARAMETERS: Final = 1 << 16
_JOINING: Final = "waiting for a keyframe"


class _Mode(Enum):
    WAIT = 0
    RECOVER = 1
    CLEAN = 2
    PASS = 3


class VideoDecoder(Decoder):
    """Decodes one stream. See ``Decoder`` for the contract and the module for how it works.

    Notes:
        An empty value is ``absorbed``: it is never shown to the codec, whose end-of-stream mark it would be.
        ``resyncing`` is true from the start until the first keyframe, which is no damage.
        ``framing="bytestream"``: a record in which no picture starts is ``absorbed``.

    Args:
        options: As ``create_decoder`` checked them.
    """

    def __init__(self, options: DecoderOptions) -> None:
        self.options = options
        self.damage: Counter[str] = Counter()
        self._inspector = inspector_for(options.codec)
        self._prefix = b""
        if options.extradata:
            self._prefix = self._inspector.parameters(options.extradata)
        self._codec: Codec | None = Codec(
            options.codec,
            threads=options.threads,
            extradata=options.extradata if options.codec == "av1" else None,
            max_pixels=options.max_pixels,
            hwaccel=options.hwaccel,
        )
        self._framer: Framer[Fed] | None = Framer(options.codec) if options.framing == "bytestream" else None
        self._watch = Watch(repeats_are_duplicates=self._inspector.repeats_are_duplicates and self._framer is None)
        self._sets = ParameterWatch()
        self._instant = self._inspector.one_in_one_out and options.threads == 1
        self._converters: dict[tuple[str, int, int, int, int], Converter] = {}
        self._converting = True
        self._out: list[Outcome] = []
        self._unresolved = 0
        self._next_token = 0
        self._flight: dict[int, Piece] = {}
        self._unproved: dict[int, None] = {}
        self._arrived: deque[Piece] = deque()
        self._mode = _Mode.WAIT
        self._begins = Begin.NO
        self._begin_token = -1
        self._skip_leading = False
        self._degraded = False
        self._heal_token: int | None = None
        self._damaged = False  # the packet in hand is (``deliver``)
        self._tainted = False  # the codec was shown something damaged
        self._refused = ""
        self._why = _JOINING
        self._skipper = Skipper()
        self._begin_ns = 0  # capture time of the picture that decoding began at
        self._leading_cause = "resync"
        self._doubtful = False  # something is wrong with what was passed over
        self._sets_passed = False  # the codec has not been shown parameter sets that came meanwhile

    # -- the contract ----------------------------------------------------------------------------------------------

    @property
    def resyncing(self) -> bool:  # type: ignore[override]  # an attribute to the contract, derived here
        return self._mode is _Mode.WAIT or (self._mode is _Mode.RECOVER and self._leading_cause == "resync")

    @property
    def in_flight(self) -> int:
        return self._unresolved

    def reshape(self, width: int | None, height: int | None, array_format: ArrayFormat) -> bool:
        """See ``Decoder``."""
        self.options = replace(self.options, width=width, height=height, array_format=array_format)
        self._converters = {}
        return True

    def set_converting(self, converting: bool) -> None:
        self._converting = converting

    def hurry(self, hurried: bool) -> bool:
        """See ``Decoder``."""
        self._skipper.hurried = hurried
        return True

    def select(self, selection: Selection | None) -> bool:
        """See ``Decoder``."""
        self._skipper.selection = selection
        return True

    def starts_at(self, record: Record) -> bool:
        return record.keyframe or starts(self._inspector, packet_bytes(record))

    def begins_anew(self, record: Record) -> bool:
        """See ``Decoder``."""
        return self._framer is None and begins_anew(self.options, packet_bytes(record))

    def feed(self, record: Record) -> list[Outcome]:
        if self._codec is None:
            raise ClosedError(f"topic {record.topic!r} offset {record.offset}: the decoder was closed; make a new one")
        fed = Fed(record)
        self._unresolved += 1
        data = packet_bytes(record)
        if data is None:
            self._doubt("value", f"a value of type {type(record.value).__name__} is no packet")
            self._resolve(fed, "decode_error", f"a value of type {type(record.value).__name__} is no packet")
            return self._take_out()
        verdict = self._watch.judge(record, data)
        if verdict.doubt is Doubt.DROP:
            self.damage[verdict.reason] += 1
            self._resolve(fed, "duplicate" if verdict.reason == "duplicate" else "resync", verdict.detail)
            return self._take_out()
        if verdict.doubt is Doubt.RESTART:
            self._end_of_epoch()
            self._sets.interrupted()  # another life may have other ones
        elif verdict.doubt is not Doubt.NONE:
            self._tear(verdict.detail)
            self._doubt(verdict.reason, verdict.detail)
        self._damaged = verdict.doubt is Doubt.THIS
        if self._damaged and (self.options.on_damage == "drop" or self._framer is not None):
            self._resolve(fed, "rate" if self._mode is _Mode.PASS else "resync", verdict.detail)
        elif not data:
            self._resolve(fed, ABSORBED)
        elif self._framer is not None:
            units, passed = self._framer.feed(data, fed)
            self._take_cut(units, passed, verdict.trusted)
        else:
            self._take_packet(fed, data, verdict.trusted)
        return self._take_out()

    def drain(self) -> list[Outcome]:
        self._end_of_epoch()
        self._watch.forget()
        return self._take_out()

    def reset(self, cause: str = "resync") -> list[Outcome]:
        if self._framer is not None:
            for fed in self._framer.reset():
                self._resolve(fed, cause, "the reader jumped")
        for piece in list(self._flight.values()):
            self._give_up(piece, cause, "the reader jumped")
        self._wait(_JOINING)
        self._watch.forget()
        self._skipper.forget_place(jumped=cause == "jumped")
        return self._take_out()

    def close(self) -> None:
        """Free the codec. Pictures given out stay valid; what is in flight gets no outcome."""
        self._codec = None
        self._framer = None
        self._flight.clear()
        self._unproved.clear()
        self._arrived.clear()

    def __enter__(self) -> VideoDecoder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- from records to access units ------------------------------------------------------------------------------

    def _take_cut(self, units: Iterable[tuple[bytes, Fed]], passed: Iterable[Fed], trusted: bool) -> None:
        for data, fed in units:
            self._take_packet(fed, data, trusted)
        for fed in passed:
            if not fed.pictures:
                self._resolve(fed, ABSORBED, "no picture starts in it")

    def _take_packet(self, fed: Fed, data: bytes, trusted: bool) -> None:
        packet = self._inspector.normalise(data)
        if packet is None:
            self._refuse_unit(fed, "NAL unit lengths do not add up")
            return
        units = self._inspector.inspect(packet)
        fed.pictures = fed.pictures or any(unit.kind is Kind.PICTURE for unit in units)
        for unit in units:
            whole = len(units) == 1
            self._take_unit(fed, unit, packet if whole else packet[unit.begin_byte : unit.end_byte], trusted)
            if unit.kind is Kind.PICTURE:
                fed.subs += 1

    def _take_unit(self, fed: Fed, unit: Unit, data: bytes, trusted: bool) -> None:
        if unit.size is not None:
            self._judge_size(unit.size)
        if unit.kind is Kind.INVALID:
            self._refuse_unit(fed, unit.why)
            return
        if unit.kind is Kind.PARAMETERS:
            self._take_sets(unit)
            self._prefix = (self._prefix + data)[-_MAX_PARAMETERS:]
            self._absorb(fed)
            return
        if self._refused:
            self._resolve(fed, "too_large", self._refused)
            return
        begins = Begin.NO if self._damaged else unit.begins
        if self._tainted and self._mode is not _Mode.WAIT and begins in (Begin.CLEAN, Begin.OPEN):
            self._stop(None, "no_picture", self._why)  # a codec that met an error may spoil a keyframe
        if self._mode is not _Mode.WAIT and not (self._mode is _Mode.PASS and self._doubtful):
            gap = self._inspector.continuity(unit)
            if gap:
                self._doubt("frame_num", gap)
        self._take_sets(unit)
        sound = begins is Begin.CLEAN or (begins is Begin.OPEN and unit.intra)
        flagged = self._mode in (_Mode.WAIT, _Mode.PASS) and fed.record.keyframe and unit.intra and not self._damaged
        if begins is Begin.NO and flagged:
            begins = Begin.OPEN
        if begins is not Begin.NO and not (self._sets.keyframe() and self._inspector.has_parameters()):
            begins, self._why = Begin.NO, "the keyframe's parameter sets are missing, or may be"
        if unit.kind is Kind.PICTURE:
            self._skipper.see(fed.record.timestamp_ns, key=sound)
        if self._leaves_out(fed, unit, begins, sound):
            return
        if self._mode in (_Mode.WAIT, _Mode.PASS):
            if begins is Begin.NO:
                self._resolve(fed, "resync", self._why)
                return
            self._begin(unit, begins, fed.record.timestamp_ns)
        elif unit.leading and self._skip_leading:
            detail = "refers to pictures before the keyframe that decoding started at"
            self._resolve(fed, self._leading_cause, detail)
            return
        else:
            self._mark_healing(begins)
        self._tainted = self._tainted or self._damaged
        self._submit(fed, unit, data, trusted)

    def _take_sets(self, unit: Unit) -> None:
        if not self._damaged:
            self._sets.take(unit.sets)

    def _leaves_out(self, fed: Fed, unit: Unit, begins: Begin, sound: bool) -> bool:
        """Whether the unit is not decoded because nobody will take its picture; it is answered then.

        Args:
            begins: Where the codec may start, parameter sets and flags considered.
            sound: The stream itself says that a decoder can start here.
        """
        skipper, capture_ns = self._skipper, fed.record.timestamp_ns
        if self._mode is _Mode.PASS:
            missing = skipper.keyframe_is_missing(capture_ns, doubtful=self._doubtful)
            wanted = sound and not skipper.passes_over(capture_ns, [])
            if begins is not Begin.NO and (wanted or missing):
                return False
            if wanted or missing:
                self._wait(self._why)
                return False
            self._leave_out(fed, unit, "rate")
            return True
        if self._mode is _Mode.WAIT or self._damaged or unit.kind is not Kind.PICTURE:
            return False
        cause = skipper.leaves_out(unit, capture_ns)
        if cause:
            self._leave_out(fed, unit, cause)
            return True
        if skipper.selection is None:
            return False
        waiting = [piece.fed.record.timestamp_ns for piece in self._flight.values()]
        if self._mode is _Mode.RECOVER:
            waiting = [other_ns for other_ns in waiting if other_ns >= self._begin_ns]
        # A leading picture after a start is given to nobody: the GOP may end before it.
        in_order = capture_ns < self._begin_ns or capture_ns > max(waiting, default=0)
        if not (in_order and skipper.passes_over(capture_ns, waiting)):
            return False
        self._stop(None, "no_picture", "the codec gave nothing for it")
        self._mode, self._why = _Mode.PASS, "a GOP much longer than those before; its pictures were not all decoded"
        self._doubtful = self._sets_passed = False
        self._leave_out(fed, unit, "rate")
        return True

    def _leave_out(self, fed: Fed, unit: Unit, cause: str) -> None:
        self._sets_passed = self._sets_passed or bool(unit.sets)
        if unit.kind is Kind.PICTURE:
            self._resolve(fed, cause)
        else:
            self._absorb(fed)

    def _begin(self, unit: Unit, begins: Begin, capture_ns: int) -> None:
        self._leading_cause = "resync"
        if self._mode is _Mode.PASS:
            self._leading_cause = "rate"
            if self._sets_passed:
                self._prefix = (self._inspector.parameter_sets() + self._prefix)[-_MAX_PARAMETERS:]
        self._begin_ns = capture_ns
        recovers = begins is Begin.REFRESH or (begins is Begin.OPEN and self._inspector.open_by_display)
        self._mode = _Mode.RECOVER if recovers else _Mode.CLEAN
        self._begins = begins
        self._begin_token = self._next_token
        self._skip_leading = True
        self._degraded = False
        self._heal_token = None
        self._inspector.begin(unit)

    def _mark_healing(self, begins: Begin) -> None:
        """A keyframe passes by while decoding goes on: pictures in doubt (``deliver``) end at it."""
        if begins is Begin.CLEAN:
            self._skip_leading = False
            if self._degraded:
                self._degraded = False
                self._skip_leading = True  # leading pictures of this keyframe refer to the doubtful ones
        elif begins is Begin.OPEN and self._degraded:
            self._heal_token = self._next_token

    def _judge_size(self, size: tuple[int, int]) -> None:
        if size[0] * size[1] <= self.options.max_pixels:
            self._refused = ""
            return
        detail = f"{size[0]}x{size[1]} is more than max_pixels={self.options.max_pixels}"
        if self._mode is not _Mode.WAIT:
            self._stop(None, "no_picture", detail)
        self._refused = detail

    def _refuse_unit(self, fed: Fed, why: str) -> None:
        if self._mode is not _Mode.WAIT:
            self._doubt("format", why)
        self._resolve(fed, "decode_error", why)

    def _absorb(self, fed: Fed) -> None:
        if not fed.pictures and self._framer is None:
            self._resolve(fed, ABSORBED)

    # -- from access units to pictures -----------------------------------------------------------------------------

    def _submit(self, fed: Fed, unit: Unit, data: bytes, trusted: bool) -> None:
        assert self._codec is not None
        token, self._next_token = self._next_token, self._next_token + 1
        if self._prefix:
            data, self._prefix = self._prefix + data, b""
        shown = unit.kind is Kind.PICTURE
        if shown:
            self._flight[token] = Piece(token, fed, fed.subs, self._degraded)
            if not trusted:
                self._unproved[token] = None
        frames, problem = self._codec.submit(token, data)
        bad = self._arrive(frames)
        if bad is None and (problem or (self._instant and shown and self._flight[token].frame is None)):
            bad = token
        if bad is not None:
            self._broken(bad, problem or ("the codec flagged it" if frames else "the codec gave no picture"))
        if not shown:
            self._absorb(fed)
        self._release()
        self._expire()

    def _arrive(self, frames: list[av.VideoFrame]) -> int | None:
        """Take frames the codec gave out, in its order; returns the smallest token it knows to be damaged."""
        bad: int | None = None
        for frame in frames:
            piece = self._flight.get(frame.pts if frame.pts is not None else -1)
            if piece is None or piece.frame is not None:
                self.damage["unpaired"] += 1
                continue
            piece.frame = frame
            corrupt = frame.is_corrupt
            if self._mode is _Mode.RECOVER and self._still_recovering(piece, corrupt):
                self._give_up(piece, self._leading_cause, "shown before the point that decoding is right from")
                continue
            if piece.token == self._heal_token and not corrupt:
                self._heal()
            if corrupt:
                bad = piece.token if bad is None else min(bad, piece.token)
            else:
                self._unproved.pop(piece.token, None)
            self._arrived.append(piece)
        return bad

    def _still_recovering(self, piece: Piece, corrupt: bool) -> bool:
        if self._begins is Begin.REFRESH:
            if not corrupt:
                self._mode = _Mode.CLEAN
            return corrupt
        if piece.token == self._begin_token:
            self._mode = _Mode.CLEAN
            return False
        return True

    def _heal(self) -> None:
        """An open-GOP keyframe came out of a degraded stream: what is shown after it is right."""
        self._heal_token = None
        self._degraded = False
        for piece in self._flight.values():
            if piece.frame is None:
                piece.degraded = False

    def _release(self) -> None:
        while self._arrived:
            piece = self._arrived[0]
            if self._unproved and next(iter(self._unproved)) < piece.token:
                return
            self._arrived.popleft()
            self._deliver(piece)

    def _expire(self) -> None:
        assert self._codec is not None
        while self._flight:
            oldest = next(iter(self._flight.values()))
            if oldest.frame is not None or self._next_token - oldest.token <= self._codec.delay_bound:
                return
            if self.options.threads != 1:
                self._broken(oldest.token, "the codec gave no picture")
                return
            self._give_up(oldest, "no_picture", "the codec gave no picture for it")
            self._release()

    def _deliver(self, piece: Piece) -> None:
        frame = piece.frame
        assert frame is not None
        del self._flight[piece.token]
        record = piece.fed.record
        if frame.width * frame.height > self.options.max_pixels:
            self._resolve(piece.fed, "too_large", f"{frame.width}x{frame.height}")
            return
        if not self._converting:
            self._resolve(piece.fed, "lag")
            return
        layout = (frame.format.name, frame.width, frame.height, int(frame.colorspace), int(frame.color_range))
        made = self._converters.get(layout)
        if made is None:
            options = self.options
            made = converter(*layout, options.array_format, options.width, options.height)
            self._converters = {layout: made}
        identity = Identity(record.epoch, record.offset, piece.sub)
        picture = VideoPicture(frame, made, record, identity, piece.degraded)
        self._out.append(Outcome(record, picture, first=not piece.fed.resolved))
        self._settle(piece.fed)

    # -- doubt -----------------------------------------------------------------------------------------------------

    def _doubt(self, reason: str, detail: str) -> None:
        """What comes next may refer to something missing or wrong; what the codec holds is right."""
        self.damage[reason] += 1
        self._why = f"{reason}: {detail}"
        self._sets.interrupted()
        self._skipper.interrupted()
        self._doubtful = True
        if self._mode in (_Mode.WAIT, _Mode.PASS):
            return
        if self.options.on_damage == "deliver":
            self._degraded = True
            self._heal_token = None
            return
        self._stop(None, "no_picture", detail)

    def _tear(self, detail: str) -> None:
        """The bytestream has a hole: an access unit that was begun can never be completed."""
        if self._framer is not None:
            for fed in self._framer.reset():
                if not fed.pictures:
                    self._resolve(fed, "resync", detail)

    def _broken(self, bad: int, detail: str) -> None:
        """The codec reports that the unit with token ``bad`` cannot be decoded, or is decoded wrongly."""
        self.damage["codec"] += 1
        self._why = f"codec: {detail}"
        if self.options.on_damage == "drop":
            self._stop(bad, "decode_error", detail)
            return
        self._degraded = self._tainted = True
        for piece in self._flight.values():
            piece.degraded = piece.degraded or piece.token >= bad
        piece = self._flight.get(bad)  # type: ignore[assignment]
        if piece is not None and piece.frame is None:
            self._give_up(piece, "decode_error", detail)
        elif piece is not None:
            self._unproved.pop(bad, None)

    def _stop(self, bad: int | None, cause: str, detail: str) -> None:
        """Drain the codec, give out what is certainly right, drop the rest, and wait for a keyframe.

        Args:
            bad: From this token on pictures are wrong; ``None``: none is.
            cause: Of the unit ``bad``, and of units that gave no picture.
            detail: For people.
        """
        assert self._codec is not None
        frames, problem = self._codec.finish()
        flagged = self._arrive(frames)
        missing = [token for token, piece in self._flight.items() if piece.frame is None]
        suspects = [token for token in (bad, flagged) if token is not None]
        if missing and (suspects or problem or self.options.threads != 1):
            suspects += missing
        limit = min(suspects, default=self._next_token)
        deliver = self.options.on_damage == "deliver"
        for piece in list(self._arrived):
            piece.degraded = piece.degraded or piece.token >= limit
            if piece.token < limit or deliver:
                self._deliver(piece)
        for piece in list(self._flight.values()):
            own = piece.frame is None or piece.token == bad
            self._give_up(piece, cause if own else "resync", detail)
        self._wait(detail)
        if suspects or problem or self._tainted:
            self._codec.renew()
            self._prefix = (self._inspector.parameter_sets() + self._prefix)[-_MAX_PARAMETERS:]
            self._tainted = False

    def _wait(self, why: str) -> None:
        if self._codec is not None:
            self._codec.flush()
        self._flight.clear()
        self._unproved.clear()
        self._arrived.clear()
        self._mode = _Mode.WAIT
        self._degraded = False
        self._why = why

    def _end_of_epoch(self) -> None:
        if self._codec is None:
            return
        if self._framer is not None:
            units, passed = self._framer.finish()
            self._take_cut(units, passed, trusted=False)
        self._stop(None, "no_picture", "the stream ended")
        self._why = _JOINING
        self._skipper.forget_place()

    # -- the books -------------------------------------------------------------------------------------------------

    def _give_up(self, piece: Piece, cause: str, detail: str) -> None:
        self._flight.pop(piece.token, None)
        self._unproved.pop(piece.token, None)
        piece.frame = None
        self._resolve(piece.fed, cause, detail)

    def _resolve(self, fed: Fed, cause: str, detail: str = "") -> None:
        """A unit became no picture: the record's outcome, unless it has one already."""
        if not fed.resolved:
            self._out.append(Outcome(fed.record, None, cause, detail))
            self._settle(fed)

    def _settle(self, fed: Fed) -> None:
        if not fed.resolved:
            fed.resolved = True
            self._unresolved -= 1

    def _take_out(self) -> list[Outcome]:
        out, self._out = self._out, []
        return out
