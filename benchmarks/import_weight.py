"""What `import edgewise` and `edgewise --help` cost above the bare interpreter: python -m benchmarks.import_weight

Starts each program in turn, interleaved with an interpreter that does nothing, and compares medians.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from benchmarks.report import Bar, close, print_row, spread

LIMIT_S = 0.3
PROGRAMS = {
    "bare interpreter": "pass",
    "import edgewise": "import edgewise",
    "edgewise --help": "from edgewise.cli.main import run; run(['--help'])",
}
HEAVY = ("torch", "scipy", "litestar", "onnxruntime", "zenoh", "matplotlib", "sqlalchemy", "igraph")


def seconds_of(code: str) -> float:
    """Wall seconds of one interpreter that runs `code`."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def heavy_after(code: str) -> list[str]:
    """Heavy packages that `code` imports."""
    script = f"import sys\n{code}\nprint('\\n' + ' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1].split()


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="9 repetitions instead of 31")
    parser.add_argument("--json", action="store_true", help="only the closing JSON line")
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for name in PROGRAMS:
        seconds_of(PROGRAMS[name])  # the first start reads the disk
    for _ in range(9 if args.short else 31):
        for name, code in PROGRAMS.items():
            times[name].append(seconds_of(code))
    bare = spread(times["bare interpreter"]).median
    above = {name: spread(values).median - bare for name, values in times.items()}
    heavy = {name: heavy_after(code) for name, code in PROGRAMS.items()}
    if not args.json:
        for name, values in times.items():
            print_row(name, values, "s")
    bars = [
        Bar(f"{name}, above the interpreter", f"<= {LIMIT_S} s", round(above[name], 4), above[name] <= LIMIT_S)
        for name in list(PROGRAMS)[1:]
    ]
    bars.append(Bar("heavy packages imported", "none", heavy, not any(heavy.values())))
    close("import_weight", {"above_s": above, "times_s": {n: spread(v) for n, v in times.items()}}, bars)


if __name__ == "__main__":
    main()
