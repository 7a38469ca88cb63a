"""Starts vLLM so that it never outlives who supervises it; run with vLLM's Python.

    python -P launch.py PARENT COMMAND ARGUMENTS…

On Linux the kernel tells this process when its parent dies, however that dies, and vLLM ends its own processes when it
is told to end. Elsewhere only a supervisor that ends in order takes vLLM with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the kernel was asked
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
