"""`simulate`: a job in virtual time. Same parts, same `step` functions, same seed tree as the live fleet.

run = simulate(job)                       # a JobFile
run.record.rounds[-1].metrics["accuracy"], run.vector
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgewise.core.errors import DataError, InputError
from edgewise.core.ids import ClientId, NodeId, RoundNumber, RunId, digest_of
from edgewise.core.layout import Layout, Vector
from edgewise.core.seeds import Seeds
from edgewise.core.units import parse_duration
from edgewise.models.data_check import DataCheck
from edgewise.models.flat import initial_vector
from edgewise.models.task import Examples, Task, clients_of, user_code
from edgewise.simulation.costs import VirtualCosts, costs_of
from edgewise.simulation.journal import Journal, JournaledWorkers, journaled
from edgewise.simulation.record import RunRecord, SimulatedRun
from edgewise.simulation.snapshot import restore, snapshot_of
from edgewise.simulation.virtual_clients import VirtualClients, Workers
from edgewise.simulation.virtual_run import Evaluate, Fails, OnRound, VirtualRun, never
from edgewise.training.algorithm import Candidate, FederatedAlgorithm
from edgewise.training.job import JobFile, make_task
from edgewise.training.local import choose_engine
from edgewise.training.protocols import Protocol, check_carries, make_protocol
from edgewise.training.protocols.folding import vector_to_bytes
from edgewise.training.protocols.messages import AnnounceWaiting, Outcome, OutcomeKind, RunConfig
from edgewise.training.protocols.opening import cohort_of, quorum_of
from edgewise.training.protocols.protocol import EDGE
from edgewise.training.protocols.run_spec import RunSpec
from edgewise.training.unsent import without_unsent


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """How a run is simulated; none of it changes the model.

    Attributes:
        engine: Local engine by name; "" chooses by timing. (Engines agree within 1e-5 per round.)
        costs: What the virtual clock charges.
        evaluate_every: Rounds between evaluations on the test data; 0 evaluates the last only.
        test_data: What to evaluate on; None takes the task's own.
        on_round: Called with each closed round.
        journal: File from which a killed simulation goes on; None keeps none.
    """

    engine: str = ""
    costs: VirtualCosts = VirtualCosts()
    evaluate_every: int = 1
    test_data: Examples | None = None
    on_round: OnRound | None = None
    journal: Path | None = None


def simulate_rounds(
    task: Task,
    algorithm: FederatedAlgorithm,
    *,
    rounds: int,
    seed: int = 0,
    clients: Sequence[ClientId] = (),
    quorum: int = 0,
    round_deadline_s: float | None = None,
    initial: Vector | None = None,
    protocol: Any = "",
    edge_of: Mapping[ClientId, NodeId] | None = None,
    fails: Fails = never,
    options: SimulationOptions = SimulationOptions(),
) -> SimulatedRun:
    """Rounds in virtual time, by any protocol.

    Args:
        task: What is learned.
        algorithm: The parts.
        rounds: Rounds to do.
        seed: The job's seed.
        clients: Who may take part; by default all of the task. Clients without examples are left out.
        quorum: Updates a round needs; 0 needs its whole cohort.
        round_deadline_s: Virtual seconds a round may take; None waits.
        initial: Model to start from; by default the seed tree's.
        protocol: Its spec; "" is `hierarchical` where clients stand under edges, else `synchronous`.
        edge_of: Edge of each client.
        fails: Who drops out of which round.
        options: How it is simulated.

    Returns:
        The record and the final model.

    Raises:
        DataError: If no client holds examples, or a client's cannot be trained on.
        TaskError: If the task's own code raises, with file and line.
        InputError: If the quorum is larger than any cohort, or a protocol with edges is given none.
        MisfitError: If the protocol does not carry the algorithm.
    """
    chosen = make_protocol(protocol or ("hierarchical" if edge_of else "synchronous"))
    check_carries(chosen, algorithm)
    if EDGE in chosen.roles and not edge_of:
        raise InputError(f"{chosen.spec} needs to know the edge of each client. Give edge_of, or take synchronous.")
    named = tuple(clients) or clients_of(task)
    checked = DataCheck(task)
    sizes = {client: len(checked.data(client).examples) for client in named}
    holding = tuple(client for client in named if sizes[client])
    if not holding:
        raise DataError(f"none of the {len(named)} clients of task {task.name!r} holds examples. Check the split.")
    candidates = [Candidate(client, sizes[client]) for client in holding]
    sample = [checked.data(client).examples for client in cohort_of(algorithm, candidates, RoundNumber(1), seed)]
    model = initial_vector(task, Seeds(seed)) if initial is None else initial
    works = [exchange.local for exchange in algorithm.exchanges]
    journal = None if options.journal is None else Journal.open(options.journal)
    pinned = options.engine or ("" if journal is None else journal.engine)
    engine = choose_engine(task, works, sample, pinned=pinned).engine
    words, data = str(algorithm.spec), vector_to_bytes(model)
    algorithm = without_unsent(algorithm, engine.layout)
    config = RunConfig(
        spec=run_spec(algorithm, chosen, engine.layout, seed),
        clients=holding,
        num_rounds=rounds,
        quorum=quorum_of(algorithm, candidates, seed, quorum),
        initial_model=digest_of(data),
        round_deadline_s=round_deadline_s,
    )
    workers: Workers = VirtualClients(task, algorithm, engine, seed, checked)
    judge = evaluator(task, rounds, options)
    if journal is not None:
        journal.begin(_job_digest(task, config, rounds, protocol, edge_of), engine.name)
        workers, judge = JournaledWorkers(workers, journal), journaled(judge, journal)
    run = VirtualRun(
        config,
        algorithm,
        chosen,
        workers,
        {config.initial_model: data},
        options.costs,
        dict(edge_of or {}) if EDGE in chosen.roles else {},
        {candidate.client: candidate.num_examples for candidate in candidates},
        judge,
        fails,
        options.on_round,
    )
    try:
        vector = run.run() if journal is None else _journaled_run(run, journal, options.on_round)
    except BaseException:
        if journal is not None:
            journal.close(is_done=False)
        raise
    if journal is not None:
        journal.close(is_done=True)
    outcome = run.outcome or _stuck(run)
    return SimulatedRun(
        RunRecord(task.name, words, str(chosen.spec.name), engine.name, seed, tuple(run.records), outcome), vector
    )


def _journaled_run(run: VirtualRun, journal: Journal, on_round: OnRound | None) -> Vector:
    """Runs to the terminal state, from where the journal's snapshot stands; closed rounds are told again."""
    if journal.snapshot:
        restore(run, journal.snapshot)
        told = (lambda _: None) if on_round is None else on_round
        for record in run.records:
            told(record)
    num_closed = len(run.records)

    def until() -> bool:
        nonlocal num_closed
        if len(run.records) > num_closed and run.outcome is None:
            num_closed = len(run.records)
            if journal.is_long(sum(map(len, run.blobs.values()))):
                journal.compact(snapshot_of(run))
        return False

    if journal.snapshot:
        run.carry_on(until)
    else:
        run.start()
        run.go(until)
    return run.model


