"""A model for ``comux run cameras.yaml``: how bright each picture is, and how much that changed since the last one."""

from typing import Any

from comux import Batch


class Brightness:
    """Made once; called with each batch; what it returns goes out as headers of the original packets."""

    def __init__(self) -> None:
        self.last: dict[str | int, float] = {}

    def __call__(self, batch: Batch) -> dict[str | int, dict[str, Any]]:
        results = {}
        for item in batch.fresh:
            mean = float(item.array.mean())
            results[item.cam_id] = {"mean": mean, "change": mean - self.last.get(item.cam_id, mean)}
            self.last[item.cam_id] = mean
        return results
