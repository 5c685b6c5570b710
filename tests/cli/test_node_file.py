"""`agent --config node.toml`, `coordinator --config`: what the file says, which word wins, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgewise.cli.main import run
from edgewise.core.ids import Tier
from edgewise.fleet.node.settings import AgentSettings
from edgewise.security.authority import Authority, create_authority

DEVICE = """
tier = "device"
identity = "device-1"
connect = ["tls/10.0.0.5:7447", "tls/10.0.0.6:7447"]
state = "state"
task = "mine.py"
task_settings = { clients = 2 }
active_power_w = 2.5
dilation = 4
http = "127.0.0.1:0"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two certificates, a task and held-out data."""
    folder = tmp_path_factory.mktemp("home")
    create_authority(folder / "ca", "home")
    authority = Authority.load(folder / "ca")
    for name, tier in (("cloud", Tier.CLOUD), ("device-1", Tier.DEVICE)):
        authority.issue(name, tier, folder=folder / name)
    for name in ("mine.py", "digits.npz"):
        (folder / name).touch()
    return folder


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[AgentSettings]:
    """What nodes were started with; they end at once, a real one would run until it is stopped."""
    seen: list[AgentSettings] = []

    async def instead(settings: AgentSettings, *_: Any, **__: Any) -> None:
        seen.append(settings)

    monkeypatch.setattr("edgewise.fleet.agent_process.run_agent", instead)
    return seen


def written(home: Path, text: str) -> str:
    (home / "node.toml").write_text(text)
    return str(home / "node.toml")


def test_a_file_says_it_all_and_its_paths_are_beside_it(home: Path, started: list[AgentSettings]) -> None:
    assert run(["agent", "--config", written(home, DEVICE)]) == 0
    (settings,) = started
    assert (settings.name, settings.tier, settings.fleet) == ("device-1", Tier.DEVICE, "home")
    assert settings.connect == ("tls/10.0.0.5:7447", "tls/10.0.0.6:7447")
    assert (settings.identity, settings.state, settings.task) == tuple(
        str(home / n) for n in ("device-1", "state", "mine.py")
    )
    assert (settings.task_settings, settings.active_power_w, settings.dilation) == ({"clients": 2}, 2.5, 4.0)
    assert settings.raw_may_reach is Tier.DEVICE  # what the file leaves out is as by the options


def test_an_option_that_is_written_wins_over_the_file(home: Path, started: list[AgentSettings]) -> None:
    words = ["--power", "3.0", "--dilation", "1", "--connect", "tls/127.0.0.1:1", "--task-settings", '{"seed": 1}']
    assert run(["agent", "--config", written(home, DEVICE), *words]) == 0
    (settings,) = started
    assert (settings.active_power_w, settings.dilation, settings.task_settings) == (3.0, 1.0, {"seed": 1})
    assert settings.connect == ("tls/127.0.0.1:1",)
    assert settings.http == "127.0.0.1:0"


def test_a_coordinator_has_its_own_defaults(home: Path, started: list[AgentSettings]) -> None:
    text = 'identity = "cloud"\nholdout = "digits=digits.npz"\nmax_models = 3\n'
    assert run(["coordinator", "--config", written(home, text)]) == 0
    assert run(["coordinator", "--config", written(home, text + 'listen = ["tls/127.0.0.1:1"]\n')]) == 0
    first, second = started
    assert (first.coordinator, first.tier, first.listen) == (True, Tier.CLOUD, ("tls/127.0.0.1:7447",))
    assert (first.holdout, first.max_models) == (f"digits={home / 'digits.npz'}", 3)
    assert (second.listen, second.http) == (("tls/127.0.0.1:1",), "")
    assert run(["coordinator", "--config", written(home, text), "--http", "8001"]) == 0
    assert started[-1].http == "8001"


@pytest.mark.parametrize(
    ("verb", "line", "message"),
    [
        ("agent", "conect = []", "node.toml:3 conect is not a setting. Did you mean 'connect'?"),
        ("agent", "power = 3", "node.toml:3 power is not a setting. Did you mean 'active_power_w'?"),
        ("agent", "raw-may-reach = 'edge'", "Did you mean 'raw_may_reach'?"),
        ("agent", "[training]\nrounds = 3", "node.toml:3 training is not a setting. Known: active_power_w, buffer_bytes,"),
        ("agent", "holdout = 'x.npz'", "is not a setting of agent: only a coordinator has held-out data. Take it out."),
        ("agent", "coordinator = true", "is not a setting of agent: the verb says it"),
        ("coordinator", "task = 'digits'", "is not a setting of coordinator: only an agent trains"),
        ("agent", "connect = 'tls/10.0.0.5:7447'", "node.toml:3 connect must be a list, got 'tls/10.0.0.5:7447'."),
        ("agent", "dilation = 0.5", "node.toml:3 dilation must be >= 1.0, got 0.5."),
        ("agent", "max_models = 'many'", "node.toml:3 max_models must be a whole number, got 'many'."),
        ("agent", "scout = 1", "node.toml:3 scout must be true or false, got 1."),
        ("agent", "raw_may_reach = 'egde'", "node.toml:3 raw_may_reach is 'egde'. Did you mean 'edge'?"),
        ("agent", "task = 'none.py'", "node.toml:3 task: there is no file"),
        ("coordinator", "holdout = 'digits=none.npz'", "node.toml:3 holdout: there is no file"),
        ("agent", "connect = [", "is not TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_said_with_its_line(
    home: Path, started: list[AgentSettings], verb: str, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(home, f'tier = "{"device" if verb == "agent" else "cloud"}"\nidentity = "device-1"\n{line}\n')
    assert run([verb, "--config", path]) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith("error [input.config]")
    assert not started


def test_a_missing_file_folder_or_tier_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(home, DEVICE)
    assert run(["agent", "--config", str(home / "nod.toml")]) == 1
    assert "does not exist. Did you mean 'node.toml'?" in capsys.readouterr().err
    assert run(["agent", "--config", written(home, "tier = 'edge'\nidentity = 'device-9'\n")]) == 1
    assert "identity: there is no folder" in capsys.readouterr().err
    assert run(["agent", "--config", written(home, "identity = 'device-1'\n")]) == 2
    assert "say where the node stands: --tier device, edge or cloud, or tier in --config" in capsys.readouterr().err
