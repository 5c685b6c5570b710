"""The job file: what `edgewise train` and `edgewise simulate` are given. One TOML file, the parts' own parameters.

[task]
file = "digits"                    # or a Python file with one Task class
settings = { alpha = 0.5 }

[training]
algorithm = { name = "fed_avg", local = { name = "sgd", learning_rate = 0.05, epochs = 3 }, uplink = "int8" }
rounds = 12
protocol = "hierarchical"           # or { name = "buffered", concurrency = 20, buffer_size = 5 }

[virtual]                          # simulation only
uplink = "20 Mbit/s"
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgewise.core.errors import ConfigError, InputError, MisfitError
from edgewise.core.spec import Spec
from edgewise.core.units import parse_duration, parse_rate
from edgewise.models.task import Task, load_task
from edgewise.training.algorithm import FederatedAlgorithm
from edgewise.training.algorithms import make_algorithm
from edgewise.training.batch_norm import AVERAGED, with_batch_norm
from edgewise.training.protocols import Protocol, check_carries, make_protocol

BUILT_IN_TASKS = ("digits",)


class TaskTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[task]`.

    Attributes:
        file: A Python file with one Task class, relative to the job file; or a built-in name, e.g. `digits`.
        settings: Passed to the class.
    """

    file: str
    settings: dict[str, Any] = {}


class TrainingTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[training]`.

    Attributes:
        algorithm: Spec of the algorithm; a name or a table.
        rounds: Rounds to do.
        clients_per_round: Size of a uniformly drawn cohort; 0 takes everyone or what the algorithm says.
        quorum: Updates a round needs; 0 needs the whole cohort.
        protocol: Spec of the protocol; a name or a table, e.g. `synchronous`, `hierarchical`.
        edges: Which clients stand under which edge, for simulation; by default two edges take turns.
        seed: The job's seed.
        batch_norm: What becomes of batch norm: `averaged`, `local` (each client's own, FedBN) or `frozen`.
        engine: Local engine by name; "" chooses by timing.
        round_deadline: e.g. "30 s"; "" waits for the cohort as long as it makes progress.
    """

    algorithm: str | dict[str, Any] = "fed_avg"
    rounds: int = 10
    clients_per_round: int = 0
    quorum: int = 0
    protocol: str | dict[str, Any] = "synchronous"
    edges: dict[str, tuple[str, ...]] = {}
    seed: int = 0
    batch_norm: str = AVERAGED
    engine: str = ""
    round_deadline: str = ""


class VirtualTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[virtual]`: what the simulated clock charges.

    Attributes:
        uplink: Rate from a device to its server or edge.
        downlink: Rate back.
        round_trip: Round-trip time of that link.
        wan: Rate between edge and cloud, both ways; hierarchical only.
        wan_round_trip: Round-trip time of that link.
        step_time: Time of one local step on a device.
        dropout_fraction: Probability that a client fails in a round.
    """

    uplink: str = "20 Mbit/s"
    downlink: str = "20 Mbit/s"
    round_trip: str = "5 ms"
    wan: str = "50 Mbit/s"
    wan_round_trip: str = "20 ms"
    step_time: str = "10 ms"
    dropout_fraction: float = 0.0


class JobFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole job.

    Attributes:
        task: What is learned.
        training: How.
        virtual: Costs under the virtual clock.
    """

    task: TaskTable
    training: TrainingTable = TrainingTable()
    virtual: VirtualTable = VirtualTable()

    def algorithm(self) -> FederatedAlgorithm:
        """The algorithm, with a uniform cohort where `clients_per_round` asks for one.

        Returns:
            The parts.

        Raises:
            InputError: If a name or a parameter is unknown.
        """
        given = self.training.algorithm
        table = Spec.of(given).to_dict() if isinstance(given, str) else dict(given)
        if self.training.clients_per_round:
            table = {"select": {"name": "uniform", "cohort_size": self.training.clients_per_round}, **table}
        return with_batch_norm(make_algorithm(table), self.training.batch_norm)

    def protocol(self) -> Protocol:
        """The protocol.

        Returns:
            The value with its roles.

        Raises:
            InputError: If a name or a parameter is unknown.
        """
        return make_protocol(self.training.protocol)


def make_task(source: str, settings: Mapping[str, Any], *, folder: str | Path = ".") -> Task:
    """A task from a job's table.

    Args:
        source: A built-in name or a Python file.
        settings: Passed to the class.
        folder: What a relative file is relative to.

    Returns:
        The task.

    Raises:
        TaskError: If the file cannot be used.
    """
    if source == "digits":
        from edgewise.training.tasks.digits_task import DigitsTask

        return DigitsTask(**settings)
    return load_task(Path(folder) / source, **settings)


def check_job(job: JobFile) -> JobFile:
    """Refuses numbers that no type can refuse.

    Args:
        job: As read.

    Returns:
        The same.

    Raises:
        ConfigError: It names the dotted key.
        InputError: If a quantity is not written as one.
        MisfitError: If the protocol does not carry the algorithm.
    """
    training, virtual = job.training, job.virtual
    least = (
        ("training.rounds", training.rounds, 1),
        ("training.clients_per_round", training.clients_per_round, 0),
        ("training.quorum", training.quorum, 0),
    )
    for key, value, lowest in least:
        if value < lowest:
            raise ConfigError(f"{key} must be at least {lowest}, got {value}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joined again where it is used, and said there
            check_carries(job.protocol(), job.algorithm())
    except MisfitError:
        raise
    except InputError as error:
        raise ConfigError(f"[training] {error.message}") from error
    if not 0 <= virtual.dropout_fraction < 1:
        raise ConfigError(f"virtual.dropout_fraction must be in 0 to 1 (1 excluded), got {virtual.dropout_fraction}.")
    for rate in (virtual.uplink, virtual.downlink, virtual.wan):
        parse_rate(rate)
    times = (virtual.round_trip, virtual.wan_round_trip, virtual.step_time, training.round_deadline or "1 s")
    for time in times:
        parse_duration(time)
    return job
