"""Another version beside this one, benchmark by benchmark: python -m benchmarks.against ../old simulate_small --runs 7

Runs the benchmark's short form in the other worktree and in this one, in turns, each in processes of its own, and prints
for each figure the ratio this / other with its 95 % confidence interval over the pairs. A ratio is good when its interval
reaches to the good side of 1: below for seconds and bytes, above for rates. Make a worktree with
`git worktree add ../old v0.1.0`; both run with the packages of this environment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
RATES = ("per_s", "per_cpu_s", "accuracy", "share", "ratio", "bytes_per_s")
"""How the names of figures end of which more is better."""


def figures_of(tree: Path, benchmark: str, arguments: list[str]) -> dict[str, float]:
    """Runs a benchmark in a worktree.

    Args:
        tree: Root of the worktree.
        benchmark: Module in its `benchmarks/`.
        arguments: Of the benchmark.

    Returns:
        Medians by dotted name.
    """
    environment = {**os.environ, **THREADS, "PYTHONPATH": str(tree / "src")}
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{benchmark}", *arguments],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    last = done.stdout.strip().splitlines()[-1:] or [""]
    if not last[0].startswith("{"):
        raise SystemExit(f"{benchmark} in {tree} printed no figures:\n{done.stdout[-500:]}{done.stderr[-1500:]}")
    return dict(_flat(json.loads(last[0])["figures"], ""))


def _flat(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        if "median" in value:
            yield name, float(value["median"])
            return
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Geometric mean of ratios and its 95 % confidence interval.

    Args:
        ratios: Of the pairs, above 0; at least two.

    Returns:
        Mean, low, high.
    """
    from scipy.stats import t

    logs = [log(ratio) for ratio in ratios]
    mean = sum(logs) / len(logs)
    deviation = sqrt(sum((value - mean) ** 2 for value in logs) / (len(logs) - 1))
    reach = float(t.ppf(0.975, len(logs) - 1)) * deviation / sqrt(len(logs))
    return exp(mean), exp(mean - reach), exp(mean + reach)


def main() -> int:
    """Compares; exit code 1 if a figure is worse with 95 % confidence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="a worktree of the other version")
    parser.add_argument("benchmarks", nargs="+", help="modules in benchmarks/")
    parser.add_argument("--runs", type=int, default=5, help="pairs of each benchmark")
    parser.add_argument("--long", action="store_true", help="the long form")
    given = parser.parse_args()
    if given.runs < 2:
        parser.error(f"--runs {given.runs}: one pair has no interval. Take 2 at least, better 5.")
    arguments, worse, found = [] if given.long else ["--short"], [], {}
    for benchmark in given.benchmarks:
        pairs = []
        for number in range(given.runs):
            print(f"{benchmark} {number + 1}/{given.runs}", file=sys.stderr, flush=True)
            pairs.append([figures_of(tree, benchmark, arguments) for tree in (given.other.resolve(), ROOT)])
        names = [n for n in pairs[0][0] if all(n in side and side[n] > 0 for pair in pairs for side in pair)]
        for name in names:
            mean, low, high = interval([new[name] / old[name] for old, new in pairs])
            more_is_better = name.endswith(RATES)
            is_worse = high < 0.99 if more_is_better else low > 1.01
            found[f"{benchmark}.{name}"] = {"ratio": mean, "low": low, "high": high, "is_worse": is_worse}
            mark = "worse" if is_worse else "ok"
            print(f"  {benchmark}.{name:44s} {mean:7.3f} [{low:.3f} … {high:.3f}]  {mark}", flush=True)
            worse += [name] if is_worse else []
    print(json.dumps({"benchmark": "against", "runs": given.runs, "figures": found}))
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
