"""What serves where, by model: stage hosts first, then devices stage by stage; who returns is installed again.

Each model has a history and at most one rollout of its own, so versions of several models roll out at once. Revisions
count over the whole fleet: one names one plan of one model.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgewise.core.errors import DeadlineExceeded, EdgewiseError, StoreUnavailable, Unreachable
from edgewise.core.ids import Digest, NodeId, Revision, Tier
from edgewise.fleet.membership.watch import Watch
from edgewise.fleet.messages import (
    BLOB,
    SLOWEST_BYTES_PER_S,
    Ack,
    BlobRef,
    Deploy,
    DeployAck,
    Health,
    HealthRequest,
    InForce,
    InstallOrder,
    NodeInfo,
    NodesAt,
    RollbackAck,
    UninstallOrder,
)
from edgewise.fleet.messages.message import Message
from edgewise.fleet.messages.serving_messages import deployment_digest
from edgewise.fleet.node.node import Node
from edgewise.fleet.serving.deploy_checks import check_deployment
from edgewise.fleet.serving.deployment import Deployment, ModelDeployments
from edgewise.fleet.serving.deployment_log import DeploymentLog
from edgewise.fleet.serving.raw_grants import refusal_of
from edgewise.fleet.serving.rollout_driver import RolloutDriver
from edgewise.fleet.serving.versions import VersionStore
from edgewise.fleet.store.events import EventLog
from edgewise.fleet.store.patience import until_taken
from edgewise.lifecycle import rollout
from edgewise.lifecycle.health import HealthLimits
from edgewise.models.model_choice import choose_model
from edgewise.planning.plan import Site
from edgewise.planning.policy import Policy
from edgewise.transport.bulk.fetch import fetch_unsized

log = logging.getLogger("edgewise.fleet")
REVISIONS_PER_DEPLOYMENT = 64
"""A deployment's plans take consecutive revisions from a multiple of this."""
AGAIN_S = {Unreachable.code: 1.0, DeadlineExceeded.code: 1.0, StoreUnavailable.code: 5.0}
"""Between attempts to bring a node up to date that is here, by what came between: it gave no answer, its store took nothing."""
INSTALL_TIMEOUT_S = 60.0
"""For an order to prepare a version, beside the time that its graph may take to get there."""


