"""Stage 2 and 3: federated training through the edges, coded beside uncoded; the result becomes a version."""

from __future__ import annotations

from typing import Any

import msgspec

from edgewise.core.errors import EdgewiseError
from edgewise.datasets.audit import audit
from edgewise.demo.scenario import LOCAL, UPLINK, Counted, Demo
from edgewise.fleet.messages import RunStatus, SubmitRun
from edgewise.fleet.operator.operator import RunFiles
from edgewise.fleet.operator.submission import task_request
from edgewise.ledger.kpis import training_kpis
from edgewise.service.report import CodecSection, RoundRow, SplitSizes
from edgewise.service.report.convert import audit_rows


async def train(demo: Demo) -> None:
    """Trains twice from the same seed: a few rounds uncoded, all rounds coded; registers the coded model."""
    _print_data(demo)
    few = demo.settings.comparison_rounds
    uncoded = await follow(demo, *_request(demo, "uncoded", {"name": "none"}, few, register=False))
    before = await demo.counted()
    coded = await follow(demo, *_request(demo, "first", UPLINK, demo.settings.rounds))
    demo.run = coded
    _kpis(demo, before, await demo.counted())
    versions = (await demo.operator.versions()).versions
    demo.trained = demo.version = next(v for v in versions if v.number == coded.version)
    uncoded_bytes = sum(r.uplink_bytes for r in uncoded.rounds)
    coded_bytes = sum(r.uplink_bytes for r in coded.rounds[:few])
    demo.change(
        rounds=(*round_rows("uncoded", uncoded), *round_rows("first", coded)),
        codec=CodecSection(
            uncoded_bytes, coded_bytes, uncoded.rounds[-1].accuracy, coded.rounds[few - 1].accuracy, UPLINK["name"]
        ),
    )
    demo.show.line(
        f"  uplink of {few} rounds: {uncoded_bytes:,} bytes uncoded, {coded_bytes:,} as {UPLINK['name']} "
        f"({uncoded_bytes / max(coded_bytes, 1):.2f} times fewer); accuracy {uncoded.rounds[-1].accuracy:.3f} and "
        f"{coded.rounds[few - 1].accuracy:.3f}"
    )
    demo.happened(
        "training", f"version {demo.version.number}: accuracy {coded.rounds[-1].accuracy:.3f} on calibration data"
    )


def _kpis(demo: Demo, before: Counted, after: Counted) -> None:
    done = demo.run.rounds
    kpis = training_kpis(
        demo.entries(before, after),
        demo.tiers,
        loss=done[-1].loss,
        accuracy=done[-1].accuracy,
        rounds=len(done),
        seconds=sum(r.seconds for r in done),
        energy_j=demo.training_energy_j(before, after),
    )
    demo.change(kpis=msgspec.structs.replace(demo.report.kpis, training=kpis))


async def follow(demo: Demo, request: SubmitRun, files: RunFiles) -> RunStatus:
    """Submits a run and shows its rounds until it ends.

    Raises:
        EdgewiseError: If it did not complete; with its cause.
    """
    run = await demo.operator.submit(request, files)
    shown = 0
    with demo.show.progress(f"  {request.spec.run}: rounds", request.num_rounds) as advance:
        async for status in demo.operator.watch(run):
            for done in status.rounds[shown:]:
                advance(f"loss {done.loss:.3f} accuracy {done.accuracy:.3f} {done.seconds:.1f} s")
            shown = len(status.rounds)
    if status.state != "completed":
        raise EdgewiseError(f"run {run} ended as {status.state}: {status.cause}")
    return status


def _request(
    demo: Demo, name: str, uplink: dict[str, Any], rounds: int, *, register: bool = True
) -> tuple[SubmitRun, RunFiles]:
    algorithm = {"name": "fed_avg", "local": LOCAL, "uplink": uplink}
    seed = demo.settings.seed
    return task_request(demo.task, algorithm, num_rounds=rounds, seed=seed, name=name, register=register)


def round_rows(run: str, status: RunStatus) -> tuple[RoundRow, ...]:
    """A run's rounds as the report has them."""
    return tuple(
        RoundRow(run, r.round, r.loss, r.accuracy, r.uplink_bytes, r.downlink_bytes, r.seconds, r.num_updates)
        for r in status.rounds
    )


def _print_data(demo: Demo) -> None:
    parts = demo.task.parts
    held = {str(c): demo.task.data(c) for c in demo.task.clients()}
    found = audit({c: e.targets for c, e in held.items()}, {c: e.inputs for c, e in held.items()})
    sizes = parts.sizes
    public = round(0.2 * sizes["train"])
    demo.change(split=SplitSizes(**sizes, public=public), audit=audit_rows(found))
    demo.show.line(
        f"  {' · '.join(f'{name} {num}' for name, num in sizes.items())} examples, disjoint; {public} of train public"
    )
    for line in str(found).splitlines():
        demo.show.line(f"  {line}")
