"""The two C extensions; everything else is declared in pyproject.toml."""

import os
import sys
from glob import glob

from setuptools import Extension, setup

STRICT = ["-Wall", "-Wextra", "-Werror"] if os.environ.get("COMUX_C_STRICT") else []
FLAGS = ["-std=gnu11", "-O3", "-fno-strict-aliasing", "-fvisibility=hidden", *STRICT]
FAILPOINTS = [("COMUX_FAILPOINTS", "1")]

extensions = []
if sys.platform.startswith("linux"):
    ring = sorted(glob("comux/ring/_core/*.c"))
    if ring:
        common = {"depends": glob("comux/ring/_core/*.h"), "extra_compile_args": FLAGS}
        extensions.append(Extension("comux.ring._ring", ring, **common))
        # The same sources with the crash points compiled in: what the crash tests load, never a user.
        extensions.append(Extension("comux.ring._ring_failpoints", ring, define_macros=FAILPOINTS, **common))
convert = sorted(glob("comux/decoders/_kernel/*.c"))
if convert:
    extensions.append(
        Extension(
            "comux.decoders._convert",
            convert,
            depends=glob("comux/decoders/_kernel/*.h"),
            extra_compile_args=FLAGS,
        )
    )

setup(ext_modules=extensions)
