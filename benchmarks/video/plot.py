"""The picture of docs/images/video.png: pictures a second by way, as shares of the ceiling; ages of live pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from video.goals import CEILING, median, ratios, row_of
from video.tables import ordered


def draw(found: dict[str, Any], path: Path) -> None:
    """Write the picture."""
    import statistics

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    files = [one for one in ordered(found) if one["part"] in ("every", "resized") and one["size"] == "1080p"]
    lives = [one for one in ordered(found) if (one["part"], one["codec"], one["size"]) == ("newest", "h264", "1080p")]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), dpi=110)
    names = [row["name"] for row in (files[0]["rows"] if files else []) if row["name"] != CEILING]
    places = np.arange(len(files))
    for number, name in enumerate(names):
        shares = [ratios(row_of(group, name), row_of(group, CEILING)) for group in files]
        heights = [statistics.median(share) if share else 0 for share in shares]
        left.bar(places + 0.8 * number / len(names), heights, 0.8 / len(names), label=name)
    titles = [f"{one['cameras']} × {one['codec']}" + ("\n640×360" if one["part"] == "resized" else "") for one in files]
    left.set_xticks(places + 0.4, titles, fontsize=7)
    left.set_ylabel("pictures/s, of decoding alone")
    left.set_title("Files of 1080p, every picture as BGR")
    left.set_ylim(0, 1.45)
    left.legend(fontsize=7, ncols=2, loc="upper left")
    names = [row["name"] for row in (lives[0]["rows"] if lives else [])]
    for name in names:
        points = [(one["cameras"], age) for one in lives if (age := median(row_of(one, name), "age_p99"))]
        points.sort()
        right.plot([n for n, _ in points], [1e3 * age for _, age in points], marker="o", label=name)
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xticks([1, 4, 8, 16], ["1", "4", "8", "16"])
    right.set_xlabel("live H.264 cameras of 1080p at 30 fps")
    right.set_ylabel("age at delivery, p99, ms")
    right.set_title("The newest picture")
    if names:
        right.legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