def _job_digest(task: Task, config: RunConfig, *more: Any) -> str:
    """Names what the results of a run depend on; the task's data and code are told apart by its source."""
    source = Path(task.source or getattr(sys.modules.get(type(task).__module__), "__file__", None) or "")
    code = digest_of(source.read_bytes()) if source.is_file() else ""
    return digest_of(repr((config, task.name, task.settings, code, *more)).encode())


def _stuck(run: VirtualRun) -> Outcome:
    """The outcome where a fleet would wait for somebody to come back: here nobody does."""
    waits = [action.sentence for action in run.announced if isinstance(action, AnnounceWaiting)]
    return Outcome(
        OutcomeKind.TOO_FEW_CLIENTS,
        f"{waits[-1] if waits else 'nothing is under way'}; nobody comes back, and no deadline ends the round.",
        "Set a round deadline and a quorum below the cohort, then a round goes on without those who drop out.",
        run.view.model,
        len(run.view.rounds),
    )


def run_spec(algorithm: FederatedAlgorithm, protocol: Protocol, layout: Layout, seed: int) -> RunSpec:
    """What every node of a simulated run knows of it."""
    return RunSpec(
        run=RunId("simulated"),
        algorithm=algorithm.spec.to_dict(),
        protocol=protocol.spec.to_dict(),
        seed=seed,
        layout=layout.digest,
        num_entries=layout.size,
        buffers=layout.buffers,
    )


