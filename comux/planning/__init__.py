"""How much hardware: from measured costs to cores, machines, memory, networks and brokers for so many cameras.

Lives here: what is asked for (``demand``), the costs (``costs``, with those measured for the documentation built in)
the arithmetic (``needs``, ``estimate``, ``figures``), all of it pure; the size calculator of local topics
(``shared_memory``); and what measures the costs on this machine:
``clips`` (video to measure with), ``decoding`` (codecs and conversion alone), ``child`` (cameras, loops and members of
a group as processes of their own), ``server`` (a broker on this machine), ``loops`` (one run), ``groups``, ``measure``
(all of it, in rounds) and ``check`` (the arithmetic beside a real run).
May import: every room below. Must never know: how any of it is printed.
"""

from __future__ import annotations
