"""Recycled arrays: never two holders of one memory, and memory comes back only after the last view is gone."""

from __future__ import annotations

import gc
import random
import threading

import numpy as np
import pytest

from comux.decoders.convert import ArrayPool


def test_recycled_only_after_the_last_view():
    pool = ArrayPool()
    array = pool.take((8, 6, 3))
    where = array.ctypes.data
    view = array[::2, 1:, 0]
    window = memoryview(array)
    capsule_holder = np.from_dlpack(array)
    del array
    for _ in range(3):
        other = pool.take((8, 6, 3))
        assert other.ctypes.data != where
        del other
    assert pool.lent == 1
    del view
    window.release()
    del window
    assert pool.lent == 1 and pool.take((8, 6, 3)).ctypes.data != where
    del capsule_holder
    assert pool.lent == 0
    taken = [pool.take((8, 6, 3)) for _ in range(pool.mapped)]
    assert where in {a.ctypes.data for a in taken}


def test_steady_use_maps_nothing_more():
    pool = ArrayPool()
    pool.prepare((360, 640, 3), count=2)
    assert pool.mapped == 2
    pool.prepare((360, 640, 3), count=2)
    assert pool.mapped == 2
    for _ in range(100):
        first, second = pool.take((360, 640, 3)), pool.take((360, 640, 3))
        assert not np.shares_memory(first, second)
        del first, second
    assert pool.mapped == 2 and pool.lent == 0


def test_two_arrays_that_are_larger_than_the_limit_are_recycled_all_the_same():
    pool = ArrayPool(max_idle_bytes=1 << 20)
    arrays = [pool.take((3 << 20,)) for _ in range(3)]
    arrays.clear()
    assert pool.idle_bytes == 2 * (3 << 20)
    arrays = [pool.take((3 << 20,)) for _ in range(2)]
    assert pool.mapped == 3


@pytest.mark.parametrize("shape", [(1080, 1920, 3), (7, 5), (1,), (), (0, 4), (721, 1281, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_alignment_and_layout(shape, dtype):
    array = ArrayPool().take(shape, dtype)
    assert array.shape == shape and array.dtype == dtype and array.flags.c_contiguous and array.flags.writeable
    assert array.ctypes.data % 64 == 0
    if array.nbytes >= 2 << 20:
        assert array.ctypes.data % (2 << 20) == 0
    array[...] = 3
    assert (array == 3).all()


def test_idle_memory_is_bounded():
    pool = ArrayPool(max_idle_bytes=1 << 20)
    arrays = [pool.take((300_000,)) for _ in range(8)]
    arrays.clear()
    assert 0 < pool.idle_bytes <= 1 << 20
    pool.prepare((300_000,), count=9)
    assert 0 < pool.idle_bytes <= 1 << 20
    other = pool.take((900_000,))
    assert pool.idle_bytes + other.nbytes <= (1 << 20) + 8192
    del other


def test_what_is_prepared_counts_what_is_lent_and_what_is_not_wanted_is_given_back():
    pool = ArrayPool()
    pool.prepare((4096,), count=3)
    lent = pool.take((4096,))
    pool.prepare((4096,), count=4)
    assert (pool.mapped, pool.lent, pool.idle_bytes) == (4, 1, 3 * 4096)
    pool.prepare((8192,), count=2)
    pool.trim([((4096,), np.uint8, 1), ((2048,), np.uint16, 1)])  # of one size
    assert (pool.lent, pool.idle_bytes) == (1, 2 * 4096)
    pool.trim([])
    assert (pool.lent, pool.idle_bytes) == (1, 0)
    del lent
    assert (pool.lent, pool.idle_bytes) == (0, 4096)


def test_arrays_outlive_the_pool():
    pool = ArrayPool()
    array = pool.take((64, 64))
    array[:] = 7
    del pool
    gc.collect()
    assert (array == 7).all()


def test_objects_are_refused():
    with pytest.raises(ValueError, match="Python objects"):
        ArrayPool().take((4,), object)


def test_threads_never_share_memory():
    """Each thread fills its arrays with its own number, keeps some for a while, and finds nothing else in them."""
    pool = ArrayPool()
    wrong: list[int] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        kept = []
        for _ in range(400):
            array = pool.take((64, 64))
            array[:] = number
            kept.append(array[1:])
            del array
            if len(kept) > chance.randrange(1, 6):
                view = kept.pop(chance.randrange(len(kept)))
                if (view != number).any():
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,), name=f"pool-{n}") for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and pool.lent == 0 and pool.mapped <= 4 * 7
