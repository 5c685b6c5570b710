"""What a long-lived process does about its memory, and how one ends that was told to."""

from __future__ import annotations

import gc
import os
import threading

_YOUNG = 10_000


def end_in_time(seconds: float, code: int) -> None:
    """Ends this process after a while, whatever it still waits for: a thread in a user's task cannot be interrupted.

    Args:
        seconds: Until then it may end by itself.
        code: Exit code.
    """
    last = threading.Timer(seconds, os._exit, args=(code,))
    last.daemon = True
    last.start()


def keep_for_good() -> None:
    """Takes everything that exists now out of garbage collection; called whenever a process has what it needs to serve.

    A full collection walks all objects of all imported libraries: with torch 90 ms, in which no request is answered,
    longer than many a deadline. What is kept so is never freed by a collection, so call it where little is garbage.
    Young objects are looked through less often, too: a request makes hundreds, and hardly a circle.
    """
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
