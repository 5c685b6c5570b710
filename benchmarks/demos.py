"""Runs whole demos, half of them while another process keeps one core busy, and prints the table of their conclusions.

    python -m benchmarks.demos --short            # one calm, one busy, with few requests
    python -m benchmarks.demos                    # ten, five of them busy, each with its own seed

What is promised holds in nine of ten: mean and median predicted within 15 %, the 95th percentile within 25 %, every
exit's share within 5 points; a shared plan gains at least 15 % of the mean, measured, over the best on one node; the
answers to the two other questions differ from it and are the measured best. In ten of ten every request is answered by
its deadline and none is lost.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.report import Bar, close
from edgewise.service.report import Report, read_report

MOST_OFF = {"mean": 0.15, "p50": 0.15, "p95": 0.25}
MOST_POINTS = 5.0
LEAST_GAIN = 0.15
LONGEST_S = 900.0
_SPIN = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(100_000))\n"


class DemoRow(msgspec.Struct, frozen=True):
    """What one demo concluded.

    Attributes:
        seed: Its seed.
        busy: Whether another process kept a core busy.
        seconds: How long it took.
        plan: What it recommends.
        others: What it recommends without a policy, and with the slow link.
        gain: Measured gain of the mean over the best other way, with its interval.
        errors: |predicted − measured| / measured of mean, p50 and p95.
        share_points: Largest error of an exit's share, in percentage points.
        best: Whether each of the three answers is the measured best of what its policy allows.
        in_time: Requests answered by their deadline during the faults.
        requests: Of so many.
        lost: Never answered.
        failed: Why it gave no report; empty if it did.
    """

    seed: int
    busy: bool
    seconds: float
    plan: str = ""
    others: tuple[str, ...] = ()
    gain: tuple[float, float, float] | None = None
    errors: tuple[float, float, float] | None = None
    share_points: float | None = None
    best: tuple[bool | None, ...] = ()
    in_time: int = 0
    requests: int = 0
    lost: int = 0
    failed: str = ""

    @property
    def predicts(self) -> bool:
        """Whether the prediction is as near as promised."""
        errors, points = self.errors, self.share_points
        return (
            errors is not None
            and points is not None
            and points <= MOST_POINTS
            and all(error <= most for error, most in zip(errors, MOST_OFF.values(), strict=True))
        )

    @property
    def gains(self) -> bool:
        """Whether a shared plan gained what is promised."""
        return self.gain is not None and self.gain[0] >= LEAST_GAIN

    @property
    def answers(self) -> bool:
        """Whether the two other answers differ from the first, and all three are the measured best."""
        return len(self.others) == 2 and self.plan not in self.others and self.best == (True, True, True)

    @property
    def keeps(self) -> bool:
        """Whether every request was answered by its deadline."""
        return not self.failed and self.lost == 0 and self.in_time == self.requests > 0


@contextmanager
def busy_core() -> Iterator[None]:
    """Keeps one core busy, in a process that ends with this one."""
    import os

    spinning = subprocess.Popen([sys.executable, "-c", _SPIN, str(os.getpid())])
    try:
        yield
    finally:
        spinning.kill()
        spinning.wait()


def run_once(seed: int, busy: bool, short: bool, folder: Path) -> DemoRow:
    """One demo in a process of its own.

    Args:
        seed: Its seed.
        busy: Whether a core is kept busy meanwhile.
        short: Whether it is the short one.
        folder: Where its report goes.

    Returns:
        Its conclusions.
    """
    words = [sys.executable, "-m", "edgewise", "demo", "--seed", str(seed), "--report", str(folder)]
    started = time.monotonic()
    log = folder.with_suffix(".log")
    with log.open("wb") as out, busy_core() if busy else _nothing():
        done = subprocess.run(
            [*words, *(["--short"] if short else [])], stdout=out, stderr=subprocess.STDOUT, timeout=LONGEST_S
        )
    seconds = time.monotonic() - started
    if done.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return DemoRow(seed, busy, seconds, failed=lines[-1] if lines else f"code {done.returncode}")
    return concluded(read_report(folder), seed, busy, seconds)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def concluded(report: Report, seed: int, busy: bool, seconds: float) -> DemoRow:
    """The conclusions of a report.

    Args:
        report: As written.
        seed: Of the demo.
        busy: Whether a core was kept busy.
        seconds: How long it took.

    Returns:
        The row.
    """
    plan, faults = report.plan, report.faults
    errors = (plan.mean_error_fraction, plan.p50_error_fraction, plan.p95_error_fraction)
    return DemoRow(
        seed,
        busy,
        seconds,
        plan.name,
        tuple(answer.plan for answer in report.answers[1:]),
        plan.gain_mean,
        None if None in errors else msgspec.convert(errors, tuple[float, float, float]),
        plan.share_error_points,
        tuple(answer.is_measured_best for answer in report.answers),
        faults.answered_by_deadline or 0,
        faults.requests or 0,
        faults.lost or 0,
    )


def print_table(rows: Sequence[DemoRow]) -> None:
    """Prints a line per demo."""
    print("  seed core  seconds  mean  p50  p95  shares  gain of the mean        best      in time  plan | others")
    for row in rows:
        core = "busy" if row.busy else "calm"
        if row.failed:
            print(f"  {row.seed:>4} {core} {row.seconds:8.0f}  failed: {row.failed}")
            continue
        off = " ".join(f"{e:4.0%}" for e in row.errors or ())
        gain = "–" if row.gain is None else "{:+.0%} ({:+.0%} to {:+.0%})".format(*row.gain)
        best = "/".join({True: "yes", False: "no", None: "–"}[b] for b in row.best)
        points = "–" if row.share_points is None else f"{row.share_points:.1f}"
        print(
            f"  {row.seed:>4} {core} {row.seconds:8.0f}  {off}  {points:>6}  {gain:<22}  {best:<9} "
            f"{row.in_time}/{row.requests}, {row.lost} lost  {row.plan} | {' | '.join(row.others)}",
            flush=True,
        )


def bars_of(rows: Sequence[DemoRow]) -> list[Bar]:
    """What is promised of so many demos: nine of ten, and in all of them nothing lost or late."""
    num = len(rows)
    most = num - num // 10
    counted = {
        "predictions within 15 % (mean, p50), 25 % (p95), 5 points (shares)": sum(r.predicts for r in rows),
        "a shared plan gains >= 15 % of the mean, measured": sum(r.gains for r in rows),
        "the other answers differ, and all are the measured best": sum(r.answers for r in rows),
    }
    bars = [Bar(what, f">= {most} of {num}", found, found >= most) for what, found in counted.items()]
    kept = sum(r.keeps for r in rows)
    return [*bars, Bar("every request answered by its deadline, none lost", f"{num} of {num}", kept, kept == num)]


def main() -> None:
    """Runs them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="two short demos, one of them busy")
    parser.add_argument("--demos", type=int, default=0, help="how many; default 10, or 2 with --short")
    parser.add_argument("--busy", type=int, default=-1, help="how many of them with a busy core; default: half")
    parser.add_argument("--keep", type=Path, help="keep reports and logs in this folder")
    asked = parser.parse_args()
    num = asked.demos or (2 if asked.short else 10)
    busy = num // 2 if asked.busy < 0 else min(asked.busy, num)
    rows: list[DemoRow] = []
    with tempfile.TemporaryDirectory(prefix="edgewise-demos-") as scratch:
        folder = asked.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(num):
            rows.append(
                run_once(seed, seed % 2 == 1 if busy == num // 2 else seed < busy, asked.short, folder / str(seed))
            )
            print_table(rows[-1:])
    print_table(rows)
    figures: dict[str, Any] = {"demos": [msgspec.to_builtins(row) for row in rows]}
    close("demos", figures, bars_of(rows))


if __name__ == "__main__":
    main()
