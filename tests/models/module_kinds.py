"""Kinds of modules, inputs, targets and losses that people bring, each as a small task; and the page that lists them.

`python -m tests.models.module_kinds` trains every kind for one round in every engine, compares it with FedAvg written in
plain torch, exports it, and prints `docs/modules.md`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import RoundNumber
from edgewise.core.seeds import Seeds
from edgewise.models.examples import map_arrays, named
from edgewise.models.export import export_template
from edgewise.models.flat import buffers_of, initial_vector, load_vector, parameters_of, vector_of
from edgewise.models.task import Examples, Task
from edgewise.simulation.costs import FREE
from edgewise.simulation.simulate import SimulationOptions, simulate_rounds
from edgewise.training.algorithms import fed_avg
from edgewise.training.batch_norm import AVERAGED, FROZEN, LOCAL, with_batch_norm
from edgewise.training.client_update import client_seeds
from edgewise.training.local import LocalWork, sgd
from edgewise.training.local.batches import batches

BAR = 1e-5
ENGINES = ("sequential", "stacked", "dense")
SIZES = {"a": 12, "b": 5}


def work(precision: str = "float32") -> LocalWork:
    return sgd(learning_rate=0.05, epochs=2, batch_size=8, precision=precision)


LOOP = work().loop


class Last(nn.Module):
    """Of a sequence's outputs the last; a recurrent layer gives them with its state."""

    def forward(self, x: Any) -> Any:
        return (x[0] if isinstance(x, tuple) else x)[:, -1]


