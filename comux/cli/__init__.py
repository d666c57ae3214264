"""The command line: what people type, and the demo.

Lives here: ``main`` (commands, options, exit codes), ``publish`` and ``topics`` (one command each), and the demo:
``demo`` (orchestration), ``publishers`` (its child processes), ``demo_reader`` (the process that reads the results
back), ``motion`` (its small computation), ``demo_view`` (tables and lines), ``contact_sheet`` (the picture it saves).
May import: every room, and typer, rich and PIL, which nothing else may. Must never know: how engines and codecs work.

Only this room prints. Heavy imports stand inside the commands, so that ``comux --help`` is quick.
"""

from __future__ import annotations
