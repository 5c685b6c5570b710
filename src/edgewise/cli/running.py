"""How a verb's work runs and ends: ctrl-C or SIGTERM cancels it once, and it has a few seconds to clean up."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from edgewise.cli.threads import few_arenas, one_thread
from edgewise.core.process import INTERRUPTED, end_in_time

T = TypeVar("T")
STOP_S = 4.5
"""Longest an interrupted verb may take to clean up."""


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Runs a verb's work on one thread per library, before numpy is asked for more.

    The first ctrl-C or SIGTERM cancels the work; more of them while it cleans up change nothing, so that impatience leaves
    no process behind. What still holds it after `STOP_S`, e.g. a thread in a user's task, is not waited for.

    Args:
        work: What to run; it may handle these signals itself, as a node does.

    Returns:
        What it returns.

    Raises:
        KeyboardInterrupt: If it was cancelled so.
    """
    one_thread()
    few_arenas()
    interrupted = False

    async def watched() -> T:
        task = asyncio.ensure_future(work)

        def stop() -> None:
            nonlocal interrupted
            if not interrupted:
                interrupted = True
                end_in_time(STOP_S, INTERRUPTED)
                task.cancel()

        if threading.current_thread() is threading.main_thread():  # no other hears signals
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, stop)
        return await task

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        if not interrupted:
            raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # on its way out; the loop has given the signal back
        raise KeyboardInterrupt from None
