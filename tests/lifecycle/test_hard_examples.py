"""Hard examples: bounded, biased towards the uncertain as the paper says, and raw to the end."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.core.ids import RequestId
from edgewise.core.provenance import RAW, origins_of
from edgewise.core.seeds import Seeds
from edgewise.lifecycle.hard_examples import (
    BufferState,
    ExampleDropped,
    HardExample,
    emptied,
    fair_sample,
    hard_examples,
    step,
)


def example(index: int, confidence: float = 0.5, size: int = 16) -> HardExample:
    return HardExample(RequestId(f"r{index}"), np.zeros(size, np.float32), 3, confidence, float(index))


def filled(state: BufferState, confidences: list[float], seed: int = 1) -> BufferState:
    for index, confidence in enumerate(confidences):
        state, _ = step(state, example(index, confidence), Seeds(seed).at("example", index).rng())
    return state


def test_the_number_is_bounded_and_every_drop_is_counted() -> None:
    state = filled(hard_examples(10), [0.5] * 50)
    assert (len(state.examples), state.num_offered, sum(state.dropped.values())) == (10, 50, 40)
    assert set(state.dropped) == {"displaced", "passed over"}


def test_the_bytes_are_bounded() -> None:
    state = filled(hard_examples(100, max_bytes=640), [0.5] * 50)  # 64 bytes each
    assert (len(state.examples), state.size_bytes) == (10, 640)


def test_an_example_larger_than_the_buffer_is_dropped_and_says_so() -> None:
    state, drops = step(hard_examples(10, max_bytes=63), example(0), np.random.default_rng(0))
    assert drops == (ExampleDropped(RequestId("r0"), "too large"),)
    assert (state.examples, dict(state.dropped)) == ((), {"too large": 1})


def test_one_place_goes_to_an_example_in_proportion_to_its_weight() -> None:
    # A-Res: of weights 0.9 and 0.1 for one place, the first is kept with probability 0.9 (1,000 draws: sd 0.0095)
    wins = sum(filled(hard_examples(1), [0.1, 0.9], seed).examples[0].confidence == 0.1 for seed in range(1000))
    assert abs(wins / 1000 - 0.9) < 4 * 0.0095


def test_even_weighting_is_a_fair_sample() -> None:
    wins = sum(
        filled(hard_examples(1, weighting="even"), [0.1, 0.9], seed).examples[0].time == 0 for seed in range(1000)
    )
    assert abs(wins / 1000 - 0.5) < 4 * 0.0158


def test_a_fair_sample_of_a_full_buffer_is_like_the_stream() -> None:
    rng = np.random.default_rng(0)
    stream = rng.uniform(0.0, 0.95, 2000).tolist()
    state = filled(hard_examples(200, 10_000_000), stream)
    fair = [e.confidence for seed in range(20) for e in fair_sample(state, np.random.default_rng(seed))]
    error = np.std(stream) / np.sqrt(len(state.kept) / 4)  # draws share one buffer, whose sure examples are few
    assert (
        abs(np.mean(fair) - np.mean(stream))
        < 3 * error
        < np.mean(stream) - np.mean([e.confidence for e in state.examples])
    )
    few = filled(hard_examples(200, 10_000_000), stream[:100])
    assert fair_sample(few, rng) == few.examples


def test_kept_inputs_are_raw_data() -> None:
    state = filled(hard_examples(5), [0.2] * 8)
    assert all(RAW in origins_of(e.input.tobytes()) for e in state.examples)


def test_the_same_seed_keeps_the_same_examples_in_the_order_seen() -> None:
    confidences = list(np.linspace(0.2, 1.0, 60))
    first, second = (filled(hard_examples(12), confidences) for _ in range(2))
    assert [e.request for e in first.examples] == [e.request for e in second.examples]
    assert [e.time for e in first.examples] == sorted(e.time for e in first.examples)


def test_emptied_keeps_bounds_and_counts() -> None:
    state = emptied(filled(hard_examples(10), [0.5] * 20))
    assert (state.examples, state.num_offered, state.max_examples) == ((), 20, 10)


def test_a_buffer_without_room_is_refused() -> None:
    with pytest.raises(InputError, match="a buffer of 0 examples and 4000000 bytes holds nothing"):
        hard_examples(0)


def test_an_unknown_weighting_is_refused() -> None:
    with pytest.raises(InputError, match=r"weighting 'hardest' is not known. Use 'uncertain' or 'even'"):
        hard_examples(weighting="hardest")
