"""How good the campaigns are: each planted bug is applied to a copy of the package and hunted by them.

python -m tests.chaos.run_mutants [NAME ...] [--campaigns 2000] [--jobs N] [--kept FILE] [--json]

A mutant is a file of `mutants/`: what the bug is, in which file of `src/edgewise`, and what is replaced by what. It is
found when a campaign breaks an invariant with it, and none without it; the exit code is 0 if all are. Campaigns of which a
mutant says that they never reach it are counted and not run: it may name its `protocols`, the `faults` of which one is needed,
and `deadline`. With `--kept`, a line for each mutant goes to that file, and one that is done there is not hunted again.
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

from edgewise.chaos.campaign import CARRIED, Campaign, draw_campaign
from edgewise.chaos.many_campaigns import run_one

MUTANTS = Path(__file__).parent / "mutants"
SOURCE = Path(__file__).parents[2] / "src"
FIRST_SEED = 100_000
"""The campaigns that hunt are others than those that the product passed every day."""
_HUNT = """
import json, sys
from edgewise.chaos.many_campaigns import run_many
if __name__ == "__main__":
    ran = []
    found = run_many(json.load(sys.stdin), jobs=int(sys.argv[1]), until_failures=1, on_report=lambda r: ran.append(r.seed))
    print(json.dumps([ran, [[report.seed, report.broken[0]] for report in found.failed]]))
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


def reaches(mutant: dict, campaign: Campaign) -> bool:
    """Whether a campaign can reach the bug, as far as its mutant says."""
    kinds = {fault.kind for fault in campaign.faults}
    return (
        campaign.protocol["name"] in mutant.get("protocols", CARRIED)
        and ("faults" not in mutant or not kinds.isdisjoint(mutant["faults"]))
        and (campaign.deadline_s is not None or not mutant.get("deadline", False))
    )


def hunt(mutant: dict, campaigns: int, jobs: int) -> tuple[int, int | None, str]:
    """Runs campaigns against a copy with the bug until one fails: how many there are up to it, its seed, what it says."""
    seeds = [seed for seed in range(FIRST_SEED, FIRST_SEED + campaigns) if reaches(mutant, draw_campaign(seed))]
    with tempfile.TemporaryDirectory(prefix="edgewise-mutant-") as folder:
        copy = Path(folder) / "src"
        shutil.copytree(SOURCE / "edgewise", copy / "edgewise", ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "edgewise" / mutant["file"]).write_text(mutated(mutant))
        (Path(folder) / "hunt.py").write_text(_HUNT)
        while seeds:
            done = subprocess.run(
                [sys.executable, str(Path(folder) / "hunt.py"), str(jobs)],
                input=json.dumps(seeds),
                env={**os.environ, "PYTHONPATH": str(copy)},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                return 0, None, f"cannot run: {(done.stderr.strip().splitlines() or ['no word'])[-1]}"
            ran, failed = json.loads(done.stdout.strip().splitlines()[-1])
            seeds = [seed for seed in seeds if seed not in set(ran)]
            for seed, says in sorted(failed):
                if not (own := run_one(draw_campaign(seed))[1].broken):
                    return seed - FIRST_SEED + 1, seed, says
                print(f"seed {seed} fails without the bug, too: {own[0]}", file=sys.stderr)
    return campaigns, None, ""


def kept_rows(file: Path | None, campaigns: int) -> dict[str, dict]:
    """Mutants that are done by a file's lines: found, or not by so many campaigns."""
    lines = file.read_text().splitlines() if file is not None and file.exists() else []
    rows = map(json.loads, lines)
    return {row["mutant"]: row for row in rows if row["seed"] is not None or row["campaigns"] >= campaigns}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--campaigns", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kept", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    known = mutants()
    if wrong := [name for name in args.names if name not in known]:
        parser.error(f"no mutants {wrong}; there are {sorted(known)}")
    kept = kept_rows(args.kept, args.campaigns)
    rows = []
    for place, name in enumerate(args.names or known):
        if name in kept:
            row = kept[name]
        else:
            print(f"{place + 1} of {len(args.names or known)}: {name} ...", file=sys.stderr, flush=True)
            start = time.monotonic()
            num, seed, says = hunt(known[name], args.campaigns, args.jobs)
            row = {"mutant": name, "campaigns": num, "seed": seed, "says": says}
            row["seconds"] = round(time.monotonic() - start, 1)
            _keep(args.kept, row)
        rows.append(row)
        if not args.json:
            verdict = f"found by seed {row['seed']}" if row["seed"] is not None else "NOT FOUND"
            print(f"{name:32} {row['campaigns']:5,} campaigns, {verdict:22} {row['says'][:90]}", flush=True)
    found = sum(row["seed"] is not None for row in rows)
    score = {"score": [found, len(rows)], "mutants": rows}
    print(json.dumps(score, indent=1) if args.json else f"score {found} of {len(rows)}")
    return 0 if found == len(rows) else 1


def _keep(file: Path | None, row: dict) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    sys.exit(main())
