"""The contract of a training algorithm: who takes part, and one or more exchanges. A part is a value; none keeps state.

    server                                                        client
    select ─▶ sends ─▶ downlink.encode ──── sections ───▶ decode ─▶ local (a loop, rules) ─▶ prepare ─▶ uplink.encode
      ▲                                                                                                      │
      └─ step ◀─ finish ◀─ add, each section with its weight ◀─ check ◀─ uplink.decode ◀──── a bundle ───────┘

A round is its exchanges, one after the other with the same cohort: FedAvg has one, DANE two. What travels is a bundle of
named sections (`codecs/bundle.py`); `model`, float32[d], is the usual one. Every part carries the spec that builds it on
another node. What runs on a client is in `local/rule.py`; who runs it is an engine's business (`local/engines/`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.bundle import Bundle
from edgewise.codecs.codec import Codec
from edgewise.core.errors import InputError, MisfitError
from edgewise.core.ids import ClientId, RoundNumber
from edgewise.core.layout import Vector
from edgewise.core.spec import Spec
from edgewise.training.local.rule import LocalWork

State = Any
MODEL = "model"
"""The section that is the model on its way down, and its change on its way up."""


class BiasedUplink(UserWarning):
    """A biased codec was joined without `error_feedback`."""


class ClientRecord(msgspec.Struct, frozen=True):
    """What a server knows of a client from its last update that counted.

    Attributes:
        counted: Round of that update; what the client kept from it stands (`protocols/client_role.py`).
        num_counted: How many of its updates counted in this run.
        metrics: Of that update: `loss`, `seconds` and what the task measured.
    """

    counted: RoundNumber = RoundNumber(0)
    num_counted: int = 0
    metrics: dict[str, float] = {}


class Candidate(msgspec.Struct, frozen=True):
    """A client that could take part now.

    Attributes:
        client: Who.
        num_examples: How many it holds; 0 where that is not known.
        last: What is known from its last counted update; None before.
    """

    client: ClientId
    num_examples: int = 0
    last: ClientRecord | None = None


@dataclass(frozen=True, slots=True)
class Select:
    """Who takes part: `choose(candidates, round, rng) -> cohort`, in the order of `candidates`."""

    spec: Spec
    choose: Callable[[Sequence[Candidate], RoundNumber, np.random.Generator], tuple[ClientId, ...]]


class Kind(StrEnum):
    """What an aggregator must be given.

    A SUM folds in O(d) memory and may be folded in parts under edges; COLLECT reads every update, in slices of d; MAIL
    routes letters between clients (keys, shares of a secret) before a sum.
    """

    SUM = "sum"
    COLLECT = "collect"
    MAIL = "mail"


class Counted(msgspec.Struct, frozen=True):
    """What decides the weight of an update.

    Attributes:
        num_examples: Behind it.
        staleness: Rounds between the model it was made from and the one it is added to.
        metrics: What its client measured.
    """

    num_examples: int
    staleness: int = 0
    metrics: dict[str, float] = {}


@dataclass(frozen=True, slots=True)
class Weigh:
    """How much an update counts: `weight(counted) -> a non-negative real`, e.g. its number of examples.

    Attributes:
        spec: Name and parameters that build it.
        weight: What decides it -> the weight.
        unit: Weights are rounded to multiples of it, so that their sums are exact: 1 where they are whole numbers.
    """

    spec: Spec
    weight: Callable[[Counted], float]
    unit: float = 1.0


@dataclass(frozen=True, slots=True)
class Closed:
    """What a server's rule may know of the exchange that closes.

    Attributes:
        round: Its number, from 1.
        num_counted: Updates that were folded.
        num_clients: All clients of the run, N.
        rng: The seed tree's place of this exchange.
        population: What would decide the weight of each client of the run, for sums over all of them.
    """

    round: RoundNumber
    num_counted: int
    num_clients: int
    rng: np.random.Generator
    population: Sequence[Counted] = ()


EVERYTHING = slice(None)
"""All entries of a section."""


class Aggregator:
    """Folds one section of the updates into one array, independent of their order. Parts are frozen values.

    A SUM is `init`, `add`, `merge` and `finish`; a COLLECT is `finish_slice` alone. What a kind does not do refuses.
    A fold is changed in place (a large model has room for one): go on with what is returned, and not with it after an error.

    Attributes:
        spec: Name and parameters that build it.
        kind: What it must be given.
        weigh: How much each update counts.
        hides_updates: Single updates cannot be read (masks), so nothing that must read them fits.
    """

    spec: Spec
    kind: Kind = Kind.SUM
    weigh: Weigh
    hides_updates: bool = False

    def prepare(self, array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
        """On the client, before coding: clip, mask; as it is for a plain mean."""
        return array

    def check(self, array: NDArray[Any]) -> None:
        """Refuses an update that cannot be folded, before it is folded: InputError with entry and value."""
        finite = np.isfinite(array).ravel()
        if not finite.all():
            index = int(np.argmin(finite))
            raise InputError(
                f"entry {index} of the update is {array.ravel()[index]!s}; a finite number is needed. "
                "The client has diverged: lower its learning rate."
            )

    def units(self, weights: Sequence[float]) -> int:
        """Sum of weights as `weight_of` a fold of them; InputError for one that cannot be counted. SUM only."""
        raise self._misfit("units")

    def init(self, size: int) -> State:
        """The empty fold of arrays with that many entries. SUM only."""
        raise self._misfit("init")

    def add(self, state: State, rows: NDArray[Any], weights: Sequence[float]) -> State:
        """The fold with more updates, float32[updates, size] and the weight of each. SUM only."""
        raise self._misfit("add")

    def merge(self, left: State, right: State) -> State:
        """The fold of disjoint updates. SUM only."""
        raise self._misfit("merge")

    def weight_of(self, state: State) -> int:
        """Sum of the weights in a fold, in whole units. SUM only."""
        raise self._misfit("weight_of")

    def finish(self, state: State, closed: Closed, entries: slice = EVERYTHING) -> NDArray[np.float32]:
        """The result, or these entries of it, float32[size]. SUM only."""
        raise self._misfit("finish")

    def forget(self, state: State, entries: slice) -> None:
        """May free the memory of entries that nobody will ask for again, while a large model is stepped in slices."""

    def finish_slice(self, rows: Vector, weights: Sequence[float], closed: Closed) -> Vector:
        """The result of one slice of entries: float32[updates, width] -> float32[width]; may use `rows`. COLLECT only."""
        raise self._misfit("finish_slice")

    def to_arrays(self, state: State) -> dict[str, NDArray[Any]]:
        """A fold for a frame. SUM only."""
        raise self._misfit("to_arrays")

    def add_arrays(self, state: State, arrays: Mapping[str, NDArray[Any]]) -> State:
        """The fold with one that travelled; FrameRefused for what is not an honest fold of that size. SUM only."""
        raise self._misfit("add_arrays")

    def _misfit(self, what: str) -> MisfitError:
        return MisfitError(
            f"{self.spec} is given its updates by {self.kind}, it has no {what!r}. Drive it by its kind, or take weighted_mean()."
        )


LetterOf = Callable[[Bundle, ClientId, ClientRecord | None], Bundle | None]
"""(server state, client, what is known of it) -> sections for that client alone; None for what all get."""


@dataclass(frozen=True, slots=True)
class ServerRule:
    """What the server does with folded sections.

    Attributes:
        spec: Name and parameters that build it.
        init: model float32[d] -> the other sections of its state.
        step: (state, folded, closed) -> the sections that change, `model` among them where it moves.
        sends: Sections of the state that go down.
        letters: Sections for one client alone, e.g. what it missed.
        is_elementwise: Entry i of each result needs only entry i of `model`-sized arrays, so a large model is stepped in slices.
        needs_same_round: An update says something in the round that it was asked in only, so none may be stale.
    """

    spec: Spec
    init: Callable[[Vector], Bundle]
    step: Callable[[Bundle, Bundle, Closed], Bundle]
    sends: tuple[str, ...] = (MODEL,)
    letters: LetterOf | None = None
    is_elementwise: bool = True
    needs_same_round: bool = False


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question to the cohort and what is made of the answers.

    Attributes:
        local: What a client does.
        server: What is done with the folded sections.
        aggregate: How each section that clients send becomes one.
        uplink: Codec of a section on its way up; one that is not named travels as it is.
        downlink: Codec of a section on its way down.
    """

    local: LocalWork
    server: ServerRule
    aggregate: Mapping[str, Aggregator]
    uplink: Mapping[str, Codec] = field(default_factory=dict)
    downlink: Mapping[str, Codec] = field(default_factory=dict)

    @property
    def spec(self) -> Spec:
        """The specs of all parts."""
        parts: dict[str, Any] = {"local": self.local.spec, "server": self.server.spec}
        for name, table in (("aggregate", self.aggregate), ("uplink", self.uplink), ("downlink", self.downlink)):
            if table:
                parts[name] = {section: part.spec for section, part in table.items()}
        return Spec("exchange", parts)


