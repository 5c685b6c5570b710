from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from edgewise.core.config import apply_overrides, convert, key_lines, load_toml, to_toml_dict
from edgewise.core.errors import ConfigError
from edgewise.core.ids import Tier
from edgewise.core.spec import Spec


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 0.1
    name: Literal["sgd", "adam"] = "sgd"
    tier: Tier = Tier.CLOUD


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rate: str
    loss: float | None = None


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    server: Server = Server()
    rounds: int = 1


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    training: Training
    links: tuple[Link, ...] = ()
    classes: dict[str, Link] = {}
    other: Link | None = None

    def __post_init__(self) -> None:
        if self.training.rounds > 100:
            raise ValueError("a job has at most 100 rounds. Start a second job.")


@pytest.fixture
def write(tmp_path: Path) -> object:
    def write(text: str) -> Path:
        path = tmp_path / "job.toml"
        path.write_text(text)
        return path

    return write


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_toml(path, Job, overrides)
    return str(caught.value).replace(str(path), "job.toml")


def test_a_file_becomes_a_value(write) -> None:  # type: ignore[no-untyped-def]
    path = write('[training]\nrounds = 3\n[training.server]\ntier = "edge"\n[[links]]\nrate = "1 MB/s"\n')
    assert load_toml(path, Job) == Job(Training(Server(tier=Tier.EDGE), 3), (Link("1 MB/s"),))


CASES = {
    "a misspelt key": (
        "[training]\nrounds = 3\n\n[training.server]\nlearning_rat = 1\n",
        "job.toml:5 training.server.learning_rat is not a setting. Did you mean 'learning_rate'?",
    ),
    "a misspelt table": (
        "[training]\n[trainign]\n",
        "job.toml:2 trainign is not a setting. Did you mean 'training'?",
    ),
    "a value out of range": (
        "[training.server]\n# why\nlearning_rate = -1\n",
        "job.toml:3 training.server.learning_rate must be > 0.0, got -1.",
    ),
    "a wrong type": ("[training]\nrounds = 'many'\n", "job.toml:2 training.rounds must be a whole number, got 'many'."),
    "a wrong type where none is allowed": (
        "training = {}\nother = {rate = 'x', loss = 'much'}\n",
        "job.toml:2 other.loss must be a number or null, got 'much'.",
    ),
    "a word that is no choice": (
        "[training]\nserver.name = 'adan'\n",
        "job.toml:2 training.server.name is 'adan'. Did you mean 'adam'?",
    ),
    "a tier that is none": (
        "[training.server]\ntier = 'fog'\n",
        "job.toml:2 training.server.tier is 'fog'. Known: cloud, device, edge.",
    ),
    "a value where a table is needed": ("training = 3\n", "job.toml:1 training must be a table, got 3."),
    "a missing key in a list": (
        "[training]\n[[links]]\nrate = 'x'\n[[links]]\nloss = 0.1\n",
        "job.toml:4 links.1.rate is missing; it has no default. Add it.",
    ),
    "a missing key at the top": ("", "job.toml training is missing; it has no default. Add it."),
    "a wrong entry among named ones": (
        "[training]\n[classes.good]\nrate = 'x'\n[classes.bad]\nrate = 3\n",
        "job.toml:5 classes.bad.rate must be text, got 3.",
    ),
    "a rule of the struct": (
        "[training]\nrounds = 101\n",
        "job.toml a job has at most 100 rounds. Start a second job.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_error_names_file_line_key_and_cure(write, name: str) -> None:  # type: ignore[no-untyped-def]
    text, message = CASES[name]
    assert refusal(write(text)) == message


def test_what_is_not_toml_says_where(write) -> None:  # type: ignore[no-untyped-def]
    assert "job.toml is not TOML: " in refusal(write("a = [1,\nb"))


def test_a_missing_file_suggests_a_near_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"jobs.toml does not exist. Give the path"):
        load_toml(tmp_path / "jobs.toml", Job)
    (tmp_path / "job.toml").touch()
    with pytest.raises(ConfigError, match=r"jobs.toml does not exist. Did you mean 'job.toml'"):
        load_toml(tmp_path / "jobs.toml", Job)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*directory"):
        load_toml(tmp_path, Job)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"cannot be read.*Give a TOML file in UTF-8"):
        load_toml(tmp_path / "binary.toml", Job)


def test_overrides_win_and_the_table_stays(write) -> None:  # type: ignore[no-untyped-def]
    table = {"training": {"rounds": 1}, "links": [{"rate": "x"}]}
    changed = apply_overrides(table, ["training.rounds=7", "links.0.rate=2 MB/s", "training.server.name='adam'"])
    assert changed["training"] == {"rounds": 7, "server": {"name": "adam"}}
    assert changed["links"] == [{"rate": "2 MB/s"}]
    assert table == {"training": {"rounds": 1}, "links": [{"rate": "x"}]}
    assert load_toml(write("[training]\nrounds = 1\n"), Job, ["training.rounds=5"]).training.rounds == 5


def test_an_error_of_an_override_does_not_blame_the_file(write) -> None:  # type: ignore[no-untyped-def]
    message = refusal(write("[training]\nrounds = 1\n"), "training.rounds=many")
    assert message == "--set training.rounds must be a whole number, got 'many'."


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("training.rounds", r"'training.rounds' is not of the form key=value"),
        ("=1", "is not of the form key=value"),
        ("training.rounds.deep=1", r"training.rounds has no entry 'deep'"),
        ("links.4.rate=1", "links has no entry '4'"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides({"training": {"rounds": 1}, "links": []}, [word])


def test_a_value_written_as_a_table_reads_back() -> None:
    job = Job(Training(Server(0.5, "adam", Tier.EDGE), 2), (Link("x", 0.1), Link("y")), {"a": Link("z")})
    table = to_toml_dict(job)
    assert table["links"] == [{"rate": "x", "loss": 0.1}, {"rate": "y"}]
    assert convert(table, Job) == job


def test_a_spec_is_written_in_its_own_words() -> None:
    assert to_toml_dict({"uplink": Spec("top_k", {"fraction": 0.1})}) == {"uplink": {"name": "top_k", "fraction": 0.1}}


def test_lines_are_found_under_tables_lists_and_quotes() -> None:
    text = 'a = 1\n[b]\n"c d" = 2\n[[b.e]]\nf = 1\n[[b.e]]\nf.g = [\n1]\n'
    expected = {"a": 1, "b": 2, "b.c d": 3, "b.e.0": 4, "b.e.0.f": 5, "b.e.1": 6, "b.e.1.f.g": 7}
    assert key_lines(text) == expected
