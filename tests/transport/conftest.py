"""Helpers of the transport tests."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("comux.testing")
