"""One client's part of an exchange, the same function in the simulator and on a device: that is what makes them twins.

    received, kept ─▶ local work ─▶ prepare ─▶ uplink ─▶ coded bundle, next kept, metrics

What a client keeps is one bundle: the sections of its rules, and the states of its uplink's codecs as
`uplink/SECTION/PLACE`. It replaces the former one when the update counts (`protocols/client_role.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import msgspec
import numpy as np

from edgewise.codecs import state_from_arrays, state_to_arrays
from edgewise.codecs.bundle import Bundle, CodedBundle, encode_bundle
from edgewise.codecs.codec import State
from edgewise.core.errors import EdgewiseError, InputError
from edgewise.core.ids import ClientId, RoundNumber
from edgewise.core.seeds import Seeds
from edgewise.models.task import Examples
from edgewise.training.algorithm import MODEL, Exchange
from edgewise.training.local.engines.engine import LocalEngine, LocalResult, Progress
from edgewise.training.protocols.folding import blob, section_from_blob
from edgewise.training.protocols.letters import WorkOrder
from edgewise.training.protocols.protocol import Blobs

_UPLINK = "uplink"


class ClientUpdate(msgspec.Struct, frozen=True):
    """What a client sends, and what it keeps.

    Attributes:
        coded: The update as it travels.
        kept: Everything the client keeps if the update counts.
        num_examples: Behind it.
        metrics: `loss`, `num_steps`, and what the task measured.
        num_steps: Local steps of each rule.
    """

    coded: CodedBundle
    kept: Bundle
    num_examples: int
    metrics: dict[str, float]
    num_steps: int


def client_seeds(seed: int, round_number: RoundNumber, client: ClientId, exchange: int = 0) -> Seeds:
    """A client's place in the seed tree of a job."""
    place = Seeds(seed).at("round", round_number, "client", client)
    return place.at("exchange", exchange) if exchange else place


def received_bundle(order: WorkOrder, exchange: Exchange, blobs: Blobs, num_entries: int) -> dict[str, Any]:
    """The sections of an order.

    Args:
        order: As it came.
        exchange: Whose downlink coded them.
        blobs: Holds them.
        num_entries: d.

    Returns:
        Arrays by section; vectors are read-only views of the blobs.

    Raises:
        FrameRefused: If a blob is not what its section says.
        InputError: If the model has another size, or a section is missing that local work needs.
    """
    found = {
        section.name: section_from_blob(section, blob(blobs, section.blob.digest), exchange.downlink)
        for section in order.sections
    }
    missing = [name for name in exchange.local.receives if name not in found]
    if missing or (MODEL in found and found[MODEL].shape != (num_entries,)):
        what = f"lacks the sections {missing}" if missing else f"has a model of shape {found[MODEL].shape}"
        raise InputError(
            f"the order of round {order.round} for {order.client!r} {what}; {exchange.local.spec} needs "
            f"{list(exchange.local.receives)}, the model with {num_entries:,} entries. Submit the run with this task's model."
        )
    return found


def keeps_on_clients(exchange: Exchange) -> bool:
    """Whether clients keep something from one of their updates to the next: of a rule, or of a codec.

    Args:
        exchange: Local work, uplink.
    """
    states = (state_to_arrays(codec.init((1,))) for codec in exchange.uplink.values())
    return bool(exchange.local.keeps) or any(states)


def client_update(
    exchange: Exchange,
    engine: LocalEngine,
    received: Bundle,
    kept: Bundle,
    examples: Examples,
    seeds: Seeds,
    *,
    progress: Progress | None = None,
) -> ClientUpdate:
    """Does a client's part of an exchange.

    Args:
        exchange: Local work, aggregators, uplink.
        engine: Does the local work.
        received: Sections from the server.
        kept: What stands from the client's last update that counted; empty at first.
        examples: The client's.
        seeds: As from `client_seeds`.
        progress: Called after every local step.

    Returns:
        What to send and what to keep.
    """
    return client_updates(exchange, engine, received, [kept], [examples], [seeds], progress=progress)[0]


