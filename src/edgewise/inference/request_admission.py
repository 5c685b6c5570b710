"""Admission: whether a request can be answered by its deadline, decided when it arrives and not when it is late.

What is queued costs, by what runs of that size took lately; a request that would be late, or make one late that was taken
before, is refused at once and told when there is room. So a device asked for ten times what it can do does what it
can. What alone takes longer than its deadline, or more memory than there is, is refused for its size.
A request that takes long goes to a thread of its own at a lower priority: those in front of whom it would stand are short.

Reference:
    Liu & Layland, "Scheduling Algorithms for Multiprogramming in a Hard-Real-Time Environment", JACM 1973.
    Differs: costs are expected, not bounds, so a share of the deadline is kept back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from edgewise.core.errors import Busy, InputError
from edgewise.inference.prepared import PreparedPlan
from edgewise.inference.worker import Worker

_KEPT_BACK_FRACTION = 0.1
_MAX_KEPT_BACK_S = 0.1
_LONG_S = 0.05
_LONGER = 4
_UNSURE = 2.0
_TRIAL_S = 10.0
_MOST_TRIED = 4.0
_MAX_MEMORY_BYTES = 2**30
_MAX_MEMORY_FRACTION = 0.25


class RequestTooLarge(InputError):
    """A request that takes longer than its deadline on an idle node, or more memory than a node gives to one."""

    code = "input.too_large"


@dataclass(slots=True)
class Lanes:
    """The threads of a device that compute.

    Attributes:
        worker: For all requests.
        make_long: Makes the one for those that take long.
        long: It; None before the first.
    """

    worker: Worker
    make_long: Callable[[], Worker]
    long: Worker | None = None

    def for_long(self) -> Worker:
        """The thread for requests that take long."""
        if self.long is None:
            self.long = self.make_long()
        return self.long


def admit(
    prepared: PreparedPlan, lanes: Lanes, num_entries: int, budget_s: float, tenant: str, *, may_part: bool
) -> tuple[Worker, float]:
    """Takes a request or refuses it.

    Args:
        prepared: The plan it would begin on.
        lanes: Who computes here.
        num_entries: Of what it brings.
        budget_s: Seconds until its deadline.
        tenant: Whose share of the thread is used.
        may_part: Whether it may run beside others of its plan: it has no stream, and nothing learns from it.

    Returns:
        The thread for its stages, and the seconds that they are expected to take.

    Raises:
        RequestTooLarge: If it cannot be done in time even here alone, or takes too much memory.
        Busy: If it, or one taken before, would be late; `retry_after_s` says when it would not be, `plan_is_slow` that it
            always is.
    """
    own_s = prepared.costs.expected_s(num_entries)
    _check_size(prepared, num_entries, own_s, budget_s)
    is_long = may_part and own_s > _LONG_S and num_entries > _LONGER * prepared.usual_entries
    worker = lanes.for_long() if is_long else lanes.worker
    if worker.is_idle:
        return worker, own_s
    due_s = time.monotonic() + budget_s - min(_KEPT_BACK_FRACTION * budget_s, _MAX_KEPT_BACK_S)

    def late_s(more_s: float) -> float:
        return worker.late_by_s(own_s + more_s, due_s, tenant)

    if prepared.stages.handover is None:
        late = late_s(0.0)
    else:
        tail_s = prepared.tail_p99_s()
        late = late_s(0.0 if tail_s is None else tail_s)
        if late > 0.0 and prepared.in_flight < prepared.remote_window.size:
            late = late_s(prepared.usual_remote_s)
    if late > 0.0:
        raise Busy(
            f"the requests taken before need this node until {late:.3f} s after the last moment to begin this one; it is "
            "dropped at once. Come back then, send less, or plan with more nodes.",
            retry_after_s=late,
        )
    return worker, own_s


def _check_size(prepared: PreparedPlan, num_entries: int, own_s: float, budget_s: float) -> None:
    needed = num_entries * prepared.bytes_per_entry
    if needed > memory_bound():
        raise RequestTooLarge(
            f"a request of {num_entries:,} values takes about {needed / 2**20:,.0f} MiB to compute, one may take "
            f"{memory_bound() / 2**20:,.0f} MiB here. Send at most {int(memory_bound() / prepared.bytes_per_entry):,} "
            "values at once."
        )
    sure = 1.0 if prepared.costs.is_sure(num_entries) else _UNSURE
    if own_s <= sure * budget_s:
        return
    now_s = time.monotonic()
    if own_s <= _MOST_TRIED * budget_s and now_s - prepared.tried_s > _TRIAL_S:  # it may be faster by now
        prepared.tried_s = now_s
        return
    what = (
        f"a request of {num_entries:,} values takes about {own_s:.3g} s here, its deadline is {budget_s:.3f} s. "
        "Allow more time (parameters.deadline_ms)"
    )
    if num_entries <= prepared.least_entries:
        raise Busy(f"{what}, or plan with a faster node.", plan_is_slow=True)
    raise RequestTooLarge(f"{what}, or send at most {int(num_entries * budget_s / own_s):,} values at once.")


@cache
def memory_bound() -> int:
    """Bytes that computing one request may take: 1 GiB, or a quarter of a small machine."""
    import psutil

    return int(min(_MAX_MEMORY_BYTES, _MAX_MEMORY_FRACTION * psutil.virtual_memory().total))
