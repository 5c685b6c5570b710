"""A model on a device follows its link: what requests and sparse probes show goes into `replan.step`; a switch is warm.

The round trip of a hand-over less the stages beyond it is `rtt + bytes / rate`, bytes being all on the wire, both ways. The round trip is physics and was
measured when planning, so what changes is read as rate. A plan that does not use the link is probed now and then,
or its recovery would never be seen.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from edgewise.core.errors import EdgewiseError
from edgewise.core.ids import Revision, Tier
from edgewise.fleet.messages import InstallOrder, PlanInputs
from edgewise.fleet.node.probe import Crossing
from edgewise.inference.model_server import ModelServer
from edgewise.inference.observation import Observation
from edgewise.models.graph.graph import Graph
from edgewise.planning.choose import make_search
from edgewise.planning.plan import ENTRY, Plan
from edgewise.planning.replan import replan

PROBE_EVERY_S = 1.0
PROBE_BYTES = 512
LEAST_TRANSFER_S = 2e-4
"""Below this a transfer is as fast as can be told; faster rates are read as this."""


class Replanner:
    """Switches one model of one device among the plans of its install order.

    Args:
        served: Whose plan is switched.
        order: Plans, revisions and what they were made from.
        inputs: The same, `order.inputs`.
        graph: The version's graph.
        probe: Sends a frame of so many bytes to the next tier.
        on_switch: Takes (revision, why).
    """

    def __init__(
        self,
        served: ModelServer,
        order: InstallOrder,
        inputs: PlanInputs,
        graph: Graph,
        probe: Callable[[int], Awaitable[Crossing]],
        on_switch: Callable[[Revision, str], None],
    ) -> None:
        self._served = served
        self._order = order
        self._probe = probe
        self._on_switch = on_switch
        self._link = inputs.links[0]
        search = make_search(
            graph=graph,
            profiles={p.tier: p for p in inputs.profiles},
            links=inputs.links,
            policy=inputs.policy,
            evidence=inputs.evidence,
            codecs=inputs.codecs,
            training_domain=order.plans[0].training_domain,
        )
        settings = replan.Settings(dwell_s=1.0, min_gain_fraction=0.1)
        self._state = replan.start(search, order.plans[0], order.plans, settings, time_s=time.monotonic())
        self.num_switches = 0

    def observed(self, seen: Observation) -> None:
        """Takes one request's cost."""
        sent = [(b, n) for b, n in seen.payload_bytes if b.startswith(f"{Tier.DEVICE}→")]
        if not sent:
            return
        boundary, size_bytes = sent[0]
        between = [s for name, s in seen.stages if name == boundary]
        # A hand-over that was not answered in time took at least as long as the request lived.
        self._transferred(size_bytes + self._beside_payload(seen.exit_index), between[0] if between else seen.latency_s)

    async def keep_probing(self) -> None:
        """Probes the link while the plan in force does not use it; runs until cancelled."""
        while True:
            await asyncio.sleep(PROBE_EVERY_S)
            if not self._state.current.handovers:
                try:
                    probe = await self._probe(PROBE_BYTES)
                except EdgewiseError:
                    continue  # nobody there: presence tells when somebody is
                self._transferred(probe.wire_bytes, probe.seconds)

    def _beside_payload(self, exit_index: int | None) -> int:
        """Bytes on the wire beside a hand-over's payload, its answer's included."""
        plan, table = self._state.current, self._state.search.table
        handover = next(plan.leaving(ENTRY), None)
        named = sum(table.header_bytes(handover.codec, t) for t in handover.tensors) if handover is not None else 0
        answer = next((gate.tensors for gate in plan.exits if gate.index == exit_index), ())
        return named + table.answered_bytes(answer) + self._link.frame_overhead_bytes + self._link.answer_overhead_bytes

    def _transferred(self, wire_bytes: int, seconds: float) -> None:
        taken = max(seconds - self._link.rtt_s, LEAST_TRANSFER_S)
        rate = min(wire_bytes / taken, self._link.bytes_per_s)
        self._state, actions = replan.step(self._state, replan.LinkObserved(time.monotonic(), 0, rate))
        for action in actions:
            index = next(i for i, plan in enumerate(self._order.plans) if _same(plan, action.plan))
            revision = Revision(self._order.revision + index)
            self._served.activate(revision, keep=self._served.revisions)
            self.num_switches += 1
            self._on_switch(revision, action.reason)


def _same(a: Plan, b: Plan) -> bool:
    return (a.stages, a.handovers, a.gates) == (b.stages, b.handovers, b.gates) or a.name == b.name
