"""Tunes garbage collection of a long-lived process and bounds the time of its shutdown."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import NoReturn

_YOUNG = 10_000
INTERRUPTED = 130
"""Exit code of what ctrl-C or SIGTERM ended."""


def end_in_time(seconds: float, code: int) -> None:
    """Ends this process after a delay, because a thread in a user's task cannot be interrupted.

    Args:
        seconds: Until then it may end by itself.
        code: Exit code.
    """
    last = threading.Timer(seconds, os._exit, args=(code,))
    last.daemon = True
    last.start()


def leave(code: int, *, at_once: int) -> NoReturn:
    """Ends this process with an exit code; a signal that comes meanwhile changes nothing any more.

    While an interpreter ends, a signal would kill it, and libraries with threads of their own may abort it where they were
    interrupted. So signals are ignored from here on, and after an interrupt nothing but the output is waited for.

    Args:
        code: Exit code.
        at_once: The code with which the interpreter is not ended step by step.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    if code == at_once:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def begin_anew(told: Mapping[str, str]) -> NoReturn:
    """Replaces this process by a new one of the same number, command line and standard streams, as if it had been killed.

    Nothing is closed in order: what is open is let go of by the system, and what must last is on the disk already.

    Args:
        told: Environment variables that the new one finds beside those of this one.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **told})


def keep_for_good() -> None:
    """Excludes all existing objects from garbage collection; called once a process is ready to serve.

    A full collection walks all objects of all imported libraries: with torch 90 ms, in which no request is answered,
    longer than many a deadline. What is kept so is never freed by a collection, so call it where little is garbage.
    Young objects are looked through less often, too: a request makes hundreds, and hardly a circle.
    """
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])


def give_memory_back() -> None:
    """Hands what the C allocator holds without need back to the machine, where it can (glibc); call it off an event loop.

    After a request of many megabytes the allocator keeps their pages: it cannot know that no second one comes.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
