"""Tunes garbage collection of a long-lived process and bounds the time of its shutdown."""

from __future__ import annotations

import gc
import os
import threading

_YOUNG = 10_000


def end_in_time(seconds: float, code: int) -> None:
    """Ends this process after a delay, because a thread in a user's task cannot be interrupted.

    Args:
        seconds: Until then it may end by itself.
        code: Exit code.
    """
    last = threading.Timer(seconds, os._exit, args=(code,))
    last.daemon = True
    last.start()


def keep_for_good() -> None:
    """Excludes all existing objects from garbage collection; called once a process is ready to serve.

    A full collection walks all objects of all imported libraries: with torch 90 ms, in which no request is answered,
    longer than many a deadline. What is kept so is never freed by a collection, so call it where little is garbage.
    Young objects are looked through less often, too: a request makes hundreds, and hardly a circle.
    """
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
