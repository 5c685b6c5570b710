from __future__ import annotations

import pytest

from edgewise.fleet.node.uplink import Attach, UplinkChanged, Uplinks, step

PRIMARY_GONE = UplinkChanged(0, False)
PRIMARY_BACK = UplinkChanged(0, True)


def folded(uplinks: int, *events: UplinkChanged) -> tuple[Uplinks, tuple[Attach, ...]]:
    state = Uplinks((True,) * uplinks)
    actions: tuple[Attach, ...] = ()
    for event in events:
        state, actions = step(state, event)
    return state, actions


def test_a_node_moves_to_the_first_standby_that_is_there() -> None:
    assert folded(3, PRIMARY_GONE)[1] == (Attach(1, is_return=False),)
    assert folded(3, UplinkChanged(1, False), PRIMARY_GONE)[1] == (Attach(2, is_return=False),)


def test_it_returns_to_the_primary_uplink_when_that_is_back() -> None:
    state, actions = folded(2, PRIMARY_GONE, PRIMARY_BACK)
    assert actions == (Attach(0, is_return=True),)
    assert (state.attached, state.returns) == (0, 1)


@pytest.mark.parametrize("uplinks", [1, 2])
def test_with_nowhere_to_go_it_stays_and_waits(uplinks: int) -> None:
    gone = [UplinkChanged(i, False) for i in reversed(range(uplinks))]
    state, actions = folded(uplinks, *gone)
    assert actions == ()
    assert state.attached == 0


def test_a_standby_that_comes_and_goes_moves_nobody() -> None:
    assert folded(2, UplinkChanged(1, False))[1] == ()
    assert folded(2, UplinkChanged(1, False), UplinkChanged(1, True))[1] == ()