@dataclass(slots=True)
class Deployments:
    """The coordinator's serving side.

    Attributes:
        node: The coordinator's node.
        versions: The registry.
        watch: Who is there.
        events: The log; what is in force survives the coordinator.
        host_here: Installs on, and uninstalls from, the coordinator's own stage host.
        on_event: Takes what happens, for the event stream.
        models: By name.
        refusals: Why a node that is here does not serve a model in force as it was planned, by node and model.
    """

    node: Node
    versions: VersionStore
    watch: Watch
    events: EventLog
    host_here: Callable[[InstallOrder | UninstallOrder], Awaitable[Ack]]
    on_event: Callable[[str, dict[str, Any]], None]
    models: dict[str, ModelDeployments] = field(default_factory=dict)
    refusals: dict[tuple[NodeId, str], str] = field(default_factory=dict)
    _last_revision: int = 0
    _to_try_again: set[tuple[NodeId, str]] = field(default_factory=set)
    _not_here: set[str] = field(default_factory=set)
    _log: DeploymentLog = field(init=False)

    def __post_init__(self) -> None:
        self._log = DeploymentLog(self.events)

    def replay(self) -> None:
        """Reads what was in force from the log."""
        damaged: list[str] = []
        self._last_revision, models = self._log.read(damaged)
        for name, history in models.items():
            self._of(name).history = history
        for sentence in damaged:
            log.error("%s: what was in force before or after is served: %s", self.node.name, sentence)

    def in_force(self) -> dict[str, Deployment]:
        """What serves, by model."""
        return {name: of.current for name, of in sorted(self.models.items()) if of.current is not None}

    def version_of(self, model: str) -> int:
        """The version of a model that serves; 0 if none does."""
        now = self.models[model].current if model in self.models else None
        return 0 if now is None else now.deploy.version

    def exits_of(self, model: str, revision: int) -> tuple[tuple[int, float], ...]:
        """Exits of a plan in force with their thresholds, in order; () if it is none of the last deployment's."""
        now = self.models[model].current if model in self.models else None
        index = -1 if now is None else revision - int(now.revision)
        if now is None or not 0 <= index < len(now.deploy.plans):
            return ()
        return tuple((gate.index, gate.threshold) for gate in now.deploy.plans[index].exits)

    def serving(self) -> dict[str, list[int]]:
        """Versions by model that must not go: in force, the one to go back to, and on their way."""
        return {name: of.needed for name, of in self.models.items()}

    def changing(self) -> tuple[str, ...]:
        """Models that somebody is deploying, or rolling back; none right after a restart, which goes on with no rollout."""
        return tuple(name for name, of in sorted(self.models.items()) if of.busy.locked())

    async def resume(self) -> None:
        """Prepares the coordinator's own stage host after a restart."""
        for name, now in self.in_force().items():
            try:
                await self.host_here(self._order(now, self.node.name, Tier.CLOUD))
            except EdgewiseError as error:  # the others are served
                log.error("%s cannot serve version %d of %s: %s", self.node.name, now.deploy.version, name, error)
                self._not_here.add(name)

    async def deploy(self, wanted: Deploy) -> DeployAck:
        """Serves a version along plans; other models are not touched.

        Args:
            wanted: Version, plans, how careful.

        Returns:
            Yes with the nodes that serve it, or why not; a rollout that was halted has been taken back everywhere.

        Raises:
            InputError: If there is no such version, it has no plan, or its share is no number above 0.
        """
        version = self.versions.kept(wanted.version)
        of = self._of(version.task)
        async with of.busy:  # what serves must not change between the comparison and the rollout
            before = of.current
            infos = [m.info for m in self.watch.members.alive() if m.info is not None]
            found = await check_deployment(wanted, self.versions, self.version_of(version.task), infos, self.on_event)
            if found.refusal:
                return DeployAck(False, found.refusal)
            overridden = found.admission.overridden
            policy = wanted.policy or (wanted.inputs.policy if wanted.inputs is not None else None)
            policy = policy or (before.policy if before is not None else Policy())
            now = Deployment(version.task, wanted, self._next_revision(), policy, overridden)
            cause = await self._prepare_hosts(now) or await self._roll_out(of, now, before)
            if cause:
                await (self._withdraw_from_hosts(now.model) if before is None else self._prepare_hosts(before))
                return DeployAck(False, cause)
            await self._record(now)
            note = " ".join(filter(None, (wanted.why, overridden)))
            await self._written(lambda: self.versions.promote(wanted.version, note=note))
            if overridden:
                log.warning("version %d of %s serves all the same: %s", version.number, version.task, overridden)
        devices = [str(m.node) for m in self.watch.members.alive(Tier.DEVICE)]
        return DeployAck(
            model=version.task,
            version=wanted.version,
            revision=int(now.revision),
            devices=tuple(devices),
            codec_gates=found.codec_gates,
            overridden=overridden,
            note=found.admission.note,
        )

    async def rollback(self, model: str = "") -> RollbackAck:
        """Restores what served before of a model; a rollout in progress is taken back.

        Args:
            model: Which; "" for the only one there is.

        Returns:
            Yes with the restored version, or why not.

        Raises:
            InputError: If no such model is there, or none is named and there are several.
        """
        name = choose_model([n for n, of in self.models.items() if of.current or of.rollout], model)
        of = self.models[name]
        running, coming = of.rollout, of.rolling_out
        if running is not None and coming is not None:
            running.on_event(rollout.RollbackRequested("an operator asked for the former version", time.monotonic()))
            if await running.ended() == "rolled_back":
                before = of.current
                number, revision = (before.deploy.version, int(before.revision)) if before is not None else (0, 0)
                return RollbackAck(model=name, version=number, revision=revision, taken_back=coming.deploy.version)
        async with of.busy:
            if len(of.history) < 2:
                return RollbackAck(
                    False,
                    f"there is no former deployment of {name!r} to go back to. Deploy a version with `edgewise plan --deploy`.",
                )
            taken_back, former = of.history[-1], of.history[-2]
            restored = Deployment(name, former.deploy, self._next_revision(), former.policy, former.overridden)
            if cause := await self._prepare_hosts(restored):
                return RollbackAck(False, cause)
            await asyncio.gather(*(self._install(m.node, restored) for m in self.watch.members.alive(Tier.DEVICE)))
            await self._written(lambda: self._log.restored(restored))
            of.history = [*of.history[:-2], restored]
            note = f"rolled back from version {taken_back.deploy.version}"
            await self._written(lambda: self.versions.promote(former.deploy.version, note=note))
            await self._written(lambda: self._log.forget_old(self._last_revision, self.models))
        numbers = {"from": taken_back.deploy.version, "to": former.deploy.version}
        self.on_event("rolled_back", {"model": name, **numbers})
        return RollbackAck(
            model=name,
            version=former.deploy.version,
            revision=int(restored.revision),
            taken_back=taken_back.deploy.version,
        )

    async def returned(self, info: NodeInfo) -> None:
        """A node is here (again): it gets all that is in force, and gives up what is not."""
        if info.node == self.node.name:
            return
        names = dict.fromkeys([*self.models, *info.models])
        await asyncio.gather(*(self._returned(info, name) for name in names))

    def proved(self, info: NodeInfo) -> None:
        """A node has said again what it serves: where that is not what is in force, it gets it.

        An order that was given before a restart of this node may be carried out after it, when nobody expects that any more.
        """
        for name, now in self.in_force().items():
            is_settled = not self._of(name).busy.locked() and (info.node, name) not in self.refusals
            there = info.models.get(name)
            if info.node != self.node.name and is_settled and (there is None or there.digest != self._digest(now)):
                self._try_again_in(0.0, info.node, name)

    def lost(self, node: NodeId) -> None:
        """A node is gone: rollouts in progress go on without it."""
        for of in self.models.values():
            if of.rollout is not None:
                of.rollout.on_event(rollout.InstalledNodeLost(node, time.monotonic()))

    async def _returned(self, info: NodeInfo, name: str) -> None:
        of = self._of(name)
        if info.tier is not Tier.DEVICE:  # hosts keep many plans; what is in force is wanted at once
            is_changing = of.busy.locked()
            await self._catch_up(info, name)
            if of.rolling_out is not None:
                await self._install(info.node, of.rolling_out)
            if is_changing or of.busy.locked():  # its hosts may have been chosen, or told, without it
                self._try_again_in(0.0, info.node, name)
            return
        if of.rollout is not None:
            serves = info.models[name].revision if name in info.models else 0
            first = int(serves) // REVISIONS_PER_DEPLOYMENT * REVISIONS_PER_DEPLOYMENT
            of.rollout.on_event(rollout.NodeReturned(info.node, first, time.monotonic()))
        async with of.busy:  # after a rollout in progress, which may or may not have reached it
            await self._catch_up_as_it_is(info.node, name)

    async def _catch_up_as_it_is(self, node: NodeId, name: str) -> None:
        try:
            await self._catch_up(await self.node.info_of(node, fresh=True), name)
        except EdgewiseError as error:  # it is seen before its doors can be found, or is gone again
            self._again_later(node, name, error)

    async def _catch_up(self, info: NodeInfo, name: str) -> None:
        now, there = self._of(name).current, info.models.get(name, InForce(0, Revision(0)))
        if now is not None and name in self._not_here and there.version == now.deploy.version:
            await self._fetch_back(now, info.node)
        cause = ""
        if now is not None and there.digest != self._digest(now):
            cause = await self._install(info.node, now)
        elif now is None and name in info.models and self._of(name).rollout is None:
            await self._uninstall(info.node, name)
        cause = f"does not serve {name}: {cause}" if cause else "" if now is None else self._beyond_its_grant(info, now)
        self.refusals.pop((info.node, name), None)
        self.refusals |= {(info.node, name): cause} if cause else {}

    async def _fetch_back(self, now: Deployment, node: NodeId) -> None:
        """What was damaged on the coordinator's disk is served by others, who have it still."""
        key = self.node.keys.service(node, BLOB)
        try:
            await fetch_unsized(self.node.transport, key, self.versions.get(now.deploy.version).graph, self.node.blobs)
            await self.host_here(self._order(now, self.node.name, Tier.CLOUD))
        except EdgewiseError as error:
            log.warning(
                "%s does not get version %d of %s from %s: %s",
                self.node.name,
                now.deploy.version,
                now.model,
                node,
                error,
            )
            self._again_later(node, now.model, error)
            return
        self._not_here.discard(now.model)
        log.warning(
            "%s serves version %d of %s again, with the graph of %s",
            self.node.name,
            now.deploy.version,
            now.model,
            node,
        )

    def _beyond_its_grant(self, info: NodeInfo, now: Deployment) -> str:
        """Why a node answers by itself instead of along the plan in force; "" if it does not."""
        refusal = refusal_of(now.deploy.plans[:1], info.tier, {info.node: info.raw_may_reach})
        return refusal and f"answers {now.model} by itself: {refusal}"

    def _of(self, model: str) -> ModelDeployments:
        return self.models.setdefault(model, ModelDeployments())

    def _next_revision(self) -> Revision:
        """The first of a deployment's revisions; it is never given twice, also if the rollout is taken back."""
        self._last_revision = (self._last_revision // REVISIONS_PER_DEPLOYMENT + 1) * REVISIONS_PER_DEPLOYMENT
        return self._log.begin(self._last_revision)

    def _digest(self, what: Deployment) -> Digest:
        deploy = what.deploy
        return deployment_digest(deploy.version, self.versions.get(deploy.version).graph, deploy.plans, what.revision)

    async def _prepare_hosts(self, now: Deployment) -> str:
        """Installs on stage hosts; why one refuses, "" if none does. One that is away gets it when it returns."""
        ack = await self.host_here(self._order(now, self.node.name, Tier.CLOUD))
        if not ack.accepted:
            return ack.reason
        self._not_here.discard(now.model)
        edges = [m.node for m in self.watch.members.alive(Tier.EDGE)]
        acks = await asyncio.gather(*(self._ask_to_install(edge, now) for edge in edges))
        return next((ack.reason for ack in acks if isinstance(ack, Ack) and not ack.accepted), "")

    async def _withdraw_from_hosts(self, model: str) -> None:
        await self.host_here(UninstallOrder(model))
        await asyncio.gather(*(self._uninstall(m.node, model) for m in self.watch.members.alive(Tier.EDGE)))

    async def _roll_out(self, of: ModelDeployments, now: Deployment, before: Deployment | None) -> str:
        """Rolls out device by device; returns why it was halted, "" if it completed."""
        if not (devices := [m.node for m in self.watch.members.alive(Tier.DEVICE)]):
            return ""
        stages = _stages(now.deploy, devices)
        limits = HealthLimits(min_requests=now.deploy.min_requests, max_latency_ratio=3.0)
        previous = int(before.revision) if before is not None else 0
        actions = _DeviceActions(self, now, before)
        of.rolling_out = now
        of.rollout = RolloutDriver(int(now.revision), previous, stages, limits, actions, self.node.spawn)
        fields = {"model": now.model, "version": now.deploy.version}
        self.on_event("rollout_begun", {**fields, "devices": devices})
        try:
            cause = await of.rollout.run()
        finally:
            outcome, of.rollout, of.rolling_out = of.rollout.outcome, None, None
        self.on_event("rollout_ended", {**fields, "outcome": outcome, "cause": cause})
        return cause

    async def _install(self, node: NodeId, what: Deployment) -> str:
        """Installs on one node; returns why not, "" if it did."""
        ack = await self._ask_to_install(node, what)
        if isinstance(ack, EdgewiseError):
            return f"{node} could not install version {what.deploy.version}: {ack.message}"
        return "" if ack.accepted else ack.reason

    async def _ask_to_install(self, node: NodeId, what: Deployment) -> Ack | EdgewiseError:
        try:
            order = self._order(what, node, self.watch.members.members[node].tier)
            timeout_s = INSTALL_TIMEOUT_S + order.graph.size_bytes / SLOWEST_BYTES_PER_S
            return await self.node.ask(node, "control", order, Ack, timeout_s=timeout_s)
        except EdgewiseError as error:
            log.warning("%s could not install version %d: %s", node, what.deploy.version, error)
            self._again_later(node, what.model, error)
            return error

    def _again_later(self, node: NodeId, name: str, error: EdgewiseError) -> None:
        wait_s = AGAIN_S.get(str(error.fields.get("remote_code", error.code)))
        if wait_s is not None:
            self._try_again_in(wait_s, node, name)

    def _try_again_in(self, wait_s: float, node: NodeId, name: str) -> None:
        if (node, name) not in self._to_try_again:
            self._to_try_again.add((node, name))
            self.node.spawn(self._try_again(node, name, wait_s), f"install on {node} again")

    async def _try_again(self, node: NodeId, name: str, wait_s: float) -> None:
        """A node that could not be brought up to date gets what is in force after a wait and what changes meanwhile."""
        await asyncio.sleep(wait_s)
        self._to_try_again.discard((node, name))
        async with self._of(name).busy:
            if any(member.node == node for member in self.watch.members.alive()):  # else it is welcomed when it returns
                await self._catch_up_as_it_is(node, name)

    async def _uninstall(self, node: NodeId, model: str) -> str:
        order: Message = UninstallOrder(model)
        try:
            ack = await self.node.ask(node, "control", order, Ack, timeout_s=INSTALL_TIMEOUT_S)
        except EdgewiseError as error:
            log.warning("%s could not uninstall %s: %s", node, model, error)
            self._again_later(node, model, error)
            return str(error)
        return "" if ack.accepted else ack.reason

    def _order(self, what: Deployment, node: NodeId, tier: Tier) -> InstallOrder:
        deploy = what.deploy
        version = self.versions.get(deploy.version)
        alive = {m.node: m for m in self.watch.members.alive()}
        info = alive[node].info if node in alive else None
        holder, near = self.node.name, node
        if tier is Tier.DEVICE:
            near = info.parent if info is not None else NodeId("")
            holder = near if near in alive else holder
        sites = sorted({site for plan in deploy.plans for site in plan.sites}, key=lambda s: (s.tier.rank, s.ordinal))
        nodes_at = [NodesAt(site, self._nodes_at(site, near)) for site in sites if site.tier is not Tier.DEVICE]
        return InstallOrder(
            model=what.model,
            version=deploy.version,
            graph=BlobRef(version.graph, self.versions.graph_size(deploy.version), holder),
            plans=deploy.plans,
            revision=what.revision,
            nodes_at=tuple(nodes_at),
            deadline_s=deploy.deadline_s,
            inputs=deploy.inputs if tier is Tier.DEVICE else None,
            share=deploy.share,
            hints=deploy.hints,
        )

    def _nodes_at(self, site: Site, near: NodeId) -> tuple[NodeId, ...]:
        """Who may stand at a site: of several edges the near one first, at each further site the one that follows it."""
        if site.tier is Tier.CLOUD:
            return (self.node.name,)
        edges = sorted(m.node for m in self.watch.members.alive(Tier.EDGE))
        first = (edges.index(near) if near in edges else 0) + site.ordinal
        return tuple(edges[(first + place) % len(edges)] for place in range(len(edges)))

    async def _written(self, store: Callable[[], object]) -> None:
        """Writes what the fleet does already, as soon as the store takes it: until then the deployment is not over."""

        def met(error: StoreUnavailable) -> None:
            log.warning("%s cannot write down what is in force: %s", self.node.name, error.message)

        await until_taken(store, met)

    async def _record(self, now: Deployment) -> None:
        await self._written(lambda: self._log.deployed(now))
        self._of(now.model).history.append(now)
        await self._written(lambda: self._log.forget_old(self._last_revision, self.models))
        self.node.spare.set()
        fields = {"model": now.model, "version": now.deploy.version, "revision": int(now.revision)}
        self.on_event("deployed", {**fields, "plan": now.deploy.plans[0].name, "overridden": now.overridden})


def _stages(deploy: Deploy, devices: Sequence[NodeId]) -> Sequence[Sequence[NodeId]]:
    each = rollout.stages_by_fraction(devices, deploy.shares) if deploy.shares else [[d] for d in devices]
    return each if deploy.staged else [devices]


@dataclass(frozen=True, slots=True)
class _DeviceActions:
    """What one rollout does on devices."""

    deployments: Deployments
    now: Deployment
    before: Deployment | None

    async def install(self, device: NodeId) -> str:
        cause = await self.deployments._install(device, self.now)
        self._say(device, self.now.deploy.version, cause)
        return cause

    async def revert(self, device: NodeId) -> str:
        before = self.before
        if before is None:
            cause = await self.deployments._uninstall(device, self.now.model)
        else:
            cause = await self.deployments._install(device, before)
        self._say(device, 0 if before is None else before.deploy.version, cause)
        return cause

    async def health(self, device: NodeId) -> Health:
        request = HealthRequest(self.now.model, self.now.revision)
        return await self.deployments.node.ask(device, "control", request, Health)

    def _say(self, device: NodeId, version: int, cause: str) -> None:
        fields = {"model": self.now.model, "node": device, "version": version, "cause": cause}
        self.deployments.on_event("node_updated", fields)