@dataclass(frozen=True, slots=True)
class FederatedAlgorithm:
    """Who takes part, and the exchanges of a round. An experiment is a `replace` of a part.

    Attributes:
        select: Who takes part.
        exchanges: One after the other, with the same cohort.
    """

    select: Select
    exchanges: tuple[Exchange, ...]

    def __post_init__(self) -> None:
        if not self.exchanges:
            raise MisfitError("a round has at least one exchange. Give one, or start from fed_avg().")
        for exchange in self.exchanges:
            check_fits(exchange)

    @property
    def spec(self) -> Spec:
        """The specs of all parts; their digest names the run."""
        return Spec("federated", {"select": self.select.spec, "exchanges": tuple(e.spec for e in self.exchanges)})


@dataclass(frozen=True, slots=True)
class Misfit:
    """Parts that do not go together.

    Attributes:
        is_met: Whether an exchange has the fault.
        reason: Why, and what to take instead.
    """

    is_met: Callable[[Exchange], bool]
    reason: Callable[[Exchange], str]


def check_fits(exchange: Exchange) -> None:
    """Refuses parts that do not go together, when they are joined.

    Args:
        exchange: As joined.

    Raises:
        MisfitError: With the reason and what to take instead.
    """
    for table, kind in ((exchange.aggregate, Aggregator), (exchange.uplink, Codec), (exchange.downlink, Codec)):
        for section, part in table.items():
            if not isinstance(part, kind):
                raise MisfitError(
                    f"section {section!r} is given {part!r}, a {kind.__name__} is needed. Build it first."
                )
    for misfit in MISFITS:
        if misfit.is_met(exchange):
            raise MisfitError(misfit.reason(exchange))
    for section, codec in exchange.uplink.items():
        if codec.biased:
            warnings.warn(
                f"the uplink {codec} of {section!r} is biased: what it drops is lost for good and training may stall. "
                f"Wrap it: error_feedback({codec}).",
                BiasedUplink,
                stacklevel=4,
            )