class Called(nn.Module):
    """Named parts and a function of them and the input."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any, **named_inputs: Any) -> Any:
        return self.function(self, *inputs, **named_inputs)


class Pair(NamedTuple):
    kind: Any
    size: Any


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.words, self.end = nn.Linear(6, 8), nn.Embedding(11, 8), nn.Linear(8, 3)

    def forward(self, image: Any, words: Any) -> Any:
        return self.end(torch.relu(self.image(image) + self.words(words).mean(1)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.end = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        return self.end(self.attention(x, x, x, need_weights=False)[0].mean(1))


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))
    net[2].weight = net[0].weight
    return net


def frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    net[0].requires_grad_(False)
    return net


def unused() -> nn.Module:
    net = Called(lambda m, x: m.end(x), end=nn.Linear(6, 3))
    net.spare = nn.Linear(2, 2)
    return net


def over_sequence(layer: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(layer, Last(), nn.Linear(width, 3))


def over_image(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def cross_entropy(outputs: Any, targets: Any) -> Any:
    return functional.cross_entropy(outputs, targets)


def of_exits(outputs: Any, targets: Any) -> Any:
    return functional.cross_entropy(outputs[0], targets) + functional.cross_entropy(outputs[1], targets)


def of_two(outputs: Any, targets: Any) -> Any:
    return functional.cross_entropy(outputs["kind"], targets["kind"]) + functional.mse_loss(
        outputs["size"], targets["size"]
    )


def of_pair(outputs: Any, targets: Any) -> Any:
    return of_two({"kind": outputs.kind, "size": outputs.size}, targets)


def per_pixel(outputs: Any, targets: Any) -> Any:
    return functional.cross_entropy(outputs, targets)


def per_step(outputs: Any, targets: Any) -> Any:
    return functional.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=-100)


def with_class_weights(outputs: Any, targets: Any) -> Any:
    return functional.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 2.0, 3.0]))


def labels(rng: np.random.Generator, n: int) -> Any:
    return rng.integers(0, 3, n)


def two_targets(rng: np.random.Generator, n: int) -> Any:
    return {"kind": rng.integers(0, 3, n), "size": rng.normal(size=(n, 1)).astype("f4")}


@dataclass(frozen=True)
class Kind:
    """One row: the module, what it takes, what it learns, and what is to be known of it."""

    title: str
    model: Callable[[], nn.Module]
    shape: Any = (6,)
    integers: tuple[str, ...] = ()
    targets: Callable[[np.random.Generator, int], Any] = labels
    loss: Callable[[Any, Any], Any] = cross_entropy
    note: str = ""
    objective: str = ""
    batch_norm: str = AVERAGED
    rounds: int = 1
    precision: str = "float32"


SEQUENCE, IMAGE = (5, 6), (2, 6, 6)
PLAIN = nn.Linear
KINDS = (
    Kind("Linear", lambda: nn.Linear(6, 3)),
    Kind(
        "Flatten, Linear, ReLU, …",
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
        objective="cross_entropy",
        note="`objective = \"cross_entropy\"` lets `dense` take it",
    ),
    Kind("Linear without bias", lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))),
    Kind("Linear on [n, t, d]", lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Last(), nn.Linear(8, 3)), SEQUENCE),
    Kind("Conv2d, MaxPool2d", lambda: over_image(nn.ReLU(), nn.MaxPool2d(2)), IMAGE),
    Kind("Conv1d, depthwise", lambda: nn.Sequential(nn.Conv1d(5, 5, 3, groups=5), nn.Flatten(), nn.Linear(20, 3)), SEQUENCE),
    Kind("ConvTranspose2d", lambda: over_image(nn.ConvTranspose2d(4, 4, 2, stride=2)), IMAGE),
    Kind("LSTM", lambda: over_sequence(nn.LSTM(6, 8, batch_first=True), 8), SEQUENCE),
    Kind("LSTM, two layers, both ways", lambda: over_sequence(nn.LSTM(6, 4, 2, batch_first=True, bidirectional=True), 8), SEQUENCE),
    Kind("GRU", lambda: over_sequence(nn.GRU(6, 8, batch_first=True), 8), SEQUENCE),
    Kind("RNN", lambda: over_sequence(nn.RNN(6, 8, batch_first=True), 8), SEQUENCE),
    Kind("Embedding, integer inputs", lambda: nn.Sequential(nn.Embedding(11, 6), nn.Flatten(), nn.Linear(24, 3)), (4,), ("",)),
    Kind("EmbeddingBag, sparse gradients", lambda: nn.Sequential(nn.EmbeddingBag(11, 6, sparse=True), nn.Linear(6, 3)), (4,), ("",)),
    Kind("MultiheadAttention", Attention, SEQUENCE),
    Kind("TransformerEncoderLayer", lambda: over_sequence(nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True), 6), SEQUENCE),
    Kind("BatchNorm, averaged", lambda: over_image(nn.BatchNorm2d(4), nn.ReLU()), IMAGE, note="`batch_norm = \"averaged\"`, the default: running statistics are averaged, too"),
    Kind("BatchNorm, kept local", lambda: over_image(nn.BatchNorm2d(4), nn.ReLU()), IMAGE, note="`batch_norm = \"local\"`, FedBN: each client's own over two rounds", batch_norm=LOCAL, rounds=2),
    Kind("BatchNorm, frozen", lambda: over_image(nn.BatchNorm2d(4), nn.ReLU()), IMAGE, note="`batch_norm = \"frozen\"`: as received, running statistics used in training, nothing sent; two rounds", batch_norm=FROZEN, rounds=2),
    Kind("BatchNorm, frozen in the module", lambda: Called(lambda m, x: m.end(m.norm.eval()(x)), norm=nn.BatchNorm1d(6).requires_grad_(False), end=nn.Linear(6, 3)), note="`.eval()` in forward, `requires_grad_(False)`"),
    Kind("BatchNorm without running statistics", lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.ReLU(), nn.Linear(8, 3)), note="serves with the statistics of the request's batch"),
    Kind("GroupNorm", lambda: over_image(nn.GroupNorm(2, 4)), IMAGE),
    Kind("LayerNorm", lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))),
    Kind("InstanceNorm", lambda: over_image(nn.InstanceNorm2d(4, affine=True)), IMAGE),
    Kind("PReLU", lambda: over_image(nn.PReLU(4)), IMAGE),
    Kind("Dropout", lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 3)), note="masks come from the seed; `stacked` draws others"),
    Kind("tied weights", tied),
    Kind("frozen parameters", frozen),
    Kind("unused parameters", unused, note="travel and are kept"),
    Kind("a parameter of one's own", lambda: Called(lambda m, x: m.end(x) * m.scale.exp(), end=nn.Linear(6, 3), scale=nn.Parameter(torch.ones(1)))),
    Kind("integer buffer", lambda: Called(lambda m, x: m.end(x[:, m.order]), end=nn.Linear(6, 3), order=torch.arange(5, -1, -1))),
    Kind("constant float buffer", lambda: Called(lambda m, x: m.end(x + m.shift), end=nn.Linear(6, 3), shift=torch.linspace(0, 1, 6))),
    Kind("several inputs", TwoInputs, {"image": (6,), "words": (4,)}, ("words",), note="`input_shape` is a dict by forward's arguments"),
    Kind("several exits", lambda: Called(lambda m, x: (m.near(x), m.far(torch.relu(m.body(x)))), near=nn.Linear(6, 3), body=nn.Linear(6, 8), far=nn.Linear(8, 3)), loss=of_exits, note="forward gives a tuple, first exit first"),
    Kind("several outputs and targets, as dicts", lambda: Called(lambda m, x: {"kind": m.kind(x), "size": m.size(x)}, kind=nn.Linear(6, 3), size=nn.Linear(6, 1)), targets=two_targets, loss=of_two, note="the served outputs have the dict's names"),
    Kind("several outputs, as a named tuple", lambda: Called(lambda m, x: Pair(m.kind(x), m.size(x)), kind=nn.Linear(6, 3), size=nn.Linear(6, 1)), targets=two_targets, loss=of_pair, note="the served outputs have its fields' names"),
    Kind("targets: regression", lambda: nn.Linear(6, 2), targets=lambda rng, n: rng.normal(size=(n, 2)).astype("f4"), loss=lambda o, t: functional.mse_loss(o, t)),
    Kind("targets: multi-label", lambda: nn.Linear(6, 4), targets=lambda rng, n: rng.integers(0, 2, (n, 4)).astype("f4"), loss=lambda o, t: functional.binary_cross_entropy_with_logits(o, t)),
    Kind("targets: masks", lambda: nn.Conv2d(2, 3, 3, padding=1), IMAGE, targets=lambda rng, n: rng.integers(0, 3, (n, 6, 6)), loss=per_pixel),
    Kind("targets: sequences", lambda: Called(lambda m, x: m.end(m.rnn(x)[0]), rnn=nn.GRU(6, 8, batch_first=True), end=nn.Linear(8, 3)), SEQUENCE, targets=lambda rng, n: rng.integers(0, 3, (n, 5)), loss=per_step, note="−100 marks steps that do not count"),
    Kind("precision bf16", lambda: over_image(nn.GroupNorm(2, 4), nn.ReLU()), IMAGE, note="`precision = \"bf16\"` of `sgd`, `adam`, `adam_w`: torch's autocast around forward, weights in float32", precision="bf16"),
    Kind("loss that is no mean of examples' losses", lambda: nn.Linear(6, 3), loss=with_class_weights, note="`stacked` needs such a mean"),
)  # fmt: skip


class KindTask(Task):
    """A kind as a task of two clients."""

    name = "kind"

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind, self.input_shape, self.objective = kind, kind.shape, kind.objective

    def model(self) -> Any:
        return self.kind.model()

    def loss(self, outputs: Any, targets: Any) -> Any:
        return self.kind.loss(outputs, targets)

    def clients(self) -> Any:
        return tuple(SIZES)

    def data(self, client: Any) -> Examples:
        rng, n = np.random.default_rng(list(SIZES).index(client)), SIZES[client]
        made = {
            name: rng.integers(0, 11, (n, *shape))
            if name in self.kind.integers
            else rng.normal(size=(n, *shape)).astype("f4")
            for name, shape in named(self.kind.shape).items()
        }
        return Examples.of(made if isinstance(self.kind.shape, dict) else made[""], self.kind.targets(rng, n))


def plain_fed_avg(task: KindTask, start: Any) -> Any:
    """FedAvg by torch alone: an optimiser per client, the mean of all tensors by examples; batch norm as the kind says.

    Args:
        task: What is learned.
        start: float32[d], the model everyone receives first.

    Returns:
        float32[d].
    """
    own: dict[Any, Any] = {}
    for number in range(1, task.kind.rounds + 1):
        start = plain_round(task, start, number, own)
    return start


def norms(module: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}


def plain_round(task: KindTask, start: Any, number: int, own: dict[Any, Any]) -> Any:
    given = load_vector(task.model(), start)
    named_tensors = {**parameters_of(given), **buffers_of(given)}
    is_own = np.concatenate(
        [np.full(t.numel(), n.rpartition(".")[0] in norms(given)) for n, t in named_tensors.items()]
    )
    total, mode = np.zeros(len(start), np.float64), task.kind.batch_norm
    for client in task.clients():
        local, held = copy.deepcopy(given).train(), task.data(client)
        for name, norm in norms(local).items() if mode != AVERAGED else ():
            if mode == FROZEN:
                norm.eval().requires_grad_(False)
            elif client in own:
                norm.load_state_dict(own[client][name])
        optimiser = torch.optim.SGD([p for p in local.parameters() if p.requires_grad], lr=0.05)
        place = client_seeds(0, RoundNumber(number), client).at("local")
        x, y = (map_arrays(lambda a: torch.tensor(np.array(a)), tree) for tree in (held.inputs, held.targets))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(place.at("torch").integer() % 2**63)
            for part in batches(len(held), LOOP, place):
                some = map_arrays(lambda a, part=part: a[part], x)
                with torch.autocast("cpu", torch.bfloat16, enabled=task.kind.precision == "bf16"):
                    outputs = local(**some) if isinstance(some, dict) else local(some)
                outputs = outputs.float() if task.kind.precision == "bf16" else outputs
                optimiser.zero_grad()
                task.loss(outputs, map_arrays(lambda a, part=part: a[part], y)).backward()
                optimiser.step()
        own[client] = {name: copy.deepcopy(norm.state_dict()) for name, norm in norms(local).items()}
        tensors = {**dict(local.named_parameters()), **dict(local.named_buffers())}
        found = np.concatenate([tensors[name].detach().numpy().ravel().astype(np.float64) for name in named_tensors])
        total += len(held) * (np.where(is_own, start, found) if mode == LOCAL else found)
    return (total / sum(SIZES.values())).astype(np.float32)


@dataclass(frozen=True)
class Found:
    """What came of a kind: engines that trained it as plain torch does, the gap of the plain torch engine, an export."""

    engines: tuple[str, ...]
    gap: float
    export: str


def tried(kind: Kind) -> Found:
    """Trains a kind in every engine that takes it, and exports it.

    Args:
        kind: Of the table.

    Returns:
        What came of it.
    """
    task = KindTask(kind)
    wanted = plain_fed_avg(task, initial_vector(task, Seeds(0)))
    gaps = {}
    for engine in ENGINES:
        options = SimulationOptions(engine=engine, costs=FREE)
        try:
            algorithm = with_batch_norm(fed_avg(local=work(kind.precision)), kind.batch_norm)
            run = simulate_rounds(task, algorithm, rounds=kind.rounds, options=options)
        except EdgewiseError:
            continue
        gaps[engine] = float(np.abs(run.vector - wanted).max())
    template, layout = export_template(task)
    export = "yes" if template and layout.size == len(vector_of(task.model())) else "no"
    return Found(tuple(name for name, gap in gaps.items() if gap <= BAR), gaps["sequential"], export)


HEAD = """# Modules that train

<!-- Written by `python -m tests.models.module_kinds`; a test compares it. -->

Each row is a small task that a test trains for a round on two clients and compares with FedAvg written in plain torch (an
optimiser per client, the same batches, dropout by the same seed): the largest difference of any tensor must be at most
{bar:.0e} in float32. What is frozen, by `requires_grad_(False)`, by the rule `frozen` or as what `only` leaves, is sent by nobody. *Engines* are those that hold this bar; one that does not, or refuses the module, is never chosen by
itself, and `sequential`, plain torch, holds every row. *ONNX* says that the model can be served: the export is compared with
the module before the first round. What torch cannot export is refused there with the cure, or trains all the same with
`--weights model.npz` of `edgewise simulate` and `edgewise train`.

| module, targets or loss | engines | ONNX | to know |
|---|---|---|---|
"""


def page() -> str:
    """The text of `docs/modules.md`."""
    rows = [(kind, tried(kind)) for kind in KINDS]
    lines = [f"| {k.title} | {', '.join(f.engines)} | {f.export} | {k.note} |" for k, f in rows]
    return HEAD.format(bar=BAR) + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