def simulate(
    job: JobFile,
    *,
    folder: str = ".",
    options: SimulationOptions | None = None,
    task: Task | None = None,
    algorithm: FederatedAlgorithm | None = None,
) -> SimulatedRun:
    """Runs a job file in virtual time.

    Args:
        job: As loaded.
        folder: What its task file is relative to.
        options: How; costs and engine are the job's own.
        task: What is learned; None makes the job's own task.
        algorithm: The parts; None takes the job's words.

    Returns:
        The record and the final model.

    Raises:
        TaskError: If the task cannot be used.
        InputError: If a word of the job is unknown.
    """
    training = job.training
    task = make_task(job.task.file, job.task.settings, folder=folder) if task is None else task
    given = options or SimulationOptions()
    used = replace(given, engine=training.engine, costs=costs_of(job.virtual))
    protocol = job.protocol()
    return simulate_rounds(
        task,
        algorithm or job.algorithm(),
        rounds=training.rounds,
        seed=training.seed,
        quorum=training.quorum,
        protocol=protocol,
        edge_of=edge_of_clients(job, clients_of(task)) if EDGE in protocol.roles else None,
        round_deadline_s=parse_duration(training.round_deadline) if training.round_deadline else None,
        fails=drawn_dropouts(job.virtual.dropout_fraction, training.seed),
        options=used,
    )


def edge_of_clients(job: JobFile, clients: Sequence[ClientId]) -> dict[ClientId, NodeId]:
    """Which edge each client stands under.

    Args:
        job: Its `[training.edges]` says so; without it two edges share the clients in turn.
        clients: All of them.

    Returns:
        Edge by client.

    Raises:
        InputError: If a client stands under no edge.
    """
    named = {ClientId(client): NodeId(edge) for edge, held in job.training.edges.items() for client in held}
    if not named:
        return {client: NodeId(f"edge-{index % 2 + 1}") for index, client in enumerate(clients)}
    missing = [client for client in clients if client not in named]
    if missing:
        raise InputError(
            f"clients {', '.join(missing[:10])} stand under no edge. List every client in [training.edges], "
            "or leave the table out."
        )
    return {client: named[client] for client in clients}


def drawn_dropouts(fraction: float, seed: int) -> Fails:
    """Clients that drop out at random, each round anew.

    Args:
        fraction: Probability.
        seed: The job's seed.

    Returns:
        Whether a client fails in a round; always the same answer.
    """
    if fraction == 0:
        return never

    def fails(number: RoundNumber, client: ClientId) -> bool:
        return bool(Seeds(seed).at("virtual", "dropout", number, client).rng().random() < fraction)

    return fails


def evaluator(task: Task, rounds: int, options: SimulationOptions) -> Evaluate:
    """What judges the model after a round.

    Args:
        task: Its test data are used unless the options give others.
        rounds: Number of rounds; the last is always evaluated.
        options: How often.

    Returns:
        The function; it gives nothing where there are no test data.
    """
    from edgewise.training.local.evaluate import Evaluator

    with user_code(f"task {task.name!r} gives no test data"):
        examples = options.test_data if options.test_data is not None else task.test_data()
    if examples is not None:
        examples = DataCheck(task).check(examples).examples
    judge = Evaluator(task)

    def evaluate(number: RoundNumber, vector: Vector) -> dict[str, float]:
        due = number == rounds or (options.evaluate_every and number % options.evaluate_every == 0)
        return dict(judge.metrics(vector, examples)) if due and examples is not None else {}

    return evaluate
