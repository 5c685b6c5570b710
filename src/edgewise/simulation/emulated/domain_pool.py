"""Trains all domains of a job in a few processes; the domains are independent of each other."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, ProcessPoolExecutor, wait

from edgewise.core.ids import ClientId
from edgewise.models.version import FEDERATED
from edgewise.simulation.emulated.domains import DOMAINS, DomainResult, DomainTraining, simulate_domain
from edgewise.simulation.simulate import SimulationOptions, edge_of_clients
from edgewise.training.job import JobFile, make_task

LOOK_EVERY_S = 0.2
_LATER = 5
LONGEST_FIRST = ("device", "edge", FEDERATED, "cloud")


def simulate_domains(
    job: JobFile,
    domains: Sequence[str] = DOMAINS,
    *,
    folder: str = ".",
    public_fraction: float = 0.2,
    processes: int = 2,
    on_result: Callable[[DomainResult], None] = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
    is_background: bool = False,
) -> dict[str, DomainResult]:
    """Trains in several domains at once.

    Args:
        job: Task, algorithm, rounds, seed, edges and engine.
        domains: Which.
        folder: What the task file is relative to.
        public_fraction: Share of each client's data that the cloud may pool.
        processes: How many work at once; 1 works in this process.
        on_result: Called as each domain is done.
        is_cancelled: Looked at now and then with several processes, for a caller on a thread, which no signal reaches.
        is_background: Whether several processes let everything else on this machine go first.

    Returns:
        Result by domain, in the order asked for; the same whatever the number of processes.

    Raises:
        InputError: If a domain is unknown or the job is wrong.
        CancelledError: If the caller wants no more; no process is left.
    """
    found: dict[str, DomainResult] = {}
    ordered = sorted(domains, key=lambda d: LONGEST_FIRST.index(d) if d in LONGEST_FIRST else 0)
    if processes <= 1:
        for domain in ordered:
            found[domain] = _one(job, domain, folder, public_fraction)
            on_result(found[domain])
        return {domain: found[domain] for domain in domains}
    # Spawned, not forked: a fork of a process that runs an I/O thread or a BLAS may hang.
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (is_background,)) as pool:
        waiting = {pool.submit(_one, job, domain, folder, public_fraction) for domain in ordered}
        try:
            while waiting:
                if is_cancelled():
                    raise CancelledError("the simulation of training domains was cancelled.")
                ended, waiting = wait(waiting, LOOK_EVERY_S, FIRST_COMPLETED)
                for result in (future.result() for future in ended):
                    found[result.domain] = result
                    on_result(result)
        except BaseException:  # whatever ends it, its processes end with it
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise
    return {domain: found[domain] for domain in domains}


def _begin(is_background: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ctrl-C reaches all; who asked says what becomes of us
    if is_background:
        os.nice(_LATER)


def _one(job: JobFile, domain: str, folder: str, public_fraction: float) -> DomainResult:
    task = make_task(job.task.file, job.task.settings, folder=folder)
    clients = [ClientId(client) for client in task.clients() if len(task.data(client))]
    edge_of = {client: edge for client, edge in edge_of_clients(job, task.clients()).items() if client in clients}
    options = SimulationOptions(job.training.engine, evaluate_every=0)
    return simulate_domain(
        domain,
        DomainTraining(
            task=task,
            algorithm=job.algorithm(),
            rounds=job.training.rounds,
            edge_of=edge_of,
            seed=job.training.seed,
            public_fraction=public_fraction,
            options=options,
        ),
    )
