"""`make fuzz`: bytes that strangers, users or damaged disks may give; exit code 0 if every input was taken or refused.

python -m tests.fuzz                                     # 10,000,000 inputs of every target
python -m tests.fuzz --seconds 60 --seed 7               # cut by time; the same call goes on where it stopped
python -m tests.fuzz --target onnx --inputs 20000
python -m tests.fuzz --replay fuzz-out/onnx.1.658.input  # what one failing input does
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from tests.fuzz.campaign import TARGETS, Campaign
from tests.fuzz.worker import Tally


def main() -> int:
    """Runs a campaign, or one input again."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000_000, help="of all targets together")
    parser.add_argument("--seconds", type=float, default=None, help="cut the campaign after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), default=[], help="only these")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("fuzz-out"), help="failing inputs, and what was done")
    parser.add_argument("--replay", type=Path, default=None, help="a failing input")
    parser.add_argument("--json", action="store_true", help="the result as one JSON line")
    options = parser.parse_args()
    if options.replay is not None:
        return replay(options.replay)
    said = sys.stderr if options.json else sys.stdout
    campaign = Campaign(
        seed=options.seed, num_inputs=options.inputs, folder=options.out, names=options.target,
        workers=options.workers, seconds=options.seconds, progress=lambda line: print(line, file=said, flush=True),
    )  # fmt: skip
    began = time.monotonic()
    campaign.run()
    seconds = time.monotonic() - began
    print_table(campaign, seconds, said)
    if options.json:
        print(json.dumps(as_json(campaign, seconds)))
    return 1 if any(tally.num_failures for tally in campaign.tallies.values()) else 0


def replay(file: Path) -> int:
    """Gives a kept input to its target once more, unguarded: an error shows its whole trace."""
    name = file.name.split(".")[0].replace("-", " ")
    with TARGETS[name].check() as check:
        print(f"{name}: {check(file.read_bytes())}")
    return 0


def print_table(campaign: Campaign, seconds: float, said: object) -> None:
    """Target × inputs × what became of them × time; then each fault with the command that shows it."""
    print(
        f"\n{'target':<20} {'inputs':>10} {'taken':>9} {'refused':>9} {'failed':>7} {'grown MB':>9} {'s':>8}  refusals",
        file=said,
    )  # type: ignore[call-overload]
    for name, tally in campaign.tallies.items():
        refusals = {kind: num for kind, num in tally.outcomes.most_common() if kind[:1].isupper() or kind[:1] == "4"}
        taken = sum(tally.outcomes.values()) - sum(refusals.values())
        words = ", ".join(f"{kind} {num:,}" for kind, num in refusals.items())
        print(
            f"{name:<20} {tally.num:>10,} {taken:>9,} {sum(refusals.values()):>9,} {tally.num_failures:>7,} "
            f"{tally.grown_bytes / 1e6:>9.1f} {tally.seconds:>8.1f}  {words}",
            file=said,
        )  # type: ignore[call-overload]
    print(f"\n{campaign.line(seconds)}{' (cut by time)' if campaign.is_cut else ''}", file=said)  # type: ignore[call-overload]
    for tally in campaign.tallies.values():
        for failure in tally.failures.values():
            times = tally.num_failed[failure.what]
            print(f"\n{failure.target}: {failure.kind}, {times:,} times: {failure.what}: {failure.text}", file=said)  # type: ignore[call-overload]
            print(f"    python -m tests.fuzz --replay {campaign.file_of(failure)}", file=said)  # type: ignore[call-overload]


def as_json(campaign: Campaign, seconds: float) -> dict[str, object]:
    """The result for machines."""

    def row(tally: Tally) -> dict[str, object]:
        return {
            "inputs": tally.num,
            "outcomes": dict(tally.outcomes),
            "failed": dict(tally.num_failed),
            "grown_bytes": tally.grown_bytes,
            "seconds": round(tally.seconds, 3),
        }

    failures = [
        {"target": f.target, "kind": f.kind, "what": f.what, "text": f.text, "file": str(campaign.file_of(f))}
        for tally in campaign.tallies.values()
        for f in tally.failures.values()
    ]
    return {
        "seed": campaign.seed,
        "inputs": sum(tally.num for tally in campaign.tallies.values()),
        "seconds": round(seconds, 1),
        "is_cut": campaign.is_cut,
        "targets": {name: row(tally) for name, tally in campaign.tallies.items()},
        "failures": failures,
    }


if __name__ == "__main__":
    sys.exit(main())
