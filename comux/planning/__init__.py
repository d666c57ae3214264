"""How much hardware: from measured costs to cores, machines, memory, networks and brokers for so many cameras.

Lives here: what is asked for (``demand``), the costs (``costs``, with those measured for the documentation built in),
the arithmetic (``estimate``), all three pure; and what measures the costs on this machine: ``clips`` (video to measure
with), ``decoding`` (codecs and conversion alone), ``child`` (the loop, the cameras and members of a group as processes
of their own), ``measure`` (all of it in rounds) and ``check`` (the arithmetic beside a real run).
May import: every room below. Must never know: how any of it is printed.
"""

from __future__ import annotations
