"""Starts the unpacked program, unless another user could put another one in its place: then it runs the archive.

The launcher passes this to Python with -c. A shell cannot see whether others can write to a directory, and what is in a
directory cannot be trusted to check it. build/package.py replaces the import by the source of what it names, leaves out
docstrings, and adds the lines of __main__.py that start the program. So Python need not read and compile that file.
"""

from __future__ import annotations

import os
import sys

from eks_token import Refused, check_above

program, *archive = sys.argv[1:]  # and the arguments
try:
    check_above(program)
except (OSError, ValueError, Refused):
    os.execv(sys.executable, [sys.executable, "-I", "-S", *archive])
sys.argv = [program, *archive]
__file__ = program
