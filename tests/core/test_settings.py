from __future__ import annotations

from pathlib import Path

import pytest

from edgewise.core.environment import SETTINGS, setting, settings_table
from edgewise.core.errors import ConfigError, InputError


def test_a_setting_comes_from_its_variable_or_its_default() -> None:
    assert setting("state", {"EDGEWISE_STATE": "/var/edgewise"}) == Path("/var/edgewise")
    assert setting("state", {}) == Path.home() / ".edgewise"
    assert setting("data", {}) is None
    assert setting("log", {"EDGEWISE_LOG": "warning"}) == "WARNING"


def test_a_word_that_is_no_choice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"EDGEWISE_LOG is 'warnings'. Did you mean 'WARNING'"):
        setting("log", {"EDGEWISE_LOG": "warnings"})


def test_an_unknown_setting_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"no setting 'stat'. Did you mean 'state'"):
        setting("stat", {})


def test_the_table_names_every_variable() -> None:
    assert all(f"`{known.variable}`" in settings_table() for known in SETTINGS.values())
