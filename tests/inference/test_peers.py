from __future__ import annotations

import pytest

from edgewise.core.errors import Unreachable
from edgewise.inference.peers import Breaker, Peers, Target


def test_a_failed_node_is_left_alone_for_doubling_deadlines() -> None:
    breaker = Breaker().failed(10.0, 0.5)
    assert (breaker.allows(10.4), breaker.allows(10.5)) == (False, True)
    again = breaker.failed(10.5, 0.5)
    assert (again.allows(11.4), again.allows(11.5)) == (False, True)
    many = Breaker()
    for _ in range(50):
        many = many.failed(0.0, 0.5)
    assert many.retry_at_s == 0.5 * 2**6


def test_a_node_on_trial_gets_one_request_at_a_time() -> None:
    breaker = Breaker().failed(10.0, 0.5)
    assert not breaker.asked(11.0, 0.5).allows(11.1)
    assert Breaker().asked(11.0, 0.5).allows(11.0)
    assert breaker.asked(11.0, 0.5).succeeded() == Breaker()


def test_a_lost_node_is_not_asked_until_its_token_returns() -> None:
    peers = Peers(lambda: 100.0)
    peers.replace([Target(n, None, f"k/{n}") for n in ("a", "b")])  # type: ignore[arg-type]
    peers.failed("a", 5.0)
    peers.lost("a")
    peers.succeeded("a")
    assert (peers.usable(), peers.first) == (("b",), "a")
    peers.returned("a")
    assert peers.usable() == ("a", "b")


def test_what_is_known_of_a_node_survives_a_new_list_and_strangers_are_ignored() -> None:
    peers = Peers(lambda: 100.0)
    target = Target("a", None, "k")  # type: ignore[arg-type]
    peers.replace([target])
    peers.lost("a")
    peers.lost("stranger")
    peers.replace([target])
    assert peers.usable() == ()
    assert not peers.knows("stranger")
    assert peers.target("a") is target


def test_a_node_that_is_no_target_any_more_cannot_be_asked() -> None:
    peers = Peers(lambda: 0.0)
    peers.replace([Target(n, None, f"k/{n}") for n in ("a", "b")])  # type: ignore[arg-type]
    assert peers.target("a").key == "k/a"
    with pytest.raises(Unreachable, match=r"'c' is no longer a node of the next tier. Ask one of \['a', 'b'\]"):
        peers.target("c")
