"""The words of a part: what is written comes back, and builds the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from edgewise.core.errors import InputError
from edgewise.core.spec import Spec, build

WORDS = [
    Spec("int8"),
    Spec("top_k", {"fraction": 0.1}),
    Spec("chain", {"codecs": (Spec("top_k", {"fraction": 0.1}), Spec("zstd"))}),
    Spec("exchange", {"uplink": {"model": Spec("top_k", {"fraction": 0.1}), "control": Spec("int8")}, "steps": 2}),
    Spec("federated", {"exchanges": (Spec("exchange", {"aggregate": {"model": Spec("median")}}),)}),
    Spec("task", {"options": {"depth": {"width": 3}}}),
]
each = pytest.mark.parametrize("spec", WORDS, ids=str)


@each
def test_a_table_of_words_reads_back(spec):
    assert Spec.of(spec.to_dict()) == spec


@each
def test_text_reads_back(spec):
    assert Spec.parse(str(spec)) == spec


@each
def test_equal_words_have_one_digest(spec):
    assert Spec.of(spec.to_dict()).digest == spec.digest


def test_a_table_without_a_name_is_a_table_by_section():
    spec = Spec.of({"name": "exchange", "uplink": {"model": {"name": "top_k", "fraction": 0.1}}})
    assert spec.params["uplink"] == {"model": Spec("top_k", {"fraction": 0.1})}


@dataclass(frozen=True)
class Part:
    words: Any


def pair(first: Part | None = None, table: dict[str, Part] | None = None) -> Part:
    return Part((first, table))


def takes_another_kind(other: Spec | str = "none") -> Part:
    return Part(other)


REGISTRY = {"pair": pair, "one": lambda: Part("one"), "takes_another_kind": takes_another_kind}


def test_nested_words_are_built_first_also_in_tables():
    made = build("parts", REGISTRY, {"name": "pair", "first": {"name": "one"}, "table": {"model": {"name": "one"}}})
    assert made == Part((Part("one"), {"model": Part("one")}))


def test_a_builder_whose_parameter_is_a_spec_builds_it_itself():
    words = {"name": "takes_another_kind", "other": {"name": "elsewhere", "power": 0.5}}
    assert build("parts", REGISTRY, words) == Part(Spec("elsewhere", {"power": 0.5}))


@pytest.mark.parametrize("text", ["f(**{'a': 1})", "f({**a})", "f(x={**a})", "f(1)", "f(x=g)"])
def test_what_is_not_a_parts_text_is_refused(text):
    with pytest.raises(InputError, match="is not a part's text"):
        Spec.parse(text)


def test_a_part_that_wraps_one_of_its_kind_takes_it_by_name() -> None:
    from edgewise.codecs import make_codec

    assert (
        str(make_codec({"name": "error_feedback", "codec": "int8"})) == "error_feedback(codec=int8(rounding='nearest'))"
    )
    assert str(make_codec({"name": "chain", "codecs": ["int8", "zstd"]})).startswith("chain(codecs=[int8(")
    with pytest.raises(InputError, match="codecs has no 'int9'"):
        make_codec({"name": "error_feedback", "codec": "int9"})


@pytest.mark.parametrize("word", ["buffered", {"name": "buffered", "concurrency": 2}])
def test_a_part_whose_parameter_is_missing_says_which(word: object) -> None:
    with pytest.raises(InputError, match=r"^buffered needs .*buffer_size\. Write it as \{ name = 'buffered', .* \}\.$"):
        build("protocols", {"buffered": lambda *, concurrency, buffer_size: None}, word)
