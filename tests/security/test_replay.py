from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.security.replay import WINDOW, ReplayWindow


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=60))
def test_within_the_window_it_takes_what_a_plain_set_takes(frames: list[tuple[int, int]]) -> None:
    window, newest_generation, seen = ReplayWindow(), -1, set()
    for generation, sequence in frames:
        taken = window.take(generation, sequence)
        newest_generation = max(newest_generation, generation)
        assert isinstance(taken, ReplayWindow) == (
            generation == newest_generation and (generation, sequence) not in seen
        )
        if isinstance(taken, ReplayWindow):
            window = taken
            seen.add((generation, sequence))


def test_overtaken_frames_are_taken_once() -> None:
    window = ReplayWindow()
    for sequence in (5, 3, 4):
        taken = window.take(1, sequence)
        assert isinstance(taken, ReplayWindow)
        window = taken
    assert window.take(1, 3) == "replayed"


def test_a_frame_older_than_the_window_is_too_late() -> None:
    window = ReplayWindow().take(1, WINDOW)
    assert isinstance(window, ReplayWindow)
    assert window.take(1, 0) == "too_late"
    assert isinstance(window.take(1, 1), ReplayWindow)


def test_a_window_survives_storage() -> None:
    window = ReplayWindow().take(3, 7)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(window), type=ReplayWindow) == window