def client_updates(
    exchange: Exchange,
    engine: LocalEngine,
    received: Bundle | Sequence[Bundle],
    kept: Sequence[Bundle],
    examples: Sequence[Examples],
    seeds: Sequence[Seeds],
    *,
    progress: Progress | None = None,
) -> list[ClientUpdate]:
    """Does the part of several clients; the arguments are those of `client_update` for each.

    Args:
        exchange: Local work, aggregators, uplink.
        engine: Does the local work of all together.
        received: Sections from the server, the same for all or of each.
        kept: Of each.
        examples: Of each.
        seeds: Of each.
        progress: Called after every local step.

    Returns:
        One per client, in order.
    """
    made = client_updates_or_causes(exchange, engine, received, kept, examples, seeds, progress=progress)
    for each in made:
        if isinstance(each, EdgewiseError):
            raise each
    return [each for each in made if isinstance(each, ClientUpdate)]


def client_updates_or_causes(
    exchange: Exchange,
    engine: LocalEngine,
    received: Bundle | Sequence[Bundle],
    kept: Sequence[Bundle],
    examples: Sequence[Examples],
    seeds: Sequence[Seeds],
    *,
    progress: Progress | None = None,
) -> list[ClientUpdate | EdgewiseError]:
    """As `client_updates`, but a client whose update cannot be sent, since it diverged, takes none of the others with it.

    Args:
        exchange: As there.
        engine: As there.
        received: As there.
        kept: As there.
        examples: As there.
        seeds: As there.
        progress: As there.

    Returns:
        Of each client, in order, the update, or why there is none.
    """
    places = [place.at("local") for place in seeds]
    results = engine.work_cohort(exchange.local, received, kept, examples, places, progress=progress)
    made: list[ClientUpdate | EdgewiseError] = []
    for result, before, place in zip(results, kept, seeds, strict=True):
        try:
            made.append(_coded(exchange, result, before, place))
        except InputError as error:
            made.append(error if error.fields.get("has_diverged") else _diverged(result) or error)
    return made


def _diverged(result: LocalResult) -> InputError | None:
    """The error of a client whose update is not finite, if that is it; its server need not ask again."""
    return _not_finite("its update has", result.sent)


def _not_finite(what: str, bundle: Bundle) -> InputError | None:
    for name, array in bundle.items():
        if num := int(np.size(array) - np.count_nonzero(np.isfinite(array))):
            text = f"{what} a {name} with {num:,} of {np.size(array):,} entries not finite"
            return InputError(f"{text}. The client has diverged: lower its learning rate.", has_diverged=True)
    return None


def _coded(exchange: Exchange, result: LocalResult, kept: Bundle, seeds: Seeds) -> ClientUpdate:
    """The part after local work: prepare, encode, and what is kept."""
    if (error := _not_finite("what it keeps has", result.kept)) is not None:
        raise error  # a model of its own, which no server would ever see
    prepared = {}
    for name, array in result.sent.items():
        place = ("prepare",) if name == MODEL else ("prepare", name)
        prepared[name] = exchange.aggregate[name].prepare(array, seeds.lazy_rng(*place))
    states = _states(exchange, prepared, kept) if kept else {}
    coded, after = encode_bundle(exchange.uplink, prepared, states, seeds.lazy_rng("uplink"))
    residuals = {
        f"{_UPLINK}/{name}/{place}": array
        for name, state in after.items()
        for place, array in state_to_arrays(state).items()
    }
    metrics = {"loss": result.loss, "num_steps": float(result.num_steps), **result.metrics}
    finite = {name: value for name, value in metrics.items() if isfinite(value)}
    return ClientUpdate(coded, {**kept, **result.kept, **residuals}, result.num_examples, finite, result.num_steps)


def _states(exchange: Exchange, sent: Bundle, kept: Bundle) -> dict[str, State]:
    """The states of the uplink's codecs that were kept, by section."""
    states: dict[str, State] = {}
    for name in sent.keys() & exchange.uplink.keys():
        arrays = _below(kept, f"{_UPLINK}/{name}/")
        if arrays:
            states[name] = state_from_arrays(exchange.uplink[name], sent[name].shape, arrays)
    return states


def _below(kept: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in kept.items() if name.startswith(prefix)}
