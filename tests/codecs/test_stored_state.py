"""A residual survives a restart."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.codecs import chain, error_feedback, int8, payload_to_bytes, state_from_arrays, state_to_arrays, top_k
from edgewise.core.errors import StoreError

CODECS = [
    int8(),
    error_feedback(top_k(0.25)),
    error_feedback(chain(top_k(0.25), int8())),
    chain(error_feedback(int8())),
]


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_a_restored_state_encodes_as_the_kept_one(codec):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 16)).astype(np.float32)
    _, kept = codec.encode(first, codec.init((16,)), rng)
    restored = state_from_arrays(codec, (16,), {n: a.copy() for n, a in state_to_arrays(kept).items()})
    assert payload_to_bytes(codec.encode(second, restored, rng)[0]) == payload_to_bytes(
        codec.encode(second, kept, rng)[0]
    )


def test_the_state_of_another_codec_or_shape_is_refused():
    arrays = state_to_arrays(error_feedback(int8()).init((16,)))
    with pytest.raises(StoreError, match=r"are not the state of int8\(rounding='nearest'\) for shape \(16,\)"):
        state_from_arrays(int8(), (16,), arrays)
    with pytest.raises(StoreError, match=r"for shape \(17,\)"):
        state_from_arrays(error_feedback(int8()), (17,), arrays)
