"""Resizing in the kernel: exact, the same on every instruction set, and nothing touched beside a picture.

The reference resizes the planes in floating point and then applies the colour equations. Both steps are linear, so
where a picture shrinks this is the area average of its exact colours, but for clipping; chroma lies in the middle of
the pixels it belongs to.
"""

from __future__ import annotations

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest

from comux.decoders import _convert
from comux.decoders.convert import converter

KR, KB = 0.2126, 0.0722
FORMATS = ("yuv420p", "nv12", "yuv422p", "yuvj420p", "yuvj422p")
SIZES = {
    "3 to 1": ((96, 72), (32, 24)),
    "3 to 1, odd": ((99, 75), (33, 25)),
    "2 to 1": ((96, 72), (48, 36)),
    "2 to 1, odd": ((98, 74), (49, 37)),
    "3 to 2": ((96, 72), (64, 48)),
    "3 to 2, chroma ends within a period": ((99, 75), (66, 50)),
    "4 to 1": ((96, 72), (24, 18)),
    "6 to 1": ((96, 72), (16, 12)),
    "many to 1": ((200, 200), (7, 5)),
    "nearly the same": ((98, 71), (97, 70)),
    "odd and crooked": ((97, 71), (33, 20)),
    "1 to 1.5": ((96, 72), (144, 108)),
    "odd and larger": ((97, 71), (145, 107)),
    "far larger": ((5, 5), (70, 64)),
    "width only": ((96, 72), (41, 72)),
    "height only": ((96, 72), (96, 36)),
    "height only, larger": ((97, 72), (97, 100)),
    "narrower and higher": ((96, 72), (32, 100)),
    "wider and lower": ((96, 72), (131, 24)),
    "to one pixel": ((65, 33), (1, 1)),
    "from one pixel": ((1, 1), (9, 9)),
}


@pytest.fixture(params=_convert.instruction_sets())
def instruction_set(request):
    before = _convert.instruction_set()
    _convert.use_instruction_set(request.param)
    yield request.param
    _convert.use_instruction_set(before)


def weights(pixels, share, n):
    """How much of each sample, which is ``share`` pixels wide, each of the ``n`` new pixels takes: a matrix."""
    samples = -(-pixels // share)
    at = np.arange(n)[:, None]
    edges = np.arange(samples) * share
    if n <= pixels:
        begin, end = at * pixels / n, (at + 1) * pixels / n
        covered = np.minimum(end, edges + share) - np.maximum(begin, edges)
        return np.clip(covered, 0, None) / (end - begin)
    place = np.clip((at + 0.5) * pixels / n / share - 0.5, 0, samples - 1)
    return np.clip(1 - np.abs(place - np.arange(samples)), 0, None)


def exact(y, u, v, chroma_rows, width, height, full):
    """BGR and gray of the wanted size, not rounded."""
    pixels_down, pixels_along = y.shape
    down, along = weights(pixels_down, chroma_rows, height), weights(pixels_along, 2, width)
    y = weights(pixels_down, 1, height) @ y @ weights(pixels_along, 1, width).T
    u, v = (down @ c @ along.T - 128 for c in (u, v))
    if not full:
        y, u, v = (y - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
    r, b = y + 2 * (1 - KR) * v, y + 2 * (1 - KB) * u
    g = (y - KR * r - KB * b) / (1 - KR - KB)
    return np.clip(np.stack([b, g, r], -1), 0, 255), np.clip(y, 0, 255)


def random_frame(pixel_format, width, height, seed=0):
    """A frame of noise, the hardest there is, and its three planes."""
    rng = np.random.default_rng(seed)
    frame = av.VideoFrame(width, height, pixel_format)
    planes = []
    for plane in frame.planes:
        values = rng.integers(0, 256, (plane.height, plane.line_size), np.uint8)
        plane.update(values.tobytes())
        planes.append(values)
    half = (width + 1) // 2
    chroma = (planes[1][:, 0::2], planes[1][:, 1::2]) if pixel_format == "nv12" else planes[1:]
    return frame, (planes[0][:, :width], *(c[:, :half] for c in chroma))


def psnr(a, b):
    return 10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 1e-12))


