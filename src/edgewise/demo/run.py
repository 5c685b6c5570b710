"""The demo from beginning to end; nothing is left running, whatever happens."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np

from edgewise import __version__
from edgewise.core.process import keep_for_good
from edgewise.core.seeds import Seeds
from edgewise.demo.comparing import compare, compare_elsewhere
from edgewise.demo.drift_and_retrain import stay_good
from edgewise.demo.other_questions import open_fleet
from edgewise.demo.planning import plan_all
from edgewise.demo.scenario import TASK, Demo, DemoSettings, Show, fleet_file, task_settings
from edgewise.demo.serve_requests import break_things, deploy_plan, serve
from edgewise.demo.training import train
from edgewise.demo.training_domains import other_domains
from edgewise.fleet.operator.operator import connect_operator
from edgewise.ledger.energy import ENERGY_MODELS, modelled_energy, printed
from edgewise.ledger.entry import Direction
from edgewise.models.export import export_template
from edgewise.models.flat import initial_vector
from edgewise.models.graph.graph import Graph
from edgewise.models.graph.weights import with_weights
from edgewise.service.report import Report, ResourceRow, conclusions, explained, kpi_rows, write_report
from edgewise.service.report.picture import write_picture
from edgewise.simulation.emulated.class_speeds import MachineSpeed, machine_speed, speed_lines, with_speeds
from edgewise.simulation.emulated.emulated_fleet import CLOUD, OPERATOR, EmulatedFleet, make_folder
from edgewise.training.tasks.digits_task import DigitsTask

JOIN_TIMEOUT_S = 60.0


async def run_demo(settings: DemoSettings, show: Show, folder: Path, *, capture: Path | None = None) -> Report:
    """Runs the main job on this machine and writes its report.

    Args:
        settings: How long and how large.
        show: Where to show what happens.
        folder: Where the report goes.
        capture: Where to keep the plaintext of every frame sent, for audits; None keeps none.

    Returns:
        The report, as written.
    """
    with make_folder() as scratch:
        task = DigitsTask(**task_settings(settings))
        holdout = _write_holdout(task, Path(scratch))
        here = _machine_speed(task)
        file = with_speeds(fleet_file(settings), here)
        fleet = EmulatedFleet(file, Path(scratch), holdout=holdout, capture=capture)
        demo = Demo(settings, show, Path(scratch), task, fleet, assumed=tuple(speed_lines(file, here)))
        try:
            await _start(demo)
            async with connect_operator(
                fleet.identity(OPERATOR), fleet.endpoint(CLOUD), Path(scratch) / "operator", fleet.file.name
            ) as demo.operator:
                await _run(demo, holdout)
        finally:
            await fleet.stop()
    report = _finished(demo)
    report = msgspec.structs.replace(report, conclusions=conclusions(report))
    write_report(report, folder)
    write_picture(report, folder / "demo.png")
    show.table("KPIs", ("KPI", "value", "source"), [(k.name, k.text, k.source) for k in kpi_rows(report)])
    for said in report.conclusions:
        show.line(f"{said.question} {said.verdict.capitalize()}. {said.answer}")
    show.line(
        f"report: {folder / 'index.html'} and {folder / 'report.json'}, {time.monotonic() - demo.start_s:.0f} s in all"
    )
    return report


async def _start(demo: Demo) -> None:
    demo.stage(1, "A fleet starts: 1 cloud, 2 edges, 8 devices, each a process, mutual TLS through shaped links")
    with demo.show.progress("  starting", 4) as advance:
        await demo.fleet.start(advance)
    demo.happened("start", f"{len(demo.fleet.children)} nodes are up")


def _machine_speed(task: DigitsTask) -> MachineSpeed:
    """Of this machine, with the demo's model untrained: what it takes does not depend on its weights."""
    template, layout = export_template(task)
    return machine_speed(Graph.load(with_weights(template, layout, initial_vector(task, Seeds(task.settings["seed"])))))


async def _run(demo: Demo, holdout: Path) -> None:
    expected = len(demo.fleet.children)
    demo.nodes = await demo.operator.wait_for_nodes(
        lambda rows: sum(r.state == "alive" for r in rows) == expected, JOIN_TIMEOUT_S
    )
    demo.show.table(
        "Nodes",
        ("node", "tier", "parent", "GFLOP/s", "dilation", "client", "examples"),
        [
            (
                r.info.node,
                r.info.tier,
                r.info.parent,
                f"{r.info.capability.flops * 1e-9:.1f}",
                r.info.capability.dilation,
                r.info.client or "infers only",
                r.info.num_examples,
            )
            for r in demo.nodes
        ],
    )
    for line in demo.assumed:
        demo.show.line(f"  {line}")
    demo.stage(2, "It trains federatedly: devices → edges → cloud; 3. the model becomes a version")
    async with other_domains(demo) as others, open_fleet(demo, demo.folder / "open", holdout) as elsewhere:
        await train(demo)
        demo.stage(4, "It plans")
        answers = await plan_all(demo, others)
        demo.stage(5, "It serves")
        keep_for_good()  # this process is the clients, too
        await deploy_plan(demo)
        await serve(demo)
        await compare(demo, answers[0])
        await compare_elsewhere(demo, answers, elsewhere)
    demo.stage(6, "It survives")
    await break_things(demo)
    demo.stage(7, "It stays good")
    await stay_good(demo)
    demo.stage(8, "It reports")
    await _resources(demo)


def _write_holdout(task: DigitsTask, folder: Path) -> Path:
    parts = task.parts
    path = folder / "holdout.npz"
    np.savez(
        path,
        calibration_x=np.asarray(parts.calibration.inputs),
        calibration_y=np.asarray(parts.calibration.targets),
        gate_x=np.asarray(parts.gate.inputs),
        gate_y=np.asarray(parts.gate.targets),
    )
    return path


async def _resources(demo: Demo) -> None:
    used = await demo.counted()
    rows = []
    for node, answer in used.items():
        tier = demo.tiers[node]
        sizes = {d: sum(e.size_bytes for e in answer.entries if e.direction is d) for d in Direction}
        energy = modelled_energy(
            ENERGY_MODELS[tier],
            cpu_seconds=answer.inference_s + answer.training_s,
            sent_bytes=sizes[Direction.SENT],
            received_bytes=sizes[Direction.RECEIVED],
        )
        rows.append(ResourceRow(node, str(tier), answer.cpu_s, answer.peak_memory_bytes, energy.joules, energy.source))
    demo.change(resources=tuple(rows))


def _finished(demo: Demo) -> Report:
    phases = tuple(part.phase_row(demo.deadline_s) for part in demo.stream_sent)
    demo.change(
        faults=msgspec.structs.replace(demo.report.faults, phases=phases),
        title=f"Edgewise demo: {TASK} on {len(demo.fleet.devices)} devices, {len(demo.fleet.edges)} edges and a cloud",
        requests=tuple(demo.requests),
        timeline=tuple(demo.timeline),
        energy_parameters=printed(ENERGY_MODELS),
        meta={"version": __version__, "seed": str(demo.settings.seed), "date": time.strftime("%Y-%m-%d")},
    )
    return explained(
        demo.report,
        {
            "plan.gain": "there is no other allowed way to serve",
            "faults.returned_home": "no device's plan used the edge when it was killed",
            "faults.failover_ms": "no request of that edge's devices was answered otherwise after the kill",
            "loop.accuracy_after": "the gate refused the new version",
            "loop.rolled_back": "the gate refused the new version, so there was nothing to roll back",
            "loop.drift_delay_requests": "there was no alarm during the drifted stream",
        },
    )
