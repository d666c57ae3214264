"""What a packet is made of, whatever the codec: the shared nouns of ``nal``, ``hevc`` and ``frames``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What one part of a packet is to a decoder."""

    PICTURE = "picture"  #: a coded picture that will be shown
    HIDDEN = "hidden"  #: coded, but not shown (VP9): the codec needs it, no picture comes out
    COMPLEMENT = "complement"  #: the second field of the picture before it
    PARAMETERS = "parameters"  #: parameter sets and messages only
    INVALID = "invalid"  #: nothing of this codec, or a header that contradicts itself


class Begin(Enum):
    """Whether a decoder can start here."""

    NO = "no"
    CLEAN = "clean"  #: everything from here on is right (IDR, BLA/CRA without their RASL pictures, VP9/AV1 key, JPEG)
    OPEN = "open"  #: right from this picture on in *display* order; pictures shown before it are not
    REFRESH = "refresh"  #: right some pictures later (intra refresh); the codec says when


@dataclass(slots=True)
class Unit:
    """One access unit of a packet.

    Attributes:
        begin_byte, end_byte: Its place in the packet.
        kind, begins: See the enumerations.
        size: Width and height in pixels that its headers announce, where they do.
        leading: HEVC RASL: cannot be decoded after a start at the keyframe before it.
        intra: Its first slice is intra coded.
        number: H.264 ``frame_num`` (see ``Inspector.continuity``); it wraps at ``modulus``, 0: unchecked.
        head: The first bytes of its first slice, for a closer look later.
        reference: H.264: other pictures refer to it (``nal_ref_idc``).
        disposable: Surely no other picture refers to it and it is coded whole in this unit: all others come out the
            same without it.
        sets: Kinds of parameter sets in it (NAL unit types).
        why: For people: what is wrong with an ``INVALID`` one.
    """

    begin_byte: int
    end_byte: int
    kind: Kind
    begins: Begin = Begin.NO
    size: tuple[int, int] | None = None
    leading: bool = False
    intra: bool = False
    number: int | None = None
    modulus: int = 0
    head: bytes = b""
    reference: bool = True
    disposable: bool = False
    sets: frozenset[int] = frozenset()
    why: str = ""


class Inspector(ABC):
    """Reads packets of one codec without decoding. One per stream: it remembers parameter sets and numbers.

    Attributes:
        repeats_are_duplicates: Two equal packets in a row can only be one packet sent twice (they carry numbers).
        open_by_display: An ``OPEN`` start must drop what is shown before it (H.264); HEVC marks such pictures.
        one_in_one_out: Without codec threads every shown picture comes out with its own packet.
    """

    repeats_are_duplicates = False
    open_by_display = False
    one_in_one_out = False

    def parameters(self, extradata: bytes) -> bytes:
        """Take out-of-band parameter sets.

        Returns:
            Bytes to put before the first packet; ``b""`` where the codec takes ``extradata`` itself (or needs none).
        """
        del extradata
        return b""

    def normalise(self, data: bytes) -> bytes | None:
        """The packet as this inspector and the codec read it (Annex B); ``None`` where that cannot be."""
        return data

    @abstractmethod
    def inspect(self, data: bytes) -> list[Unit]:
        """Cut a packet into its units, in order; remembers the parameter sets in it. Never raises."""

    @abstractmethod
    def starts(self, data: bytes) -> bool:
        """Whether a decoder can start at this packet. Remembers nothing."""

    def parameter_sets(self) -> bytes:
        """Every parameter set in force, to be put before a packet when a fresh codec goes on with the stream."""
        return b""

    def has_parameters(self) -> bool:
        """Whether parameter sets of each necessary kind came, readable to us or not."""
        return True

    def begin(self, unit: Unit) -> None:
        """Decoding starts at this unit: forget the numbers before it."""
        del unit

    def continuity(self, unit: Unit) -> str:
        """Whether a picture's numbers follow those before it; ``""`` or, for people, what is missing."""
        del unit
        return ""