@pytest.mark.parametrize("pixel_format", FORMATS)
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("color_range", [1, 2])
def test_exact(pixel_format, name, color_range):
    (width, height), size = SIZES[name]
    frame, planes = random_frame(pixel_format, width, height)
    full = color_range == 2 or pixel_format.startswith("yuvj")
    bgr, gray = exact(*planes, 1 if "422" in pixel_format else 2, *size, full)
    for array_format, wanted in (("bgr24", bgr), ("rgb24", bgr[..., ::-1]), ("gray", gray)):
        made = converter(pixel_format, width, height, 1, color_range, array_format, *size)
        array = made.convert(frame)
        assert made.path == "kernel" and (array.shape, array.dtype) == made.spec
        assert np.abs(array - wanted).max() < 0.65, array_format
        assert array.size < 1000 or psnr(array, wanted) > 57, array_format


def resize_flat(planes, strides, size, rows, nv12, out, out_stride, out_size, rgb=False, full=False):
    if len(planes) == 1:
        _convert.luma_to_gray(planes[0], strides[0], *size, full, out, out_stride, *out_size)
        return
    _convert.yuv_to_packed(
        planes[0], strides[0], planes[1], strides[1], None if nv12 else planes[2], strides[2], *size, rows, KR, KB,
        full, rgb, out, out_stride, *out_size,
    )  # fmt: skip


def random_case(chance):
    """Sizes that are often one of the simple ratios, and a layout."""
    width, height = chance.randrange(1, 140), chance.randrange(1, 40)
    ratio, ratio_down = (chance.choice((1 / 3, 1 / 2, 2 / 3, 1, chance.uniform(0.05, 2.2))) for _ in range(2))
    out_size = (max(1, round(width * ratio)), max(1, round(height * ratio_down)))
    if chance.random() < 0.5:
        width, height = max(1, round(out_size[0] / ratio)), max(1, round(out_size[1] / ratio_down))
    return (width, height), out_size, chance.choice((1, 2)), chance.choice((False, True)), chance.choice((1, 3))