def _unfolded(exchange: Exchange) -> list[str]:
    return sorted({s.name for s in exchange.local.sends} ^ set(exchange.aggregate))


def _coded_for_nobody(exchange: Exchange) -> list[str]:
    sent = {section.name for section in exchange.local.sends}
    down = set() if exchange.server.letters is not None else set(exchange.downlink) - set(exchange.server.sends)
    return sorted((set(exchange.uplink) - sent) | down)


def _never_given(exchange: Exchange) -> list[str]:
    return (
        [] if exchange.server.letters is not None else sorted(set(exchange.local.receives) - set(exchange.server.sends))
    )


def _lossy_after_mask(exchange: Exchange) -> list[str]:
    return [
        s
        for s, a in exchange.aggregate.items()
        if a.hides_updates and s in exchange.uplink and not exchange.uplink[s].lossless
    ]


def _reads_masked(exchange: Exchange) -> list[str]:
    return [s for s, a in exchange.aggregate.items() if a.hides_updates and a.kind is Kind.COLLECT]


MISFITS: tuple[Misfit, ...] = (
    Misfit(
        lambda e: bool(_unfolded(e)),
        lambda e: (
            f"sections {_unfolded(e)} are sent and not folded, or folded and not sent. Name an aggregator for each section that {e.local.spec} sends."
        ),
    ),
    Misfit(
        lambda e: bool(_never_given(e)),
        lambda e: (
            f"{e.local.spec} receives {list(e.local.receives)}, {e.server.spec} sends {list(e.server.sends)}: {_never_given(e)} never comes. Let the server's rule send it."
        ),
    ),
    Misfit(
        lambda e: bool(_coded_for_nobody(e)),
        lambda e: (
            f"a codec is given for {_coded_for_nobody(e)}, which does not travel that way: clients send {sorted(s.name for s in e.local.sends)}, the server {sorted(e.server.sends)}. Name one of these."
        ),
    ),
    Misfit(
        lambda e: bool(_reads_masked(e)),
        lambda e: (
            f"{e.aggregate[_reads_masked(e)[0]].spec} reads single updates, masks hide them. Use an aggregator that needs only the sum, e.g. weighted_mean()."
        ),
    ),
    Misfit(
        lambda e: bool(_lossy_after_mask(e)),
        lambda e: (
            f"the uplink codec of {_lossy_after_mask(e)} would round what is masked, and masks would not cancel. Quantise inside the masked sum; the uplink then only packs bits."
        ),
    ),
)
"""What is refused when parts are joined. What a protocol cannot carry is in `protocols/protocol.py`."""
