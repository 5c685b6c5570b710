"""Drift monitors on recorded stage outputs, without a fleet: python -m benchmarks.drift [--short] [--json] [--processes N]

*Harm*: labels from the change to the alarm, beside those that a likelihood-ratio test needs that knows both rates (Shiryaev-Roberts at the
same error over 10,000 requests). *Change*: requests to the alarm. *False alarms* of stable streams of 10,000 requests: resampled, in
bursts of a class, ordered by class; beside river's detectors (`make bench-peers`) and a row that always fires. UCI HAR is read from
EDGEWISE_DATA; without it there are the digits alone. Killed, it goes on from the last finished model or streams (--kept FILE).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from math import log
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.drift_recordings import OF_MIX, PLANS, SHIFTS, Recorded, Recording, record
from benchmarks.kept import Kept, digest_of, do_pieces
from benchmarks.report import Bar, close
from edgewise.core.seeds import Seeds
from edgewise.lifecycle import change, harm
from edgewise.lifecycle.change import Seen
from edgewise.lifecycle.harm import LabelArrived

ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / ".venvs/river/bin/python"
KEPT = ROOT / "bench-out/drift.jsonl"
MONITORS = ("change", "covariates", "drift", "harm", "shift_kind", "unknown_start")
SOURCES = [
    *sorted(ROOT.glob("benchmarks/drift*.py")),
    *(ROOT / f"src/edgewise/lifecycle/{name}.py" for name in MONITORS),
]
"""What results depend on: where one of them is another, what is kept is done again."""
ALPHA = 0.01
STREAM = 10_000
CHANGE_AT = 1000
LATEST = 200
"""Requests by which a label is late at most."""
LABELS = {"all": 1.0, "5 %": 0.05}
MOST_LABELS = 2000
"""After the change; a harm that is not proved by then counts as missed."""
WITHIN = 300
"""Requests within which a change is to be noticed."""
ORDERS = ("resampled", "bursts of a class", "ordered by class")
BURST = 20


@dataclass(frozen=True)
class HarmRun:
    """One stream with a change, labels as they come.

    Attributes:
        fall: Of accuracy, in the whole.
        labels: From the change to the alarm; None if it was missed, or came before.
        needed: Labels within which the likelihood-ratio test with known rates finds 95 % of such changes, and half of them.
    """

    data: str
    seed: int
    shift: str
    plan: str
    labelled: str
    fall: float
    labels: int | None
    needed: int
    needed_half: int


@dataclass(frozen=True)
class ChangeRun:
    """One stream with a change, without labels.

    Attributes:
        nats: Divergence of the view that moves most, per request.
        requests: From the change to the alarm; None if it was missed, or came before.
        kind: What was said to have changed.
    """

    data: str
    seed: int
    shift: str
    plan: str
    fall: float
    nats: float
    requests: int | None
    kind: str


def reference(recording: Recording, part: Recorded, rng: np.random.Generator) -> NDArray[np.intp]:
    """Held-out examples that a version is known by, drawn as requests are."""
    return rng.integers(len(part.labels), size=recording.num_reference)


def draw(recording: Recording, shift: str, plan: str, rng: np.random.Generator, number: int) -> tuple[Recorded, Any]:
    """Requests under a shift: where they are recorded, and which."""
    part = recording.shifted.get(shift, recording.clean)[plan]
    weights = recording.weights.get(shift) if shift in OF_MIX else None
    return part, rng.choice(len(part.labels), number, p=weights)


def fall_of(recording: Recording, shift: str, plan: str) -> tuple[float, float]:
    """Risk before and after a shift."""
    clean = recording.clean[plan].wrong
    if shift in OF_MIX:
        return float(clean.mean()), float((clean * recording.weights[shift]).sum())
    return float(clean.mean()), float(recording.shifted[shift][plan].wrong.mean())


def ratio_test(before: float, after: float, share: float, rng: np.random.Generator) -> tuple[int, int]:
    """Labels in which Shiryaev-Roberts with both rates known finds 95 % and 50 % of changes; one error as ours."""
    streams, first = 1000, round(CHANGE_AT * share)
    statistic, found = np.zeros(streams), np.full(streams, MOST_LABELS)
    before = max(before, 1e-3)
    for index in range(first + MOST_LABELS):
        wrong = rng.random(streams) < (after if index >= first else before)
        statistic = (statistic + 1) * np.where(wrong, after / before, (1 - after) / (1 - before))
        if index >= first:
            new = (statistic >= STREAM * share / ALPHA) & (found == MOST_LABELS)
            found[new] = index + 1 - first
            if (found < MOST_LABELS).all():
                break
    return int(np.quantile(found, 0.95)), int(np.quantile(found, 0.5))


def events(share: float, num: int, rng: np.random.Generator) -> Iterator[tuple[int, bool]]:
    """In order of time: requests whose label arrives (True), and those whose label does not come any more (False)."""
    has = rng.random(num) < share
    due = np.arange(num) + np.where(has, rng.integers(0, LATEST + 1, num), LATEST)
    for request in np.argsort(due, kind="stable"):
        yield int(request), bool(has[request])


def harm_run(recording: Recording, shift: str, plan: str, labelled: str, limit: int) -> HarmRun | None:
    """Monitors one stream for harm; None if accuracy falls by less than ten points."""
    before, after = fall_of(recording, shift, plan)
    if after - before < 0.10:
        return None
    share = LABELS[labelled]
    rng = Seeds(recording.seed).at("harm", recording.data, shift, plan, labelled).rng()
    needed, half = ratio_test(before, after, share, rng)
    clean = recording.clean[plan]
    known = reference(recording, clean, rng)
    state = harm.harm_monitor(zip(clean.labels[known].tolist(), clean.wrong[known].tolist(), strict=True))
    most = round(min(limit, max(2 * needed, 150)) * 1.02) + 5
    number = round(most / share) + LATEST
    early = rng.integers(len(clean.labels), size=CHANGE_AT)
    part, late = draw(recording, shift, plan, rng, number)
    labels, found = 0, None
    for request, has_label in events(share, CHANGE_AT + number, rng):
        of, index = (clean, early[request]) if request < CHANGE_AT else (part, late[request - CHANGE_AT])
        if not has_label:
            state = harm.unlabelled(state, float(of.unsure[index]))
            continue
        labels += request >= CHANGE_AT
        state, alarms = harm.labelled(
            state, LabelArrived(int(of.labels[index]), bool(of.wrong[index]), 0.0, request), rng
        )
        if alarms:
            found = labels if labels else None
            break
    return HarmRun(recording.data, recording.seed, shift, plan, labelled, after - before, found, needed, half)


def nats_of(recording: Recording, shift: str, plan: str, rng: np.random.Generator) -> float:
    """Divergence of the law of the bins, of the view that moves most: what a monitor that knew both laws would have."""
    clean = recording.clean[plan]
    state = change.change_monitor(clean.seen, rng=rng)
    part, rows = draw(recording, shift, plan, rng, 4000)
    counts = np.zeros_like(state.reference)
    for row in rows:
        tie = float(rng.random())
        for view, bin_index in enumerate(change.bins_of(state, part.seen[row], tie)):
            if bin_index >= 0:
                counts[view, bin_index] += 1
    usual = state.reference / state.reference.sum(axis=1, keepdims=True)
    now = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(now > 0, now * np.log(now / np.maximum(usual, 1e-12)), 0.0)
    reached = counts.sum(axis=1) / len(rows)
    bias = (np.count_nonzero(state.reference, axis=1) - 1) / 2 * (1 / len(rows) + 1 / len(clean.seen))
    return float(((terms.sum(axis=1) - bias) * reached).max())


def change_run(recording: Recording, shift: str, plan: str) -> ChangeRun:
    """Monitors one stream for change."""
    from edgewise.lifecycle import drift

    rng = Seeds(recording.seed).at("change", recording.data, shift, plan).rng()
    clean = recording.clean[plan]
    known = reference(recording, clean, rng)
    state = drift.drift_state(drift.DriftReference([clean.seen[row] for row in known], ()), rng=rng)
    part, late = draw(recording, shift, plan, rng, 3 * WITHIN)
    early = rng.integers(len(clean.labels), size=CHANGE_AT)
    found, kind = None, ""
    for index in range(CHANGE_AT + len(late)):
        seen = clean.seen[early[index]] if index < CHANGE_AT else part.seen[late[index - CHANGE_AT]]
        state = drift.answered(state, seen, float(index), rng)
        if state.changed is not None:
            found, kind = (index + 1 - CHANGE_AT if index >= CHANGE_AT else None), state.finding.kind
            break
    before, after = fall_of(recording, shift, plan)
    nats = nats_of(recording, shift, plan, rng)
    return ChangeRun(recording.data, recording.seed, shift, plan, after - before, nats, found, kind)


def stable_order(order: str, labels: NDArray[np.int64], rng: np.random.Generator, number: int) -> NDArray[np.intp]:
    """A stable stream: examples drawn with replacement, as they come, in bursts of a class, or ordered by class."""
    drawn = rng.integers(len(labels), size=number)
    if order == "ordered by class":
        return drawn[np.argsort(labels[drawn], kind="stable")]
    if order == "bursts of a class":
        of_class = {name: np.flatnonzero(labels == name) for name in np.unique(labels)}
        starts = rng.integers(len(labels), size=number)
        begins = rng.random(number) < 1 / BURST
        current = starts[0]
        for index in range(number):
            current = starts[index] if begins[index] else current
            drawn[index] = rng.choice(of_class[labels[current]])
    return drawn


def stable_stream(number: int, length: int, recordings: Sequence[Recording]) -> dict[str, bool]:
    """One stable stream; which monitors gave an alarm."""
    rng = Seeds(number).at("stable").rng()
    recording, plan, order = recordings[number % len(recordings)], PLANS[number % 3], ORDERS[(number // 3) % 3]
    clean, found = recording.clean[plan], {}
    for name in dict.fromkeys(("resampled", order)):
        known, rows = reference(recording, clean, rng), stable_order(name, clean.labels, rng, length)
        state = harm.harm_monitor(zip(clean.labels[known].tolist(), clean.wrong[known].tolist(), strict=True))
        share = 1.0 if number % 2 else 0.05
        for request, has_label in events(share, length, rng):
            row = rows[request]
            if has_label:
                state, _ = harm.labelled(
                    state, LabelArrived(int(clean.labels[row]), bool(clean.wrong[row]), 0.0, request), rng
                )
            else:
                state = harm.unlabelled(state, float(clean.unsure[row]))
            if state.num_alarms:
                break
        found[f"harm, {name}"] = state.num_alarms > 0
        if name == "resampled":
            found["change, resampled"] = _changes([clean.seen[row] for row in known], clean.seen, rows, rng)
    return found


def _changes(known: list[Seen], seen: Sequence[Seen], rows: Any, rng: np.random.Generator) -> bool:
    state = change.change_monitor(known, rng=rng)
    for index, row in enumerate(rows):
        state, alarms = change.step(state, seen[row], float(index), rng)
        if alarms:
            return True
    return False


def lower_limit(alarms: int, streams: int) -> float:
    """Clopper-Pearson's lower 95 % limit, one-sided."""
    from scipy.stats import beta

    return float(beta.ppf(0.05, alarms, streams - alarms + 1)) if alarms else 0.0


