"""Decoders: packets in, pictures out, each packet answered once; and the pixels, encoders and containers around them.

Lives here: the ``Decoder`` contract; video, raw and shared-frame decoders; damage; conversion; encoding; video files.
May import: records, errors, account, telemetry, options; numpy, crc32c and, alone in the house, ``av``.
Must never know: engines, topics, sources, batches.
"""

from __future__ import annotations

from .interface import (
    ABSORBED,
    ArrayFormat,
    Decoder,
    DecoderOptions,
    Identity,
    Outcome,
    Picture,
    Selection,
    StreamFacts,
)
from .registry import canonical_codec, create_decoder, known_codecs

__all__ = [
    "ABSORBED",
    "ArrayFormat",
    "Decoder",
    "DecoderOptions",
    "Identity",
    "Outcome",
    "Picture",
    "Selection",
    "StreamFacts",
    "canonical_codec",
    "create_decoder",
    "known_codecs",
]
