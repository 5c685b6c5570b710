"""How good the campaigns are: each planted bug is applied to a copy of the package and hunted by them.

python -m tests.chaos.run_mutants [NAME ...] [--campaigns 2000] [--jobs N] [--json]

A mutant is a file of `mutants/`: what the bug is, in which file of `src/edgewise`, and what is replaced by what. It is
found when a campaign breaks an invariant with it, and none without it; the exit code is 0 if all are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from edgewise.chaos.campaign import draw_campaign
from edgewise.chaos.many_campaigns import run_one

MUTANTS = Path(__file__).parent / "mutants"
SOURCE = Path(__file__).parents[2] / "src"
FIRST_SEED = 100_000
"""The campaigns that hunt are others than those that the product passed every day."""
_HUNT = """
import json, sys
from edgewise.chaos.many_campaigns import run_many
if __name__ == "__main__":
    first, number, jobs = map(int, sys.argv[1:])
    found = run_many(range(first, first + number), jobs=jobs, until_failures=1)
    failed = found.failed[0] if found.failed else None
    print(json.dumps([found.num, failed.seed, failed.broken[0]] if failed else [found.num, None, ""]))
"""


def mutants() -> dict[str, dict]:
    """All of them, by name."""
    return {file.stem: tomllib.loads(file.read_text()) for file in sorted(MUTANTS.glob("*.toml"))}


def mutated(mutant: dict, source: Path = SOURCE) -> str:
    """The text of a mutant's file with the bug in it.

    Raises:
        ValueError: If what is to be replaced does not stand there exactly once.
    """
    text = (source / "edgewise" / mutant["file"]).read_text()
    for edit in mutant["edit"]:
        if (num := text.count(edit["search"])) != 1:
            raise ValueError(f"{mutant['file']} has {num} places of {edit['search']!r}; write the mutant anew.")
        text = text.replace(edit["search"], edit["replace"])
    return text


def hunt(mutant: dict | None, campaigns: int, jobs: int) -> tuple[int, int | None, str]:
    """Runs campaigns against a copy with the bug, until one fails: how many ran, its seed, what it says."""
    with tempfile.TemporaryDirectory(prefix="edgewise-mutant-") as folder:
        copy = Path(folder) / "src"
        shutil.copytree(SOURCE / "edgewise", copy / "edgewise", ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            (copy / "edgewise" / mutant["file"]).write_text(mutated(mutant))
        script = Path(folder) / "hunt.py"
        script.write_text(_HUNT)
        words = [sys.executable, str(script), str(FIRST_SEED), str(campaigns), str(jobs)]
        done = subprocess.run(
            words, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True, check=False
        )
    if done.returncode:
        tail = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return 0, None, f"cannot run: {tail}"
    num, seed, says = json.loads(done.stdout.strip().splitlines()[-1])
    if mutant is not None and seed is not None and (own := run_one(draw_campaign(seed))[1].broken):
        return num, None, f"seed {seed} fails without the bug, too: {own[0]}"
    return num, seed, says


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--campaigns", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    known = mutants()
    if wrong := [name for name in args.names if name not in known]:
        parser.error(f"no mutants {wrong}; there are {sorted(known)}")
    rows = []
    for name in args.names or known:
        start = time.monotonic()
        num, seed, says = hunt(known[name], args.campaigns, args.jobs)
        rows.append({"mutant": name, "campaigns": num, "seed": seed, "says": says, "seconds": time.monotonic() - start})
        if not args.json:
            verdict = f"found after {num:5,} campaigns (seed {seed})" if seed is not None else f"NOT FOUND in {num:,}"
            print(f"{name:32} {verdict:44} {says[:90]}", flush=True)
    found = sum(row["seed"] is not None for row in rows)
    print(json.dumps({"score": [found, len(rows)], "mutants": rows}) if args.json else f"score {found} of {len(rows)}")
    return 0 if found == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
