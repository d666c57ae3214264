"""Batches into torch: without a copy where the processor computes, through pinned memory where a GPU does.

    pip install torch          # comux itself does not need it
    python examples/torch_batches.py [--frames 60]

torch's default build for Linux brings CUDA along (gigabytes); its CPU build, which torch's own pages tell how to get,
is enough for the first half. Without a GPU that torch can use, the example says so and stays on the processor.

Who may overwrite what, and when: the memory of a batch is used again when nobody holds it any more, and a tensor made
of it holds it. So keep a tensor as long as you like, and let go of it when you are done. A pinned buffer is yours: it
may be written again when the copy out of it has ended, which an event on the GPU's stream tells.
"""

from __future__ import annotations

import argparse
import threading
from typing import Any

from comux import Batch, Comux
from comux.feeds import publish

try:
    import torch
except ImportError:
    raise SystemExit("this example needs torch: pip install torch (or its CPU build)") from None

IDS = ["left", "right"]
ADDRESS = "memory://torch"
SHAPE = (360, 640, 3)


def in_place(batch: Batch) -> tuple[Any, Any]:
    """The batch as a tensor ``uint8 (N, H, W, 3)`` over the same memory, and which rows hold a picture."""
    stacked, mask = batch.stack(pad=0)
    tensor = torch.from_dlpack(stacked)
    assert tensor.data_ptr() == stacked.ctypes.data, "torch shares the memory; nothing is copied"
    return tensor, torch.from_numpy(mask)


class Pinned:
    """Batches to a GPU: one copy into pinned memory, and from there by the GPU while the processor goes on.

    Two buffers take turns: one is filled while the other is under way.

    Args:
        rows: Pictures in a batch.
    """

    def __init__(self, rows: int) -> None:
        self.buffers = [torch.empty((rows, *SHAPE), dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self.copied = [torch.cuda.Event() for _ in range(2)]
        self.turn = 0

    def __call__(self, batch: Batch) -> tuple[Any, Any]:
        self.turn = 1 - self.turn
        buffer, copied = self.buffers[self.turn], self.copied[self.turn]
        copied.synchronize()  # the copy of two batches ago has ended (at first: there was none)
        _, mask = batch.stack(pad=0, out=buffer.numpy())  # ``out`` also makes the shape the same for each batch
        tensor = buffer.to("cuda", non_blocking=True)
        copied.record()
        return tensor, torch.from_numpy(mask).to("cuda")


def model(tensor: Any) -> Any:
    """Stands for yours: BGR bytes as floats, channels first, and one number per picture."""
    return tensor.permute(0, 3, 1, 2).float().div(255).mean(dim=(1, 2, 3))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=60, help="that each of the two synthetic cameras gives")
    options = parser.parse_args()
    for number, cam_id in enumerate(IDS):
        camera = f"synthetic://{SHAPE[1]}x{SHAPE[0]}@30?frames={options.frames}&camera={number + 1}"
        threading.Thread(target=publish, args=(camera, ADDRESS, f"raw_{cam_id}")).start()
    gpu = torch.cuda.is_available()
    print("through pinned memory onto the GPU" if gpu else "no GPU that torch can use: on the processor", flush=True)
    ready = Pinned(len(IDS)) if gpu else in_place
    # ``freshest`` converts a batch in place; in ``every_frame`` each picture was converted before, and stack copies.
    with Comux(IDS, address=ADDRESS, strict_on_fail=False, start="beginning", mode="freshest") as cameras:
        for batch in cameras:
            if not batch.fresh:
                continue
            tensor, mask = ready(batch)
            levels = model(tensor).tolist()
            print(*(f"{i.cam_id}:{level:.3f}" for i, level, held in zip(batch, levels, mask, strict=True) if held))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
