"""What the tests of measuring share."""

from __future__ import annotations

import pytest

from comux.planning.measure import Effort


@pytest.fixture
def effort() -> Effort:
    """The least that gives costs at all."""
    points = ((128, 72, 100_000), (320, 180, 300_000), (640, 360, 1_000_000))
    return Effort(seconds=0.7, warm_up=0.1, rounds=1, points=points, cameras=(16, 4), modes=("freshest",), quick=True)
