"""Seeds, units, layouts, specs, clocks, ids, errors and whole files: the small values everyone speaks."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.core import errors
from edgewise.core.clock import VirtualClock, WallClock
from edgewise.core.errors import EdgewiseError, InputError, StoreError, error_context, nearest
from edgewise.core.files import write_atomic
from edgewise.core.ids import TIERS, Tier, digest_of, node_id
from edgewise.core.layout import Layout
from edgewise.core.seeds import Seeds
from edgewise.core.spec import Spec, build
from edgewise.core.units import format_bytes, format_rate, parse_duration, parse_rate, parse_size


def test_places_of_the_seed_tree_differ_and_repeat() -> None:
    names = [("round", 1), ("round", 2), ("round", "1", "client"), ("rou", "nd1"), ("round1",)]
    assert len({Seeds(7).at(*path).integer() for path in names}) == len(names)
    assert Seeds(7).at("a", "b") == Seeds(7).at("a").at("b")
    assert Seeds(7).at("a").integer() != Seeds(8).at("a").integer()


def test_seeds_are_the_same_in_every_process() -> None:
    code = "from edgewise.core.seeds import Seeds; print(Seeds(7).at('a', 1).integer())"
    env = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True, timeout=60)
    assert int(done.stdout) == Seeds(7).at("a", 1).integer()


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [("20 Mbit/s", 2.5e6), ("64 kbit/s", 8e3), ("2.5 MB/s", 2.5e6), ("8bit/s", 1.0), (" 1 Gbit/s ", 1.25e8)],
)
def test_rates_are_decimal_and_in_bytes(text: str, bytes_per_s: float) -> None:
    assert parse_rate(text) == bytes_per_s


@pytest.mark.parametrize("text", ["20 Mbps", "fast", "20", "-1 kbit/s", "1.2.3 kbit/s", ". kbit/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"is not a data rate. Write it like '20 Mbit/s'"):
        parse_rate(text)


def test_sizes_and_durations_are_read() -> None:
    assert (parse_size("16 KiB"), parse_size("200 MB"), parse_size("1.5 kB")) == (16384, 200_000_000, 1500)
    assert (parse_duration("5 ms"), parse_duration("2 s"), parse_duration("10 min")) == (0.005, 2.0, 600.0)
    with pytest.raises(InputError, match=r"is not a size. Write it like '16 KiB'"):
        parse_size("16 kb")
    with pytest.raises(InputError, match=r"is not a duration. Write it like '5 ms'"):
        parse_duration("5")
    for parse in (parse_size, parse_duration):
        with pytest.raises(InputError, match="is not a"):
            parse("1.2.3 s" if parse is parse_duration else "1.2.3 kB")


def test_sizes_and_rates_are_written_with_three_digits() -> None:
    assert [format_bytes(n) for n in (0, 999, 1520, 1.52e6, 3e12)] == [
        "0 B",
        "999 B",
        "1.52 kB",
        "1.52 MB",
        "3000.00 GB",
    ]
    assert [format_rate(n) for n in (1, 8e3, 2.5e6, 1.25e9)] == ["8 bit/s", "64 kbit/s", "20 Mbit/s", "10 Gbit/s"]


TENSORS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([7, 8], np.float32), "s": np.float32(9)}


def test_a_layout_flattens_and_unflattens() -> None:
    layout = Layout.of({name: np.asarray(array) for name, array in TENSORS.items()})
    flat = layout.flatten({name: np.asarray(array) for name, array in TENSORS.items()})
    assert flat.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    again = layout.unflatten(flat)
    assert all(np.array_equal(again[name], TENSORS[name]) for name in TENSORS)
    assert np.shares_memory(again["w"], flat)


def test_a_cohort_unflattens_row_by_row() -> None:
    layout = Layout.of([("w", (2, 3)), ("b", (2,))])
    assert {n: a.shape for n, a in layout.unflatten(np.zeros((5, 8), np.float32)).items()} == {
        "w": (5, 2, 3),
        "b": (5, 2),
    }


def test_layouts_are_named_by_their_content() -> None:
    assert Layout.of([("w", (2, 3))]).digest == Layout.of({"w": np.zeros((2, 3), np.float32)}).digest
    assert Layout.of([("w", (2, 3))]).digest != Layout.of([("w", (3, 2))]).digest


def test_tensors_that_do_not_fit_a_layout_are_refused() -> None:
    layout = Layout.of([("w", (2, 3))])
    with pytest.raises(InputError, match=r"tensor 'w' must have shape \(2, 3\), found \(3, 2\)"):
        layout.flatten({"w": np.zeros((3, 2))})
    with pytest.raises(InputError, match="found nothing"):
        layout.flatten({})
    with pytest.raises(InputError, match="has 6 entries, found 7"):
        layout.unflatten(np.zeros(7, np.float32))


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}", fullmatch=True).filter(lambda k: k != "name"),
        st.integers(-(2**63), 2**63) | st.text(),
    )
)
def test_a_spec_survives_being_written_as_a_table(params: dict[str, int | str]) -> None:
    spec = Spec("part", params)
    assert Spec.of(spec.to_dict()) == spec
    assert Spec.of(spec.to_dict()).digest == spec.digest


def test_nested_specs_are_read_built_and_printed() -> None:
    registry = {"leaf": lambda x=0: ("leaf", x), "pair": lambda *inner: inner, "wrap": lambda inner: [inner]}
    words = {"name": "wrap", "inner": {"name": "pair", "inner": [{"name": "leaf", "x": 1}, {"name": "leaf"}]}}
    assert build("test", registry, words) == [(("leaf", 1), ("leaf", 0))]
    assert str(Spec.of(words)) == "wrap(inner=pair(inner=[leaf(x=1), leaf()]))"
    assert Spec.of(words).to_dict() == {
        "name": "wrap",
        "inner": {"name": "pair", "inner": [{"name": "leaf", "x": 1}, {"name": "leaf"}]},
    }


@pytest.mark.parametrize("text", ["int8", "top_k(fraction=0.1)", "chain(codecs=[top_k(fraction=0.1), cast()])"])
def test_a_spec_is_parsed_from_the_text_it_prints(text: str) -> None:
    assert Spec.parse(str(Spec.parse(text))) == Spec.parse(text)
    assert Spec.of(Spec.parse(text).to_dict()) == Spec.parse(text)


@pytest.mark.parametrize("text", ["top_k(0.1)", "top_k(fraction=x)", "top_k(fraction=0.1", "a.b(c=1)", "(1)"])
def test_text_that_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a part's text"):
        Spec.parse(text)


def test_a_table_is_not_written_as_text() -> None:
    with pytest.raises(InputError, match="is text with parameters, needed is a name or a table"):
        Spec.of("top_k(fraction=0.1)")


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("top_k(fraction=0.1)", '{ name = "top_k", fraction = 0.1 }'),
        (
            "chain(codecs=[int8(rounding='nearest'), sparse(dense=True)])",
            '{ name = "chain", codecs = [{ name = "int8", rounding = "nearest" }, { name = "sparse", dense = true }] }',
        ),
    ],
)
def test_a_part_written_as_text_is_answered_with_the_table_that_builds_it(text: str, table: str) -> None:
    with pytest.raises(InputError) as caught:
        Spec.of(text)
    assert f"Write it as {table}, or" in caught.value.message
    assert Spec.of(tomllib.loads(f"part = {table}")["part"]) == Spec.parse(text)


def test_text_that_is_not_even_a_part_is_answered_with_an_example() -> None:
    with pytest.raises(
        InputError, match=r"Write it as a table with a 'name', e.g. \{ name = \"top_k\", fraction = 0.1 \}"
    ):
        Spec.of("top_k(0.1")


def test_unknown_words_of_a_spec_get_suggestions() -> None:
    registry = {"top_k": lambda fraction: fraction}
    with pytest.raises(InputError, match=r"test has no 'topk'. Did you mean 'top_k'"):
        build("test", registry, "topk")
    with pytest.raises(InputError, match=r"top_k takes no 'fractoin'. Did you mean 'fraction'"):
        build("test", registry, {"name": "top_k", "fractoin": 1})
    with pytest.raises(InputError, match="a part is written as a name or as a table with a 'name', found 3"):
        Spec.of(3)


def test_a_virtual_clock_runs_in_order_of_time_then_of_asking() -> None:
    clock, seen = VirtualClock(), []
    clock.call_at(2.0, lambda: seen.append(("late", clock.now())))
    clock.call_at(
        1.0,
        lambda: (seen.append(("first", clock.now())), clock.call_at(0.0, lambda: seen.append(("past", clock.now())))),
    )
    clock.call_at(1.0, lambda: seen.append(("second", clock.now())))
    clock.run(until_s=1.5)
    assert seen == [("first", 1.0), ("second", 1.0), ("past", 1.0)]
    clock.run()
    assert seen[-1] == ("late", 2.0)


def test_the_wall_clock_never_goes_back() -> None:
    clock = WallClock()
    first = clock.now()
    assert clock.now() >= first


def test_tiers_are_ordered_outward() -> None:
    assert [tier.rank for tier in TIERS] == [0, 1, 2]
    assert TIERS == (Tier.DEVICE, Tier.EDGE, Tier.CLOUD)


@pytest.mark.parametrize("name", ["", "Device", "-x", "a/b", "a*", "ü", "a" * 64, "a b", "a\n"])
def test_names_that_break_keys_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="is not usable in keys and certificates"):
        node_id(name)


def test_a_digest_names_bytes() -> None:
    assert digest_of(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # sha256 of nothing
    assert digest_of(memoryview(b"a")) == digest_of(bytearray(b"a"))


def test_every_error_has_its_own_code_and_is_in_the_tree() -> None:
    classes = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, EdgewiseError)]
    assert len({c.code for c in classes}) == len(classes) <= 25
    assert errors.__doc__ is not None
    for found in classes:
        assert found.__name__ in errors.__doc__
        assert found.code in errors.__doc__


def test_an_error_becomes_an_envelope() -> None:
    assert StoreError("full", path="x").to_dict() == {"code": "store", "message": "full", "fields": {"path": "x"}}


def test_context_adds_fields_and_inner_values_win() -> None:
    with pytest.raises(StoreError, match="full") as caught, error_context(round=3, node="outer"):
        raise StoreError("full", node="inner")
    assert caught.value.fields == {"round": 3, "node": "inner"}


def test_suggestions_are_near_or_a_short_list() -> None:
    assert nearest("devise", ["device", "edge"]) == " Did you mean 'device'?"
    assert (
        nearest("zzz", [f"n{i:02}" for i in range(12)])
        == " Known: n00, n01, n02, n03, n04, n05, n06, n07, n08, n09, …."
    )


def test_a_file_is_replaced_whole_with_its_permissions(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "deep" / "key", b"old", mode=0o600)
    write_atomic(path, b"new", mode=0o600)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o600)
    assert [file.name for file in path.parent.iterdir()] == ["key"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomic(tmp_path / "key", b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as said:
        write_atomic(path, b"new")
    assert said.value.filename == str(path)  # the file that was meant, not a temporary one beside it
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["key"]
