"""What serves where: stage hosts first, then devices stage by stage under the rollout's step; who returns is installed again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from edgewise.core.errors import EdgewiseError, InputError
from edgewise.core.ids import Digest, Epoch, NodeId, RunId, Tier
from edgewise.fleet.membership.watch import Watch
from edgewise.fleet.messages import Ack, BlobRef, Deploy, Health, HealthRequest, InstallOrder, NodeInfo
from edgewise.fleet.messages.serving_messages import deployment_digest
from edgewise.fleet.node.node import Node
from edgewise.fleet.serving.versions import VersionStore
from edgewise.fleet.store.events import EventLog
from edgewise.lifecycle import rollout
from edgewise.lifecycle.health import HealthLimits, HealthObserved

log = logging.getLogger("edgewise.fleet")
LOG = RunId("deployments")
EPOCHS_PER_DEPLOYMENT = 64
"""A deployment's plans take consecutive epochs from a multiple of this."""
HEALTH_EVERY_S = 0.1
INSTALL_TIMEOUT_S = 60.0


class Deployed(msgspec.Struct, frozen=True):
    """A deployment in force."""

    deploy: Deploy
    epoch: Epoch


@dataclass(slots=True)
class Deployments:
    """The coordinator's serving side.

    Attributes:
        node: The coordinator's node.
        versions: The registry.
        watch: Who is there.
        events: The log; what is in force survives the coordinator.
        install_here: Installs on the coordinator's own stage host.
        told: Told what happens, for the event stream.
    """

    node: Node
    versions: VersionStore
    watch: Watch
    events: EventLog
    install_here: Callable[[InstallOrder], Awaitable[Ack]]
    told: Callable[[str, dict[str, object]], None]
    history: list[Deployed] = field(default_factory=list)
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    def replay(self) -> None:
        """Reads what was in force from the log."""
        for entry in self.events.read(LOG):
            if entry.kind == "deployed":
                self.history.append(msgspec.msgpack.decode(entry.payload, type=Deployed))
            elif entry.kind == "withdrawn" and self.history:
                self.history.pop()

    @property
    def current(self) -> Deployed | None:
        """What serves; None before the first deployment."""
        return self.history[-1] if self.history else None

    async def resume(self) -> None:
        """Prepares the coordinator's own stage host after a restart."""
        if self.current is not None:
            await self.install_here(self._order(self.current, self.node.name, Tier.CLOUD))

    async def deploy(self, wanted: Deploy) -> Ack:
        """Serves a version along plans.

        Args:
            wanted: Version, plans, how careful.

        Returns:
            Yes with the nodes that serve it, or why not; a rollout that was halted has been taken back everywhere.
        """
        version = self.versions.get(wanted.version)
        if not wanted.plans:
            raise InputError("a deployment needs at least one plan. Plan first, e.g. with `edgewise plan`.")
        if version.gate is not None and not version.gate.passed:
            return Ack(
                False,
                f"version {version.number} did not pass its gate: {version.gate.reason}",
                {"gate": msgspec.to_builtins(version.gate)},
            )
        gates = [await asyncio.to_thread(self.versions.codec_gate, wanted.version, plan) for plan in wanted.plans]
        for plan, gate in zip(wanted.plans, gates, strict=True):
            if gate is not None:
                self.told("codec_gate", {"plan": plan.name, "passed": gate.passed, "reason": gate.reason})
            if gate is not None and not gate.passed:
                reason = f"plan {plan.name!r} loses too much at its cut: {gate.reason}"
                return Ack(False, reason, {"gate": msgspec.to_builtins(gate)})
        async with self._busy:
            before = self.current
            last = int(before.epoch) if before is not None else 0
            now = Deployed(wanted, Epoch((last // EPOCHS_PER_DEPLOYMENT + 1) * EPOCHS_PER_DEPLOYMENT))
            await self._prepare_hosts(now)
            cause = await self._roll_out(now, before)
            if cause:
                return Ack(False, cause)
            self._record(now)
            self.versions.promote(wanted.version)
        devices = [str(m.node) for m in self.watch.members.alive(Tier.DEVICE)]
        said = [gate.reason for gate in gates if gate is not None]
        return Ack(
            details={"version": wanted.version, "epoch": int(now.epoch), "devices": devices, "codec_gates": said}
        )

    async def rollback(self) -> Ack:
        """Restores what served before.

        Returns:
            Yes with the restored version, or why not.
        """
        async with self._busy:
            if len(self.history) < 2:
                return Ack(
                    False,
                    "there is no former deployment to go back to. Deploy a version with `edgewise plan --deploy`.",
                )
            taken_back, former = self.history[-1], self.history[-2]
            restored = Deployed(
                former.deploy, Epoch((int(taken_back.epoch) // EPOCHS_PER_DEPLOYMENT + 1) * EPOCHS_PER_DEPLOYMENT)
            )
            await self._prepare_hosts(restored)
            await asyncio.gather(*(self._install(m.node, restored) for m in self.watch.members.alive(Tier.DEVICE)))
            for kind, payload in (
                ("withdrawn", b""),
                ("withdrawn", b""),
                ("deployed", msgspec.msgpack.encode(restored)),
            ):
                self.events.append(LOG, kind, payload)
            self.history = [*self.history[:-2], restored]
            self.versions.promote(former.deploy.version)
        self.told("rolled_back", {"from": taken_back.deploy.version, "to": former.deploy.version})
        return Ack(
            details={"version": former.deploy.version, "from": taken_back.deploy.version, "epoch": int(restored.epoch)}
        )

    async def returned(self, info: NodeInfo) -> None:
        """A node is here (again): it gets what is in force."""
        if info.node == self.node.name:
            return
        if info.tier is not Tier.DEVICE:  # hosts keep many plans; what is in force is wanted at once
            await self._catch_up(info)
            return
        async with self._busy:  # after a rollout in progress, which may or may not have reached it
            with contextlib.suppress(EdgewiseError):  # gone again: it is welcomed when it returns
                await self._catch_up(await self.node.info_of(info.node, fresh=True))

    async def _catch_up(self, info: NodeInfo) -> None:
        now = self.current
        if now is not None and info.deployed != self._digest(now):
            await self._install(info.node, now)

    def _digest(self, what: Deployed) -> Digest:
        deploy = what.deploy
        return deployment_digest(deploy.version, self.versions.get(deploy.version).graph, deploy.plans, what.epoch)

    async def _prepare_hosts(self, now: Deployed) -> None:
        await self.install_here(self._order(now, self.node.name, Tier.CLOUD))
        await asyncio.gather(*(self._install(m.node, now) for m in self.watch.members.alive(Tier.EDGE)))

    async def _roll_out(self, now: Deployed, before: Deployed | None) -> str:
        """Drives the rollout's step; returns why it was halted, "" if it completed."""
        devices = [m.node for m in self.watch.members.alive(Tier.DEVICE)]
        if not devices:
            return ""
        stages = [[d] for d in devices] if now.deploy.staged else [devices]
        limits = HealthLimits(min_requests=now.deploy.min_requests, max_latency_ratio=3.0)
        version, previous = now.deploy.version, before.deploy.version if before is not None else 0
        state, actions = rollout.start(version, previous, stages, limits=limits, time=time.monotonic())
        queue: asyncio.Queue[rollout.RolloutEvent] = asyncio.Queue()
        while True:
            for action in actions:
                match action:
                    case rollout.InstallVersion(device, _):
                        self.node.spawn(self._install_and_tell(device, now, version, queue), f"install on {device}")
                    case rollout.RevertVersion(device, _):
                        back = before if before is not None else now
                        self.node.spawn(self._install_and_tell(device, back, previous, queue), f"revert {device}")
                    case rollout.WakeAt(moment):
                        asyncio.get_running_loop().call_later(
                            max(0.0, moment - time.monotonic()), queue.put_nowait, rollout.TimePassed(moment)
                        )
                    case rollout.EndRollout(outcome, cause):
                        self.told("rollout_ended", {"version": version, "outcome": outcome, "cause": cause})
                        return "" if outcome == "completed" else cause
                    case rollout.CompleteRollout():
                        pass  # recorded by the caller, once for log and registry
            if state.phase is rollout.RolloutPhase.WATCHING and queue.empty():
                self.node.spawn(self._observe_health(state, queue), "health")
            state, actions = rollout.step(state, await queue.get())

    async def _install_and_tell(
        self, device: NodeId, what: Deployed, version: int, queue: asyncio.Queue[rollout.RolloutEvent]
    ) -> None:
        cause = await self._install(device, what)
        now = time.monotonic()
        self.told("node_updated", {"node": device, "version": version, "cause": cause})
        queue.put_nowait(
            rollout.NodeUnhealthy(device, cause, now) if cause else rollout.NodeUpdated(device, version, now)
        )

    async def _observe_health(self, state: rollout.RolloutState, queue: asyncio.Queue[rollout.RolloutEvent]) -> None:
        for device in state.present:
            try:
                seen = await self.node.ask(device, "control", HealthRequest(state.version), Health)
            except EdgewiseError:
                queue.put_nowait(rollout.InstalledNodeLost(device, time.monotonic()))
                continue
            queue.put_nowait(
                HealthObserved(
                    device,
                    seen.version,
                    seen.num_requests,
                    seen.num_errors,
                    time.monotonic(),
                    seen.p95_latency_s or None,
                )
            )
        await asyncio.sleep(HEALTH_EVERY_S)
        queue.put_nowait(rollout.TimePassed(time.monotonic()))

    async def _install(self, node: NodeId, what: Deployed) -> str:
        """Installs on one node; returns why not, "" if it did."""
        member = self.watch.members.members[node]
        try:
            order = self._order(what, node, member.tier)
            ack = await self.node.ask(node, "control", order, Ack, timeout_s=INSTALL_TIMEOUT_S)
        except EdgewiseError as error:
            log.warning("%s could not install version %d: %s", node, what.deploy.version, error)
            return str(error)
        return "" if ack.accepted else ack.reason

    def _order(self, what: Deployed, node: NodeId, tier: Tier) -> InstallOrder:
        deploy = what.deploy
        version = self.versions.get(deploy.version)
        alive = {m.node: m for m in self.watch.members.alive()}
        info = alive[node].info if node in alive else None
        holder = self.node.name
        stages: tuple[NodeId, ...] = ()
        edges = sorted(m.node for m in self.watch.members.alive(Tier.EDGE))
        if tier is Tier.EDGE:
            stages = (self.node.name,)
        elif tier is Tier.DEVICE:
            home = info.parent if info is not None else NodeId("")
            holder = home if home in alive else holder
            uses_edge = any(Tier.EDGE in plan.tiers for plan in deploy.plans)
            stages = tuple(sorted(edges, key=lambda e: e != home)) if uses_edge else (self.node.name,)
        return InstallOrder(
            version=deploy.version,
            graph=BlobRef(version.graph, self.versions.graph_size(deploy.version), holder),
            plans=deploy.plans, epoch=what.epoch, stage_nodes=stages, deadline_s=deploy.deadline_s,
            inputs=deploy.inputs if tier is Tier.DEVICE else None,
        )  # fmt: skip

    def _record(self, now: Deployed) -> None:
        self.events.append(LOG, "deployed", msgspec.msgpack.encode(now))
        self.history.append(now)
        self.told(
            "deployed", {"version": now.deploy.version, "revision": int(now.epoch), "plan": now.deploy.plans[0].name}
        )
