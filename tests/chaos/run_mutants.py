"""How good the campaigns are: each planted bug is applied to a copy of the package and hunted by them.

python -m tests.chaos.run_mutants [NAME ...] [--campaigns 2000] [--jobs N] [--kept FILE] [--json]

A mutant is a file of `mutants/`: what the bug is, in which file of `src/edgewise`, and what is replaced by what. It is
found when a campaign breaks an invariant with it, and none without it; the exit code is 0 if all are. Campaigns of which a
mutant says that they never reach it are counted and not run: it may name its `protocols`, the `faults` of which one is needed,
and `deadline`. With `--kept`, a line for each mutant goes to that file, and one that is done there is not hunted again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from edgewise.chaos.campaign import CARRIED, Campaign, draw_campaign
from edgewise.chaos.run_campaign import run_campaign

MUTANTS = Path(__file__).parent / "mutants"
FOUND = MUTANTS / "found.json"
"""What `--json` printed last: each mutant with the seed that found it, which is tried first."""
SOURCE = Path(__file__).parents[2] / "src"
FIRST_SEED = 100_000
"""The campaigns that hunt are others than those that the product passed every day."""


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


@dataclass
class Hunter:
    """A process that runs campaigns against a copy of the package with one bug in it.

    Attributes:
        name: Of the mutant.
        folder: Of the copy.
        process: Forked from this one, so that what the package needs is there already.
        found: The seed of a campaign that fails, with a sentence; None when all have run. It is answered by whether to go on.
        start: When it began.
    """

    name: str
    folder: tempfile.TemporaryDirectory[str]
    process: BaseProcess
    found: Connection
    start: float = field(default_factory=time.monotonic)


def seeds_for(mutant: dict, campaigns: int, first: int | None = None) -> list[int]:
    """The seeds of campaigns that may find a mutant, one that once did first."""
    seeds = range(FIRST_SEED, FIRST_SEED + campaigns)
    return sorted((seed for seed in seeds if reaches(mutant, draw_campaign(seed))), key=lambda seed: seed != first)


def begin(name: str, mutant: dict, seeds: Iterable[int]) -> Hunter:
    """Begins to hunt a mutant with campaigns of some seeds."""
    folder = tempfile.TemporaryDirectory(prefix="edgewise-mutant-")
    shutil.copytree(SOURCE / "edgewise", Path(folder.name) / "edgewise")  # with what is compiled of it
    (Path(folder.name) / "edgewise" / mutant["file"]).write_text(mutated(mutant))
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=_hunt, args=(folder.name, seeds, theirs), daemon=True)
    process.start()
    theirs.close()
    return Hunter(name, folder, process, mine)


def _hunt(source: str, seeds: Iterable[int], found: Connection) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "edgewise"]:
        del sys.modules[name]
    sys.path.insert(0, source)
    from edgewise.chaos.campaign import draw_campaign
    from edgewise.chaos.run_campaign import run_campaign

    for seed in seeds:
        if broken := run_campaign(draw_campaign(seed)).broken:
            found.send((seed, broken[0]))
            if not found.recv():
                return
    found.send(None)


def heard(hunter: Hunter, campaigns: int) -> dict | None:
    """What a hunter has to say; None where it goes on, since its campaign fails without the bug, too."""
    row: dict = {"mutant": hunter.name, "campaigns": campaigns, "seed": None, "says": ""}
    try:
        said = hunter.found.recv()
    except EOFError:
        row |= {"campaigns": 0, "says": "cannot run"}
        said = None
    if said is not None:
        seed, says = said
        own = run_campaign(draw_campaign(seed)).broken
        hunter.found.send(bool(own))
        if own:
            print(f"seed {seed} fails without {hunter.name}, too: {own[0]}", file=sys.stderr, flush=True)
            return None
        row |= {"campaigns": seed - FIRST_SEED + 1, "seed": seed, "says": says}
    hunter.process.join()
    hunter.folder.cleanup()
    return row | {"seconds": round(time.monotonic() - hunter.start, 1)}


def hunt(known: Mapping[str, dict], campaigns: int, jobs: int, once: Mapping[str, int | None]) -> Iterator[dict]:
    """Hunts mutants, some at a time, each first by the seed that once found it; yields what comes of each as it is known."""
    left, running = list(known), dict[Connection, Hunter]()
    while left or running:
        while left and len(running) < jobs:
            name = left.pop(0)
            hunter = begin(name, known[name], seeds_for(known[name], campaigns, once.get(name)))
            running[hunter.found] = hunter
        print(f"{len(left)} wait, hunting {', '.join(h.name for h in running.values())}", file=sys.stderr, flush=True)
        for connection in wait(list(running)):
            assert isinstance(connection, Connection)
            if row := heard(running[connection], campaigns):
                del running[connection]
                yield row


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
    rows = kept_rows(args.kept, args.campaigns)
    names = args.names or list(known)
    once = {row["mutant"]: row["seed"] for row in json.loads(FOUND.read_text())["mutants"]} if FOUND.exists() else {}
    rows = {name: rows[name] for name in names if name in rows}
    left = {name: known[name] for name in names if name not in rows}
    for row in itertools.chain(tuple(rows.values()), hunt(left, args.campaigns, args.jobs, once)):
        if row["mutant"] not in rows:
            _keep(args.kept, row)
        rows[row["mutant"]] = row
        if not args.json:
            verdict = f"found by seed {row['seed']}" if row["seed"] is not None else "NOT FOUND"
            print(f"{row['mutant']:32} {row['campaigns']:5,} campaigns, {verdict:22} {row['says'][:90]}", flush=True)
    found = sum(row["seed"] is not None for row in rows.values())
    not_hunted = sorted(set(known) - set(rows))
    score = {"score": [found, len(rows)], "not_hunted": not_hunted, "mutants": [rows[name] for name in names]}
    print(json.dumps(score, indent=1) if args.json else f"score {found} of {len(rows)}")
    return 0 if found == len(rows) else 1


def _keep(file: Path | None, row: dict) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # a seed does the same in every process: names have the same order
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONHASHSEED": "0"})
    sys.exit(main())
