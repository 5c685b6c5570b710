"""`plan`: where a user's own model should run, as a value that prints, draws and deploys itself nowhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgewise.api.shown import Drawing, draw, html_table, text_table
from edgewise.core.errors import InputError
from edgewise.core.ids import TIERS, Tier
from edgewise.core.units import format_bytes, parse_duration

if TYPE_CHECKING:
    from edgewise.models.graph.graph import Graph
    from edgewise.models.version import ExitEvidence
    from edgewise.planning.levels import LevelRow, Recommendation
    from edgewise.planning.plan import Plan
    from edgewise.planning.policy import Policy
    from edgewise.planning.profile import Profile
    from edgewise.planning.search import Search
    from edgewise.simulation.emulated.class_speeds import MachineSpeed
    from edgewise.simulation.emulated.fleet_file import FleetFile

T = TypeVar("T")
DOMAIN = "cloud"
"""A model that was trained elsewhere counts as trained in the cloud: levels 0 to 3."""
ONLY_THE_MODEL = "int8 and other variants are no candidates: the profiles that were given are of the model alone"


@dataclass(frozen=True)
class ModelPlan:
    """Where a model should run, and what was compared; every number is predicted from a measured profile.

    Attributes:
        graph: The model.
        search: What the plans were made from: profiles, links, policy, exits.
        levels: The seven levels of edge intelligence, each with its best plan or the reason why it has none.
        recommendation: The plan to use, and why.
        evidence: How the exits behave on the inputs; () for a model that is no classifier of one input.
        accuracy_means: What `accuracy` was counted on.
        assumed: Where policy, speeds and links come from, a sentence each.
        variants: What was searched beside the model: it in int8, and the files that were given.
        int8_bytes: The model in int8, ONNX; empty if it cannot be made.
    """

    graph: Graph
    search: Search
    levels: tuple[LevelRow, ...]
    recommendation: Recommendation
    evidence: tuple[ExitEvidence, ...]
    accuracy_means: str
    assumed: tuple[str, ...]
    variants: tuple[Search, ...] = ()
    int8_bytes: bytes = b""

    @property
    def quality(self) -> str:
        """What the share of right answers is: `accuracy` by labels, or `agreement` with the whole model's own answers."""
        from edgewise.api.own_evidence import quality_of

        return quality_of(self.accuracy_means)

    @property
    def plan(self) -> Plan:
        """The recommended plan."""
        return self.recommendation.plan

    @property
    def collaborate(self) -> bool:
        """Whether more than one node should compute."""
        return self.recommendation.collaborate

    @cached_property
    def ways(self) -> tuple[Plan, ...]:
        """The recommended plan, then what else the policy allows: each variant's and level's best, fastest first."""
        others = [*self.recommendation.others, *(row.plan for row in self.levels if row.plan)]
        found = {plan.name: plan for plan in others if plan.name != self.plan.name}
        return (self.plan, *sorted(found.values(), key=lambda plan: plan.predicted.latency_mean_s))

    def table(self) -> list[dict[str, Any]]:
        """The ways as rows, e.g. for `pandas.DataFrame`."""
        return [
            {
                "plan": plan.name,
                "mean ms": plan.predicted.latency_mean_s * 1e3,
                "p50 ms": plan.predicted.latency_p50_s * 1e3,
                "p95 ms": plan.predicted.latency_p95_s * 1e3,
                "device mJ": plan.predicted.device_energy_j * 1e3,
                "leaves the device": format_bytes(plan.predicted.egress_bytes),
                self.quality: plan.predicted.accuracy if plan.predicted.accuracy >= 0 else float("nan"),
            }
            for plan in self.ways
        ]

    def explain(self) -> str:
        """Where the recommended plan's time goes, path by path."""
        from edgewise.planning.explain import explain

        return "\n".join(explain(self.plan, self.quality))

    def plot(self) -> Drawing:
        """The ways as bars of mean latency, the recommended one on top and in colour, p95 as a mark."""
        return draw(self._paint, (8, 1.4 + 0.42 * len(self.ways)))

    def _paint(self, axes: Any) -> None:
        from edgewise.service.report.plots import LIGHT

        rows, places = self.table(), range(len(self.ways))
        colours = [LIGHT.series[0], *[LIGHT.series[5]] * (len(rows) - 1)]
        axes.barh(places, [row["mean ms"] for row in rows], color=colours, height=0.6, label="mean")
        axes.plot([row["p95 ms"] for row in rows], places, "|", color=LIGHT.ink, markersize=12, label="p95")
        axes.set_yticks(places, [row["plan"] for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel(f"ms per request, predicted; {self._notes[0]}")
        axes.set_title(_broken(f"recommended: {self.recommendation.reason}"))
        for place, row in zip(places, rows, strict=True):
            right = row[self.quality]
            known = f"{self.quality} {right:.3f}, " if right == right else ""
            axes.annotate(
                f"{known}sends {row['leaves the device']}", (max(row["mean ms"], row["p95 ms"]), place), (6, 0),
                textcoords="offset points", va="center", fontsize=8, color=LIGHT.soft,
            )  # fmt: skip
        axes.margins(x=0.35)
        axes.legend(loc="upper right")  # the fastest ways stand on top, so there is room

    def __str__(self) -> str:
        rows = self.table()
        table = text_table(list(rows[0]), [list(row.values()) for row in rows])
        return "\n".join([table, f"recommended: {self.recommendation.reason}", *self._notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = self.table()
        below = "; ".join([f"recommended: {self.recommendation.reason}", *self._notes])
        return html_table(list(rows[0]), [list(row.values()) for row in rows], below)

    @property
    def _notes(self) -> tuple[str, ...]:
        return (f"{self.quality}: {self.accuracy_means.removeprefix(f'{self.quality} ')}", *self.assumed)


def plan(
    model: Any,
    inputs: Any,
    targets: Any | None = None,
    *,
    policy: Policy | Mapping[str, Any] | str | Path | None = None,
    fleet: FleetFile | Mapping[str, Any] | str | Path | None = None,
    profiles: Sequence[str | Path] = (),
    variants: Sequence[str | Path] = (),
    budget: str = "3 s",
    limit: int = 500,
) -> ModelPlan:
    """Plans where a model should run: measures it here, predicts every way to place it, recommends one or says do not split.

    Args:
        model: A path or bytes of ONNX, a `Graph`, what `simulate` returned, or a torch module of one input.
        inputs: Real inputs that the model was not trained on: an array [n, ...], arrays by input name, or the path of an
            npz, an npy or a folder of images.
        targets: Labels, int[n]; None takes those of the npz. Without labels the accuracy is agreement with the whole model.
        policy: What is wanted and allowed: a `Policy`, a table like `{"raw_may_reach": "device"}`, or a TOML file.
        fleet: Speeds, links and powers of the tiers: a table like `{"devices": {"speed": "200 MFLOP/s"}}`, or a TOML file.
            Tiers without a profile of their own are this machine, stretched to its speed.
        profiles: Files that `edgewise profile --out` wrote on other machines.
        variants: ONNX files that may stand in for the model, e.g. a narrower one; the model in int8 always may. They
            count where they are as accurate, and where this machine is measured: a given profile is of the model alone.
        budget: Time to measure this machine for, shared by the model and its variants.
        limit: Use at most so many examples.

    Returns:
        The plan with what it was compared with. It shows itself as a table; `plot()` draws it.

    Raises:
        PlanInfeasible: If no plan meets the policy; it names the limit.
        DataError: If the inputs do not fit the model.
        ConfigError: If the policy or the fleet has an unknown key or a value of the wrong type.
        InputError: If `model` is no model, or a variant has other inputs or outputs.

    Example:
        >>> import numpy as np
        >>> from edgewise import plan
        >>> from edgewise.models.zoo.dense_stack import mlp
        >>> x = np.random.default_rng(0).normal(size=(20, 8)).astype("float32")
        >>> found = plan(mlp((8, 16, 4)), x, budget="0.2 s")
        >>> found.accuracy_means, "plan" in found.table()[0]
        ('agreement with the whole model on 20 examples without labels', True)
    """
    from edgewise.api.given_model import graph_of
    from edgewise.api.own_evidence import evaluate
    from edgewise.api.source import read_source, source_of
    from edgewise.api.stand_ins import StandIns, stand_ins
    from edgewise.api.tier_profiles import links_of, measure_tiers, read_profiles
    from edgewise.inference.evidence import CODECS
    from edgewise.planning.choose import make_search
    from edgewise.planning.levels import plan_levels, recommend
    from edgewise.planning.plan import FLOAT32
    from edgewise.planning.policy import Policy
    from edgewise.simulation.emulated.class_speeds import machine_speed, with_speeds
    from edgewise.simulation.emulated.fleet_file import FleetFile

    wanted, file = _settings(policy, Policy, "policy"), _settings(fleet, FleetFile, "fleet")
    budget_s = parse_duration(budget)
    if isinstance(inputs, str | Path):
        graph = graph_of(model)
        source = read_source(Path(inputs), graph.inputs)
        source = source if targets is None else source_of(source.inputs, targets, graph.inputs)
    else:
        graph = graph_of(model, inputs)
        source = source_of(inputs, targets, graph.inputs)
    source = source.first(limit)
    given = read_profiles([Path(path) for path in profiles])
    here = machine_speed(graph, source.example(0))
    file = with_speeds(file, here)
    others = StandIns(notes=(ONLY_THE_MODEL,)) if given else stand_ins(graph, source, variants)
    share_s = budget_s / (1 + len(others.graphs))
    evidence, meaning = evaluate(graph, source)

    def searched(each: Graph, name: str, rows: tuple[ExitEvidence, ...]) -> Search:
        measured = measure_tiers(each, file, source, share_s, given)
        codecs = CODECS if rows else CODECS[:1]
        return make_search(
            each, measured, links_of(file), wanted, rows, codecs=codecs, training_domain=DOMAIN, variant=name
        )

    search = searched(graph, FLOAT32, evidence)
    also = tuple(searched(each, name, evaluate(each, source, graph)[0]) for name, each in others.graphs.items())
    return ModelPlan(
        graph,
        search,
        tuple(plan_levels(search, {DOMAIN: evidence})),
        recommend(search, also),
        evidence,
        meaning,
        (*_assumed(policy, fleet, file, here, given), *others.notes),
        also,
        others.int8_bytes,
    )


def _settings(given: Any, as_type: type[T], what: str) -> T:
    from edgewise.core.config import convert, load_toml

    if given is None:
        return as_type()
    if isinstance(given, as_type):
        return given
    if isinstance(given, str | Path):
        return load_toml(given, as_type)
    if isinstance(given, Mapping):
        return convert(given, as_type, source=what)
    raise InputError(f"{what}= takes a table, a TOML file or a {as_type.__name__}, found {type(given).__name__}.")


def _assumed(
    policy: Any, fleet: Any, file: FleetFile, here: MachineSpeed, given: Mapping[Tier, Profile]
) -> tuple[str, ...]:
    from edgewise.simulation.emulated.class_speeds import speed_lines

    def told(what: Any) -> str:
        return f"as {what} says" if isinstance(what, str | Path) else "as given"

    by_default = "by default; give a fleet file to say otherwise" if fleet is None else told(fleet)
    speeds = "; ".join(
        f"{tier}: measured on {given[tier].node!r}, {given[tier].fingerprint.machine}" if tier in given else line
        for tier, line in zip(TIERS, speed_lines(file, here), strict=True)
    )
    first, second = file.devices.link, file.edges.link
    return (
        f"policy: {'no limits' if policy is None else told(policy)}",
        f"speeds {by_default}: {speeds}",
        f"links {by_default}: device–edge {first.rate}, {first.rtt}; edge–cloud {second.rate}, {second.rtt}",
    )


def _broken(text: str, width: int = 84) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
