"""Runs whole demos, half of them while another process keeps one core busy, and prints the table of their conclusions.

    python -m benchmarks.demos --short            # one calm, one busy, with few requests
    python -m benchmarks.demos                    # ten, five of them busy, each with its own seed
    python -m benchmarks.demos --keep runs        # goes on after the demos that are finished there already

What is promised holds in nine of ten: mean and median predicted within 15 %, the 95th percentile within 25 %, every
exit's share within 5 points; a shared plan gains at least 15 % of the mean, measured, over the best on one node; the
answers to the two other questions differ from it and are the measured best. In ten of ten every request is answered by
its deadline and none is lost.
"""

from __future__ import annotations

import argparse
import math
import os
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
        predicted_ms: Mean, p50 and p95 of the whole stream.
        measured_ms: The same.
        shares: By exit, as (predicted, measured).
        is_short: Whether it was the short one.
        load: Processes that wanted a core at its end, a minute's mean: what else the machine did.
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
    predicted_ms: tuple[float | None, ...] = ()
    measured_ms: tuple[float | None, ...] = ()
    shares: tuple[tuple[float, float], ...] = ()
    is_short: bool = False
    load: float = 0.0

    @property
    def near(self) -> dict[str, bool]:
        """Whether each prediction is as near as promised."""
        errors, points = self.errors or (math.inf,) * len(MOST_OFF), self.share_points
        near = {name: error <= most for (name, most), error in zip(MOST_OFF.items(), errors, strict=True)}
        return {**near, "shares": points is not None and points <= MOST_POINTS}

    @property
    def predicts(self) -> bool:
        """Whether all predictions are."""
        return all(self.near.values())

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
    seconds, load = time.monotonic() - started, os.getloadavg()[0]
    if done.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        failed = lines[-1] if lines else f"code {done.returncode}"
        return DemoRow(seed, busy, seconds, failed=failed, is_short=short, load=load)
    return msgspec.structs.replace(concluded(read_report(folder), seed, busy, seconds), is_short=short, load=load)


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
        predicted_ms=(plan.predicted_mean_ms, plan.predicted_p50_ms, plan.predicted_p95_ms),
        measured_ms=(plan.measured_mean_ms, plan.measured_p50_ms, plan.measured_p95_ms),
        shares=tuple((share.predicted, share.measured) for share in plan.exit_shares),
    )


HEAD = (
    f"  {'seed core':<9} {'s':>4} {'load':>5}  {'mean ms (off)':<20} {'p50 ms (off)':<20} {'p95 ms (off)':<20} "
    f"{'shares off':>10}  {'gain of the mean':<23} {'best':<11} in time"
)


def print_table(rows: Sequence[DemoRow]) -> None:
    """Prints two lines per demo: predicted → measured with the error, and the answers to the three questions."""
    print(HEAD)
    for row in rows:
        core = "busy" if row.busy else "calm"
        begin = f"  {row.seed:>4} {core} {row.seconds:4.0f} {row.load:5.1f}"
        if row.failed:
            print(f"{begin}  failed: {row.failed}", flush=True)
            continue
        times = " ".join(f"{cell:<20}" for cell in _times(row))
        gain = "–" if row.gain is None else "{:+.0%} ({:+.0%} to {:+.0%})".format(*row.gain)
        best = "/".join({True: "yes", False: "no", None: "–"}[b] for b in row.best)
        points = "–" if row.share_points is None else f"{row.share_points:.1f}"
        print(
            f"{begin}  {times} {points:>10}  {gain:<23} {best:<11} {row.in_time}/{row.requests}, {row.lost} lost\n"
            f"{'':11}{row.plan} | {' | '.join(row.others)}; exits "
            f"{', '.join(f'{p:.0%}→{m:.0%}' for p, m in row.shares)}",
            flush=True,
        )


def _times(row: DemoRow) -> Iterator[str]:
    for predicted, measured, error in zip(row.predicted_ms, row.measured_ms, row.errors or (), strict=False):
        yield "–" if predicted is None or measured is None else f"{predicted:.1f}→{measured:.1f} ({error:.0%})"


def print_near(rows: Sequence[DemoRow]) -> None:
    """Prints how many predictions of each kind are near enough, calm and busy apart."""
    for busy in (False, True):
        held = [row.near for row in rows if row.busy is busy]
        counts = ", ".join(f"{name} {sum(near[name] for near in held)}" for name in (*MOST_OFF, "shares"))
        if held:
            print(f"  near enough of {len(held)} with a {'busy' if busy else 'calm'} core: {counts}")


def kept(file: Path) -> dict[tuple[int, bool, bool], DemoRow]:
    """The finished demos of a file, by seed, core and length; one that failed is run again."""
    lines = file.read_bytes().splitlines() if file.exists() else []
    rows = [msgspec.json.decode(line, type=DemoRow) for line in lines]
    return {(row.seed, row.busy, row.is_short): row for row in rows if not row.failed}


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
    parser.add_argument(
        "--keep", type=Path, help="keep reports, logs and conclusions in this folder, and go on with what is there"
    )
    asked = parser.parse_args()
    num = asked.demos or (2 if asked.short else 10)
    busy = num // 2 if asked.busy < 0 else min(asked.busy, num)
    rows: list[DemoRow] = []
    with tempfile.TemporaryDirectory(prefix="edgewise-demos-") as scratch:
        folder = asked.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        finished = kept(folder / "demos.jsonl")
        for seed in range(num):
            is_busy = seed % 2 == 1 if busy == num // 2 else seed < busy
            row = finished.get((seed, is_busy, asked.short))
            state = "finished before" if row is not None else f"begins at {time.strftime('%H:%M:%S')}"
            print(f"demo {seed + 1} of {num}, seed {seed}, a {'busy' if is_busy else 'calm'} core: {state}", flush=True)
            if row is None:
                row = run_once(seed, is_busy, asked.short, folder / str(seed))
                with (folder / "demos.jsonl").open("ab") as file:
                    file.write(msgspec.json.encode(row) + b"\n")
                print_table([row])
            rows.append(row)
    print_table(rows)
    print_near(rows)
    figures: dict[str, Any] = {"demos": [msgspec.to_builtins(row) for row in rows]}
    close("demos", figures, bars_of(rows))


if __name__ == "__main__":
    main()
