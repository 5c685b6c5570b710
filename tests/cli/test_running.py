"""How a verb ends on ctrl-C: cancelled once, cleaned up, in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import asyncio, sys, time
from edgewise.cli import running

running.STOP_S = float(sys.argv[1])

async def work():
    print("begun", flush=True)
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(float(sys.argv[2]))
        print("clean", flush=True)

try:
    running.run_async(work())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def interrupted(limit_s: float, cleanup_s: float, *signals: signal.Signals) -> tuple[int, str]:
    """Signals a verb's process; its exit code, and what it said after it had begun."""
    command = [sys.executable, "-c", SCRIPT, str(limit_s), str(cleanup_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        for number in signals:
            process.send_signal(number)
            time.sleep(0.05)
        return process.wait(20), process.stdout.read()


@pytest.mark.parametrize(
    "signals", [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT,) * 3, (signal.SIGINT, signal.SIGTERM)]
)
def test_it_is_cancelled_once_and_cleans_up(signals: tuple[signal.Signals, ...]) -> None:
    assert interrupted(15.0, 0.5, *signals) == (0, "clean\ninterrupted\n")


def test_a_cleanup_without_end_is_cut_off() -> None:
    assert interrupted(0.3, 60.0, signal.SIGINT) == (130, "")


LATE = """
import atexit, os, signal
from edgewise.core.process import leave
for number in (signal.SIGINT, signal.SIGTERM):
    atexit.register(os.kill, os.getpid(), number)
leave({code}, at_once=130)
"""


@pytest.mark.parametrize("code", [0, 3, 130])
def test_a_signal_while_it_leaves_changes_nothing(code: int) -> None:
    done = subprocess.run([sys.executable, "-c", LATE.format(code=code)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, "")


EARLY = """
import sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == "edgewise.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
from edgewise.__main__ import main
main()
"""


def test_an_interrupt_among_the_imports_is_a_sentence() -> None:
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "error [interrupted]: interrupted; nothing was begun.\n")


@pytest.mark.skipif(sys.platform != "linux", reason="pools of threads are glibc's")
@pytest.mark.parametrize(("call", "most_mb"), [("few_arenas()", 250), ("pass", 100_000)])
def test_threads_share_few_pools_of_memory(call: str, most_mb: int) -> None:
    """Each pool takes 64 MiB of addresses, each thread's stack 8."""
    program = (
        "import threading\n"
        "from edgewise.cli.threads import few_arenas\n"
        f"{call}\n"
        "size = lambda: int(open('/proc/self/statm').read().split()[0]) * 4096 // 2**20\n"
        "before, gate, kept = size(), threading.Barrier(13), []\n"
        "def work():\n"
        "    kept.append(bytearray(60_000))\n"
        "    gate.wait(60)\n"
        "    gate.wait(60)\n"
        "for _ in range(12): threading.Thread(target=work).start()\n"
        "gate.wait(60); print(size() - before); gate.wait(60)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) <= most_mb
    assert call != "pass" or int(done.stdout) > 250  # else this test could not fail
