"""Energy: the model is its formula, the counter survives a wrap, every number says how it is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewise.core.errors import InputError
from edgewise.core.ids import Tier
from edgewise.ledger.energy import (
    ENERGY_MODELS,
    Energy,
    EnergyModel,
    ProcessorCounter,
    measured_energy,
    modelled_energy,
    printed,
)

MODEL = EnergyModel(4.0, 2.0, 1e-7, 5e-8)


def test_the_model_is_its_formula() -> None:
    energy = modelled_energy(MODEL, cpu_seconds=2.0, wall_seconds=5.0, sent_bytes=10**6, received_bytes=4 * 10**6)
    assert (energy.compute_j, energy.idle_j) == (8.0, 6.0)
    assert energy.network_j == pytest.approx(0.1 + 0.2)
    assert energy.joules == pytest.approx(14.3)
    assert energy.source == "modelled"


def test_more_processor_than_wall_time_is_no_negative_idling() -> None:
    assert modelled_energy(MODEL, cpu_seconds=5.0, wall_seconds=2.0).idle_j == 0.0


def test_negative_use_is_refused() -> None:
    with pytest.raises(InputError, match=r"energy of -1 CPU s, .* none may be negative"):
        modelled_energy(MODEL, cpu_seconds=-1)


def test_a_sum_of_measured_and_modelled_is_modelled() -> None:
    total = Energy(joules=1.0, source="measured") + Energy(joules=2.0, source="modelled", network_j=2.0)
    assert (total.joules, total.source, total.network_j) == (3.0, "modelled", 2.0)
    assert (Energy(joules=1.0, source="measured") + Energy(joules=1.0, source="measured")).source == "measured"


def test_every_tiers_parameters_are_printed() -> None:
    table = printed(ENERGY_MODELS)
    assert set(table) == set(Tier)
    assert set(table["device"]) == set(EnergyModel.__struct_fields__)


def counter(folder: Path, micro_joules: int) -> ProcessorCounter:
    package = folder / "intel-rapl:0"
    (package / "intel-rapl:0:0").mkdir(parents=True, exist_ok=True)
    (package / "energy_uj").write_text(f"{micro_joules}\n")
    (package / "max_energy_range_uj").write_text("999999\n")
    return ProcessorCounter(folder)


def test_the_counter_measures_between_two_readings(tmp_path: Path) -> None:
    before, after = counter(tmp_path, 250_000).read(), counter(tmp_path, 750_000).read()
    assert measured_energy(before, after) == Energy(joules=0.5, source="measured", compute_j=0.5)


def test_the_counter_survives_a_wrap(tmp_path: Path) -> None:
    before, after = counter(tmp_path, 900_000).read(), counter(tmp_path, 100_000).read()
    energy = measured_energy(before, after)
    assert energy is not None
    assert energy.joules == pytest.approx(0.2)


def test_without_a_counter_nothing_is_measured(tmp_path: Path) -> None:
    assert ProcessorCounter(tmp_path).read() is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert ProcessorCounter(tmp_path).read() is None
    assert measured_energy(None, {"intel-rapl:0": (1, 2)}) is None
