"""Decoding on a device: what is not there is one clear error; what is there gives the pictures software gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from av.codec.hwaccel import hwdevices_available

from comux.decoders import DecoderOptions, create_decoder
from comux.errors import ConfigError, DeviceError
from comux.multiplexer import Comux


def devices() -> list[str]:
    """Those that can be opened on this machine."""
    found = []
    for kind in hwdevices_available():
        try:
            create_decoder(DecoderOptions(hwaccel=kind)).close()
        except DeviceError:
            continue
        found.append(kind)
    return found


@pytest.mark.parametrize(
    ("hwaccel", "codec", "error", "words"),
    [
        ("", "h264", ConfigError, "kind of device"),
        (7, "h264", ConfigError, "kind of device"),
        (":/dev/dri/renderD128", "h264", ConfigError, "kind of device"),
        ("cuda", "raw", ConfigError, "devices decode h264"),
        ("abacus", "h264", DeviceError, "in hardware with"),
        ("abacus:1", "hevc", DeviceError, "in hardware with"),
    ],
)
def test_what_cannot_decode_is_named_before_anything_starts(
    hwaccel: Any, codec: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        create_decoder(DecoderOptions(codec=codec, hwaccel=hwaccel))


def test_a_source_with_a_missing_device_is_refused_and_names_the_source() -> None:
    with pytest.raises(DeviceError, match=r"gate.*abacus.*leave hwaccel out"):
        Comux([{"cam_id": "gate", "hwaccel": "abacus"}], address="memory://no-device").start()


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_a_device_gives_the_pictures_that_software_gives(kit: Any, codec: str) -> None:
    there = devices()
    if not there:
        pytest.skip(f"no device here decodes: PyAV knows {', '.join(hwdevices_available())}, none can be opened")
    source = kit.stream(codec)
    software, hardware = (pictures(kit, source, hwaccel) for hwaccel in (None, there[0]))
    assert software.keys() == hardware.keys() and len(software) == len(source.packets)
    assert all(np.abs(software[i] - hardware[i]).max() <= 2 for i in software)


def pictures(kit: Any, source: Any, hwaccel: str | None) -> dict[int, Any]:
    outcomes = kit.run(kit.decoder(source, hwaccel=hwaccel), kit.stamp_all(source))
    return {o.record.offset: o.picture.to_array().astype(int) for o in outcomes if o.picture is not None}