def peers(recordings: Sequence[Recording], streams: int, length: int) -> dict[str, float]:
    """Share of stable streams on which river's detectors alarm: losses for ADWIN and Page-Hinkley, confidences for KSWIN."""
    if not PEER.exists():
        return {}
    losses, unsure = np.zeros((streams, length), bool), np.zeros((streams, length), np.float32)
    for number in range(streams):
        rng = Seeds(number).at("stable").rng()
        clean = recordings[number % len(recordings)].clean[PLANS[number % 3]]
        rows = rng.integers(len(clean.labels), size=length)
        losses[number], unsure[number] = clean.wrong[rows], clean.unsure[rows]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "streams.npz"
        np.savez(path, losses=losses, unsure=unsure)
        command = [str(PEER), str(ROOT / "benchmarks/peers/river_drift.py"), str(path)]
        return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


recorded = lru_cache(maxsize=8)(record)
"""The models that stable streams are of are recorded once in a process."""


def one_recording(task: tuple[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Trains one model and monitors every shift along every plan."""
    recording = recorded(*task)
    harms = [harm_run(recording, s, p, labelled, MOST_LABELS) for s in SHIFTS for p in PLANS for labelled in LABELS]
    changes = [change_run(recording, s, p) for s in SHIFTS for p in PLANS]
    return {"harm": [asdict(r) for r in harms if r is not None], "change": [asdict(r) for r in changes]}


def stable_streams(numbers: Sequence[int], length: int, tasks: tuple[tuple[str, int], ...]) -> list[dict[str, bool]]:
    """Stable streams, one after the other."""
    return [stable_stream(number, length, [recorded(*task) for task in tasks]) for number in numbers]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="one seed, a few short stable streams; nothing is kept")
    parser.add_argument("--json", action="store_true", help="only the closing JSON line")
    parser.add_argument("--seeds", type=int, default=0, help="models of each data set (20)")
    parser.add_argument("--streams", type=int, default=0, help="stable streams (1,000)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="at work at once, one a core")
    parser.add_argument("--kept", type=Path, default=KEPT, help=f"finished pieces ({KEPT.name} in bench-out)")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # of the processes that are begun here
    seeds, streams = args.seeds or (1 if args.short else 20), args.streams or (8 if args.short else 1000)
    length = 3000 if args.short else STREAM
    sets = ["digits", *(["human activity"] if os.environ.get("EDGEWISE_DATA") else [])]
    tasks = [(data, seed) for seed in range(seeds) for data in sets]
    kept = Kept(None if args.short else args.kept, digest_of(SOURCES, length))
    models = {f"{data} {seed}": (data, seed) for data, seed in tasks}
    done = do_pieces(kept, models, one_recording, args.processes, what="models")
    harms = [HarmRun(**run) for of in done for run in of["harm"]]
    changes = [ChangeRun(**run) for of in done for run in of["change"]]
    if not args.json:
        _print_harm(harms)
        _print_change(changes)
    of_streams = tuple(tasks[: 2 * len(sets)])
    size = max(1, min(10, streams // args.processes))
    parts = {
        f"streams {of_streams} {first}-{first + size}": range(streams)[first : first + size]
        for first in range(0, streams, size)
    }
    watched = partial(stable_streams, length=length, tasks=of_streams)
    stable = [
        row for rows in do_pieces(kept, parts, watched, args.processes, what=f"x {size} stable streams") for row in rows
    ]
    river = peers([recorded(*task) for task in of_streams] if PEER.exists() else (), min(streams, 100), length)
    figures, bars = _judge(harms, changes, stable, river, length)
    if not args.json:
        _print_stable(figures["false_alarms"])
    close("drift", figures | {"seeds": seeds, "streams": streams, "length": length}, bars)


def _print_harm(runs: list[HarmRun]) -> None:
    print("harm: labels from the change to the alarm (median, most) beside the test with known rates (half, 95 %)")
    for key in dict.fromkeys((r.data, r.shift, r.labelled) for r in runs):
        of = [r for r in runs if (r.data, r.shift, r.labelled) == key]
        found = sorted(MOST_LABELS if r.labels is None else r.labels for r in of)
        half, most = (int(np.median(v)) for v in zip(*((r.needed_half, r.needed) for r in of), strict=True))
        print(
            f"  {key[0]:15} {key[1]:18} {key[2]:4} fall {100 * np.mean([r.fall for r in of]):3.0f} points "
            f"{found[len(found) // 2]:5} {found[-1]:5}   {half:5} {most:5}   ({len(of)} runs)",
            flush=True,
        )

    for r in runs:
        if r.shift not in OF_MIX and (r.labels is None or r.labels > 2 * r.needed):
            print(
                f"  late: {r.data} {r.seed}, {r.shift}, {r.plan}, {r.labelled} labelled, fall {100 * r.fall:.0f} points: "
                f"{r.labels or 'no alarm in'} labels, allowed are 2 x {r.needed}",
                flush=True,
            )


def _print_change(runs: list[ChangeRun]) -> None:
    print("change: requests to the alarm, runs found of all, and what was said to have changed")
    for key in dict.fromkeys((r.data, r.shift) for r in runs):
        of = [r for r in runs if (r.data, r.shift) == key]
        found = sorted(r.requests for r in of if r.requests is not None)
        kinds = ", ".join(sorted({r.kind for r in of if r.kind}))
        middle = found[len(found) // 2] if found else "-"
        print(
            f"  {key[0]:15} {key[1]:18} fall {100 * np.mean([r.fall for r in of]):3.0f} points, "
            f"{np.mean([r.nats for r in of]):.2f} nats: {middle} requests, {len(found)} of {len(of)}  {kinds}",
            flush=True,
        )


def _print_stable(rows: dict[str, Any]) -> None:
    print(f"false alarms on stable streams (share, lower 95 % limit; α = {ALPHA})")
    for name, row in rows.items():
        print(f"  {name:36} {row['share']:6.1%}  {row['lower']:6.2%}  of {row['streams']}")


def _judge(
    harms: list[HarmRun], changes: list[ChangeRun], stable: list[dict[str, bool]], river: dict[str, float], length: int
) -> tuple[dict[str, Any], list[Bar]]:
    figures: dict[str, Any] = {"false_alarms": {}}
    bars = []
    of_class = [run for run in harms if run.shift not in OF_MIX]
    strong = [run for run in of_class if run.fall >= 0.30]
    for labelled in LABELS:
        deep = [run for run in strong if run.labelled == labelled]
        share = np.mean([run.labels is not None and run.labels <= 150 for run in deep]) if deep else None
        any_ = [run for run in of_class if run.labelled == labelled]
        twice = np.mean([run.labels is not None and run.labels <= 2 * run.needed for run in any_]) if any_ else None
        figures[f"harm_{labelled}"] = {"runs_30": len(deep), "in_150": share, "runs_10": len(any_), "in_twice": twice}
        if share is not None:
            bars.append(_bar(f"harm, {labelled} labelled: falls of 30 points in 150 labels", share, 0.95))
        if twice is not None:
            what = f"harm, {labelled} labelled: falls of 10 points in 2 x the labels of known rates"
            bars.append(_bar(what, twice, 0.95))
    figures["harm_by_class_mix_alone"] = len([run for run in harms if run.shift in OF_MIX])
    falls = [run for run in changes if run.fall >= 0.10]
    moved = [run for run in falls if run.nats * WITHIN >= log(STREAM / ALPHA)]
    seen = np.mean([run.requests is not None and run.requests <= WITHIN for run in moved]) if moved else None
    figures["change"] = {
        "falls": len(falls),
        "moved": len(moved),
        "unseen_share": 1 - len(moved) / len(falls) if falls else None,
        "in_300": seen,
    }
    if seen is not None:
        bars.append(_bar(f"change: falls that move a view, within {WITHIN} requests", seen, 0.80))
    for name in dict.fromkeys(key for row in stable for key in row):
        alarms = [row[name] for row in stable if name in row]
        lower = lower_limit(sum(alarms), len(alarms))
        figures["false_alarms"][name] = {"share": float(np.mean(alarms)), "lower": lower, "streams": len(alarms)}
        what = f"false alarms, {name}, {len(alarms)} streams of {length}: lower 95 % limit"
        bars.append(Bar(what, f"<= {ALPHA}", round(lower, 4), lower <= ALPHA))
    for name, share in river.items():
        streams = min(len(stable), 100)
        row = {"share": share, "lower": lower_limit(round(share * streams), streams), "streams": streams}
        figures["false_alarms"][f"river {name}"] = row
    figures["false_alarms"]["always fires"] = {"share": 1.0, "lower": lower_limit(100, 100), "streams": 100}
    if not river:
        figures["river"] = "not installed: run make bench-peers"
    return figures, bars


def _bar(what: str, share: Any, least: float) -> Bar:
    return Bar(what, f">= {least:.0%}", f"{share:.1%}", bool(share >= least))


if __name__ == "__main__":
    main()
