"""Some cameras local, some on Kafka, results on either, a bridge between them."""

from __future__ import annotations

import json
from typing import Any

from comux import Comux
from comux.feeds import publish, read_marks
from comux.recording import origin_of
from comux.records import HEADER_SOURCE

FRAMES = 30


def test_cameras_and_results_on_either_engine(place: Any, bridge: Any, kafka: Any) -> None:
    line, other_host, cluster = place("shm"), place("shm"), place(kafka.bootstrap)
    for number, where in ((1, line), (2, other_host)):
        address = f"synthetic://160x120@30?gop=10&bframes=0&camera={number}&frames={FRAMES}"
        publish(address, where.address, f"raw_cam{number}", pace="fast")
    assert bridge(other_host, cluster, topics=["raw_*"], once=True).join()
    cameras = Comux(
        ["cam1"],
        address=line.address,
        produce_address=cluster.address,
        produce_schema="out_:cam_id",
        start="beginning",
        mode="every_frame",
    )
    seen: dict[str, list[int]] = {"cam1": [], "cam2": []}
    with cameras:
        cameras.create("cam2", address=cluster.address, produce_address=line.address)
        for batch in cameras:
            for item in batch:
                if item.array is not None:
                    camera, frame = read_marks(item.array)
                    assert item.cam_id == f"cam{camera}"
                    seen[item.cam_id].append(frame)
                    cameras.send(item, headers={"frame": frame})
        cameras.flush(20)
    assert seen == {"cam1": list(range(FRAMES)), "cam2": list(range(FRAMES))}
    # The results of the camera that came over the bridge say both where the packet was read and where it is from;
    # bridged themselves, they still do.
    assert bridge(line, cluster, topics=["out_*"], once=True).join()
    for name in ("cam1", "cam2"):
        records = cluster.records(f"out_{name}")
        assert [int(record.header("frame")) for record in records] == list(range(FRAMES))
        assert [json.loads(record.header(HEADER_SOURCE)) for record in records] == [
            [f"raw_{name}", 0, n] for n in range(FRAMES)
        ]
    assert origin_of(records[-1]).topic == "out_cam2"
