"""What is kept of campaigns against real processes: a line each, small enough to be committed, and where to go on."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import msgspec

from edgewise import __version__
from edgewise.chaos.live.live_schedule import draw
from edgewise.core.files import write_atomic

LOGS = "its logs are in "
LONG_S = 60.0
"""A campaign is to take no longer, on a machine that has two cores for it."""


class LiveResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a campaign ended.

    Attributes:
        seed: What was done is drawn from it.
        commit: It ran on; a version where the package lies in no repository, "+" where files had changed.
        run: Kind of the run.
        num_rounds: Of the run.
        ended: The run's state.
        beside: What the operator did meanwhile.
        did: What came of that.
        num_faults: How many things failed.
        requests: Number by outcome.
        seconds: What it took.
        broken: Invariants that did not hold, with what was seen; () where all did.
    """

    seed: int
    commit: str
    run: str
    num_rounds: int
    ended: str
    beside: str
    did: str = ""
    num_faults: int
    requests: dict[str, int] = {}
    seconds: float = 0.0
    broken: tuple[str, ...] = ()


def code_ran() -> str:
    """The commit of this package, or its version; "+" says that files differ from it."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=30).stdout

    try:
        commit, changed = git("rev-parse", "--short", "HEAD").strip(), git("status", "--porcelain", "--", "../..")
        return f"{commit}+" if changed.strip() else commit
    except (OSError, subprocess.SubprocessError):
        return __version__


def read_results(path: Path) -> dict[int, LiveResult]:
    """Results by seed; of a seed that was run again the last.

    Args:
        path: A file with a line each; it may not exist.

    Returns:
        Them.
    """
    if not path.exists():
        return {}
    rows = (msgspec.json.decode(line, type=LiveResult) for line in path.read_text().splitlines() if line.strip())
    return {row.seed: row for row in rows}


def add_result(path: Path, result: LiveResult) -> None:
    """Puts a result into a file, in the order of seeds, in place of a former one of its seed."""
    told = tuple(line for line in result.broken if not line.startswith(LOGS))  # a folder here says nothing elsewhere
    rows = read_results(path) | {result.seed: msgspec.structs.replace(result, broken=told)}
    lines = (msgspec.json.encode(rows[seed]).decode() + "\n" for seed in sorted(rows))
    write_atomic(path, "".join(lines).encode())


def shown(result: LiveResult) -> Iterable[str]:
    """A result as lines for people."""
    held = "held" if not result.broken else "BROKEN"
    asked = ", ".join(f"{n} {outcome}" for outcome, n in result.requests.items())
    did = f" ({result.did})" if result.did else ""
    yield (
        f"seed {result.seed}: {held} in {result.seconds:.0f} s; {result.run}, {result.num_rounds} rounds "
        f"{result.ended}; {result.beside}{did}; {asked}"
    )
    if result.broken:
        yield from (f"    fault  {fault}" for fault in draw(result.seed).faults)
        yield from (f"    broken {line}" for line in result.broken)
        yield f"    again  edgewise chaos --live --seed {result.seed}"


def summed_up(results: Sequence[LiveResult]) -> Iterable[str]:
    """Results together, as lines for people."""
    num_broken = sum(bool(result.broken) for result in results)
    took = [result.seconds for result in results] or [0.0]
    num_long = sum(seconds > LONG_S for seconds in took)
    commits = ", ".join(f"{num} on {commit}" for commit, num in Counter(r.commit for r in results).most_common())
    requests = sum((Counter(result.requests) for result in results), Counter[str]())
    asked = ", ".join(f"{num:,} {outcome}" for outcome, num in requests.most_common())
    yield (
        f"{len(results)} campaigns of real processes in {sum(took):,.0f} s, half of them in {median(took):.0f} s or less, "
        f"{num_long} in more than {LONG_S:.0f} s, {num_broken} with a broken invariant; {commits}"
    )
    yield f"requests: {asked}"
    for what, words in (("beside", (r.beside for r in results)), ("runs", (f"{r.run} {r.ended}" for r in results))):
        yield f"{what}: " + ", ".join(f"{num} {word}" for word, num in Counter(words).most_common())
