"""The loop without a person, over a coordinator that answers as one does: events, counts, gates, absences."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from edgewise.core.errors import DeadlineExceeded, InputError, RemoteError, Unreachable
from edgewise.core.ids import Digest, NodeId, Tier
from edgewise.fleet.messages import AdmissionAck, DriftStatus, ExampleCounts, FormerAnswer
from edgewise.fleet.operator import retraining
from edgewise.fleet.operator.retraining import RetrainingLoop
from edgewise.lifecycle.admission import admit
from edgewise.lifecycle.loop import LoopSettings, LoopState
from edgewise.models.version import GateResult, ModelVersion
from edgewise.transport.frame import Frame
from edgewise.transport.keys import Keys

DRIFT = "drift: for 80 requests before the alarm"
PASSED = GateResult(True, 337, 1, 9, -1.5, 2.0, "passed: loses 1 and gains 9")
REFUSED = GateResult(False, 337, 30, 0, 11.0, 2.0, "refused: loses 30")


@dataclass
class World:
    """A fleet of two devices as an operator sees it; `drift` is what the coordinator has found."""

    gate: GateResult | None = PASSED
    drift: str = DRIFT
    kind: str = "covariates"
    harmful: bool = True
    current: int = 1
    away: int = 0
    labelled: int = 25
    rollout: str = ""
    former_version: int = 0
    why: str = ""
    tried: int = 0
    trained: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    hear: Any = None
    is_changing: bool = True

    def __post_init__(self) -> None:
        self.coordinator = NodeId("cloud")
        self.node = SimpleNamespace(keys=Keys("test"), transport=self)

    async def subscribe(self, _: str, handler: Any) -> Any:
        self.hear = handler
        return SimpleNamespace(close=self.closed)

    async def closed(self) -> None:
        self.hear = None

    async def nodes(self) -> Any:
        if self.away:
            self.away -= 1
            raise Unreachable("nobody answers on cloud/control.")
        infos = [SimpleNamespace(node=NodeId(f"device-{i}"), tier=Tier.DEVICE, http_port=80) for i in (1, 2, 3)]
        rows = [SimpleNamespace(info=info, state="alive") for info in infos]
        found = DriftStatus(self.drift, self.kind, self.harmful, "labels, 12 held", version=1)
        return SimpleNamespace(nodes=rows, monitors={"tiny": found, "other": DriftStatus(DRIFT, "", True, version=9)})

    async def example_counts(self, device: NodeId, model: str) -> ExampleCounts:
        assert model == "tiny"
        if device == "device-3":
            raise Unreachable("it is asleep.")
        self.labelled += 5
        return ExampleCounts(100, self.labelled)

    async def versions(self) -> Any:
        known = [SimpleNamespace(number=n, gate=self.gate) for n in range(1, 9)]
        in_force = {"tiny": self.current} if self.current else {}
        return SimpleNamespace(in_force={**in_force, "other": 9}, versions=known, changing=("tiny",) * self.is_changing)

    async def admission(self, version: int, *, force: bool, ungated: bool) -> AdmissionAck:
        found = admit(
            ModelVersion(version, Digest(""), Digest(""), "tiny"), self.current, self.gate,
            missing="there is no held-out data for it", force=force, ungated=ungated,
        )  # fmt: skip
        return AdmissionAck(not found.refusal, found.refusal, self.current, self.gate, found.overridden, found.note)

    async def former(self, model: str, besides: tuple[int, ...]) -> FormerAnswer:
        assert (model, besides) == ("tiny", ())
        self.tried += 1
        return FormerAnswer(self.former_version, "gains 9" if self.former_version else "")

    async def train(self, parent: int) -> tuple[int, str]:
        self.trained.append(parent)
        return len(self.trained) + 1, ""

    async def roll_out(self, version: int, why: str) -> None:
        self.why = why
        if self.rollout:
            raise RemoteError(self.rollout)
        self.current, self.drift = version, ""

    def retrain(self, turns: int = 1, labels: str = "feedback", within_s: float = 20.0, **settings: int) -> LoopState:
        operator: Any = self

        async def run() -> LoopState:
            loop = RetrainingLoop(
                operator, "tiny", LoopSettings(**settings), labels=labels, train=self.train, roll_out=self.roll_out,
                on_note=lambda note: self.notes.append(note.text), on_unreachable=self.causes.append,
            )  # fmt: skip
            return await asyncio.wait_for(loop.run(turns), within_s)

        return asyncio.run(run())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COUNT_EVERY_S", "AGAIN_S", "LOOK_EVERY_S"):
        monkeypatch.setattr(retraining, name, 0.01)


def test_a_drift_that_is_there_already_becomes_a_version_that_serves() -> None:
    world = World()
    state = world.retrain(min_labels=100)
    assert (state.outcomes, state.version, world.trained, world.hear) == (("done",), 2, [1], None)
    assert world.notes == [
        "version 1 serves", DRIFT, "105 of 200 hard examples have labels; training starts from version 1",
        "version 2 is trained", "version 2 passed: loses 1 and gains 9",
        "done: version 2 serves; every device that is there has it",
    ]  # fmt: skip


def test_an_old_version_is_tried_before_anything_is_trained() -> None:
    world = World(former_version=7)
    state = world.retrain()
    assert (state.outcomes, state.version, world.trained) == (("done",), 7, [])
    assert world.why == "tried old version v7 first: drift returned"


def test_a_drift_is_heard_while_it_waits() -> None:
    world = World(drift="")
    subscribe = world.subscribe

    async def later(key: str, handler: Any) -> Any:
        def happens() -> None:
            world.drift = DRIFT
            handler(key, Frame(kind="node_ready"))
            handler(key, Frame(kind="drift_detected"))

        asyncio.get_running_loop().call_later(0.05, happens)
        return await subscribe(key, handler)

    world.subscribe = later  # type: ignore[method-assign]
    assert world.retrain().outcomes == ("done",)


def test_a_change_without_harm_is_told_once_and_nothing_is_trained() -> None:
    world = World(harmful=False)
    nodes, looks = world.nodes, []

    async def looked() -> Any:
        looks.append(len(world.trained))
        world.harmful = len(looks) > 3  # labels come, and prove it
        return await nodes()

    world.nodes = looked  # type: ignore[method-assign]
    assert world.retrain().outcomes == ("done",)
    assert looks[:4] == [0, 0, 0, 0]
    assert world.notes[1:3] == [f"{DRIFT} Waits for labels, 12 held.", DRIFT]


@pytest.mark.parametrize(("kind", "trains"), [("covariates", True), ("class mix", False)])
def test_with_a_teacher_a_change_is_enough_unless_it_is_a_mix_of_classes(kind: str, trains: bool) -> None:
    world = World(harmful=False, kind=kind, labelled=1000)
    if trains:
        assert world.retrain(labels="teacher(reads='features')").outcomes == ("done",)
        return
    with pytest.raises(TimeoutError):
        world.retrain(labels="teacher(reads='features')", within_s=0.5)
    assert world.trained == []


def test_a_coordinator_that_is_away_comes_back() -> None:
    world = World(away=3)
    assert world.retrain().outcomes == ("done",)
    assert world.causes == ["nobody answers on cloud/control."] * 3


def test_a_teacher_labels_whatever_is_held() -> None:
    world = World(labelled=-1000)
    assert world.retrain(labels="teacher(reads='features')", min_labels=150).outcomes == ("done",)
    assert world.tried == 0  # a teacher's labels judge nobody


@pytest.mark.parametrize(
    ("world", "outcome", "said"),
    [
        (World(gate=REFUSED), "refused", "loses 30"),
        (World(gate=None), "refused", "there is no held-out data for it"),
        (World(rollout="p95 tripled on device-1"), "rolled_back", "p95 tripled on device-1"),
    ],
    ids=["refused", "no held-out data", "taken back"],
)
def test_three_turns_without_success_end_it(world: World, outcome: str, said: str) -> None:
    state = world.retrain(turns=0)
    assert state.outcomes == (outcome,) * 3
    assert state.is_given_up
    assert said in world.notes[-1]
    assert (world.current, world.trained) == (1, [1, 1, 1])


def test_errors_of_training_and_rollout_are_causes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: Any) -> Any:
        raise RemoteError("nobody holds data of the task.")

    for name, outcome in (("train", "failed"), ("roll_out", "rolled_back")):
        world = World()
        monkeypatch.setattr(world, name, refused)
        assert world.retrain().outcomes == (outcome,)
        assert "nobody holds data of the task." in world.notes[-1]


@pytest.mark.parametrize(
    ("patience_s", "is_changing", "outcome"),
    [(100.0, True, "done"), (0.05, True, "rolled_back"), (100.0, False, "rolled_back")],
    ids=["it ends", "it takes too long", "the coordinator was started again"],
)
def test_a_rollout_that_takes_longer_than_its_question_is_waited_for_while_somebody_is_at_it(
    patience_s: float, is_changing: bool, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(is_changing=is_changing)

    async def long(version: int, _: str) -> None:
        if is_changing:
            asyncio.get_running_loop().call_later(0.2, setattr, world, "current", version)
        raise DeadlineExceeded("no answer on cloud/control within 120 s.")

    monkeypatch.setattr(retraining, "ROLLOUT_S", patience_s)
    monkeypatch.setattr(world, "roll_out", long)
    assert world.retrain().outcomes == (outcome,)


def test_it_trains_from_what_is_in_force_whoever_put_it_there() -> None:
    world = World()
    versions = world.versions
    asked: list[int] = []

    async def changed() -> Any:
        asked.append(world.current)
        world.current = 7 if len(asked) > 1 else 1
        return await versions()

    world.versions = changed  # type: ignore[method-assign]
    world.retrain()
    assert world.trained == [7]


def test_a_model_that_is_not_in_force_is_not_retrained() -> None:
    with pytest.raises(InputError, match="no model 'tiny' is in force here"):
        World(current=0).retrain()
