"""Ten lines: a camera in, its pictures as arrays, results out. Runs as it is, and ends when the camera does.

The camera is synthetic and lives in this process; with ``address="shm://"`` it may be any camera of this machine that
``comux publish … --topic raw_cam1`` puts there.
"""

import threading

from comux import Comux
from comux.feeds import publish

camera = ("synthetic://640x360@30?frames=60", "memory://quickstart", "raw_cam1")
threading.Thread(target=publish, args=camera).start()

with Comux(["cam1"], address="memory://quickstart", strict_on_fail=False, start="beginning") as cameras:
    for batch in cameras:
        for cam_id, index, array in batch:
            if array is not None:
                print(cam_id, index, array.shape, array.dtype)
                cameras.send(cam_id, index, {"mean": float(array.mean())})