def test_every_size_equals_plain_and_writes_nothing_beside(instruction_set):
    chance, rng = random.Random(11), np.random.default_rng(11)
    for _ in range(300):
        size, out_size, rows, nv12, channels = random_case(chance)
        rgb, full = chance.choice((False, True)), chance.choice((False, True))
        chroma = ((size[0] + 1) // 2 * (2 if nv12 else 1), -(-size[1] // rows))
        shapes = [size, chroma, chroma][: 1 if channels == 1 else 3]
        strides = [w + chance.randrange(0, 40) for w, _ in shapes]
        planes = [rng.integers(0, 256, (h - 1) * s + w, np.uint8) for (w, h), s in zip(shapes, strides, strict=True)]
        line = channels * out_size[0]
        out_stride, margin = line + chance.randrange(0, 70), 64 + chance.randrange(0, 64)
        length = (out_size[1] - 1) * out_stride + line
        results = []
        for name in (instruction_set, "plain"):
            _convert.use_instruction_set(name)
            memory = np.full(length + 2 * margin, 0xA5, np.uint8)
            out = memory[margin : margin + length]
            resize_flat(planes, strides, size, rows, nv12, out, out_stride, out_size, rgb, full)
            results.append(memory)
        _convert.use_instruction_set(instruction_set)
        assert np.array_equal(*results), (size, out_size, rows, nv12, channels)
        beside = np.ones(length + 2 * margin, bool)
        for row in range(out_size[1]):
            beside[margin + row * out_stride : margin + row * out_stride + line] = False
        assert (results[0][beside] == 0xA5).all(), (size, out_size)


GUARDED = """
import ctypes, mmap, random, sys
import numpy as np
from comux.decoders import _convert
import test_decoders_resize as tests

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)

def guarded(n, at_end):
    # n bytes that begin behind a page, or end before one, that may not be touched.
    pages = -(-n // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    whole = np.frombuffer(memory, np.uint8)
    for page in (0, pages + 1):
        assert libc.mprotect(ctypes.c_void_p(whole.ctypes.data + page * PAGE), PAGE, 0) == 0
    start = (pages + 1) * PAGE - n if at_end else PAGE
    return whole[start : start + n]

chance = random.Random(13)
for number in range(150):
    size, out_size, rows, nv12, channels = tests.random_case(chance)
    chroma = ((size[0] + 1) // 2 * (2 if nv12 else 1), -(-size[1] // rows))
    shapes = [size, chroma, chroma][: 1 if channels == 1 else 3]
    at_end = number % 2 == 0
    planes = [guarded(w * h, at_end) for w, h in shapes]
    out = guarded(channels * out_size[0] * out_size[1], at_end)
    for name in _convert.instruction_sets():
        _convert.use_instruction_set(name)
        strides = [w for w, _ in shapes]
        tests.resize_flat(planes, strides, size, rows, nv12, out, channels * out_size[0], out_size)
if "read" in sys.argv:
    guarded(PAGE, True).base[0]
print("untouched")
"""


def run_program(program, *arguments):
    path = ":".join([__file__.rpartition("/")[0], *sys.path])
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env={"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_nothing_beside_the_planes_is_read():
    """Planes and arrays between pages that no one may touch, without a spare byte at one end."""
    done = run_program(GUARDED)
    assert done.stdout.strip() == "untouched", done.stderr
    assert run_program(GUARDED, "read").returncode < 0, "a byte of such a page is the end of the process"


def test_flat_pictures_stay_flat(instruction_set):
    """Whatever the ratio: weights add up to one, and what roundings lose does not."""
    for size, out_size in (((640, 360), (1, 1)), ((8, 5000), (3, 1)), ((5000, 8), (1, 3)), ((97, 71), (33, 20)),
                           ((96, 72), (32, 24)), ((64, 48), (97, 131)), ((600, 600), (599, 7))):  # fmt: skip
        for value, wanted in ((16, 0), (126, 128), (235, 255)):
            luma, out = np.full(size[0] * size[1], value, np.uint8), np.zeros(out_size[0] * out_size[1], np.uint8)
            resize_flat([luma], [size[0]], size, 1, False, out, out_size[0], out_size)
            assert (out == wanted).all(), (size, out_size, value)


def test_large_aligned_arrays_take_the_streaming_path(instruction_set):
    """From 1 MB on, into aligned memory, stores go past the caches; the bytes stay the same."""
    width, height, size = 1024, 351, (704, 702)
    planes = [np.ascontiguousarray(p) for p in random_frame("yuv420p", *size)[1]]
    strides = [p.shape[1] for p in planes]
    memory = np.zeros(3 * width * height + 128, np.uint8)
    start = -memory.ctypes.data % 64
    aligned, crooked = memory[start : start + 3 * width * height], np.zeros(3 * width * height + 1, np.uint8)[1:]
    assert aligned.size >= 1 << 20
    for out in (aligned, crooked):
        resize_flat(planes, strides, size, 2, False, out, 3 * width, (width, height))
    assert aligned.any() and np.array_equal(aligned, crooked)


def test_threads_share_a_converter():
    made = converter("yuv420p", 384, 216, 1, 1, "bgr24", 150, 100)
    frames = [random_frame("yuv420p", 384, 216, seed)[0] for seed in range(4)]
    alone = [made.convert(frame) for frame in frames]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda frame: [made.convert(frame) for _ in range(20)], frames))
    for wanted, arrays in zip(alone, together, strict=True):
        assert all(np.array_equal(array, wanted) for array in arrays)


WITHOUT_MEMORY = """
import resource
from comux.decoders import _convert
luma, out = bytearray(65536), bytearray(65535)
resource.setrlimit(resource.RLIMIT_AS, (4096, resource.RLIM_INFINITY))
try:
    _convert.luma_to_gray(luma, 65536, 65536, 1, True, out, 65535, 65535, 1)
except MemoryError:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print("refused", any(out))
"""


def test_no_memory_is_an_error():
    done = run_program(WITHOUT_MEMORY)
    assert done.stdout.strip() == "refused False", done.stderr
