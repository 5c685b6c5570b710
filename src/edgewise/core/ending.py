"""How a process ends that was told to."""

from __future__ import annotations

import os
import threading


def end_in_time(seconds: float, code: int) -> None:
    """Ends this process after a while, whatever it still waits for: a thread in a user's task cannot be interrupted.

    Args:
        seconds: Until then it may end by itself.
        code: Exit code.
    """
    last = threading.Timer(seconds, os._exit, args=(code,))
    last.daemon = True
    last.start()
