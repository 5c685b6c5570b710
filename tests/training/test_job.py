import re

import pytest

from edgewise.core.config import load_toml
from edgewise.core.errors import ConfigError, InputError, MisfitError, TaskError
from edgewise.training.job import JobFile, TaskTable, TrainingTable, VirtualTable, check_job, make_task

TEXT = """
[task]
file = "digits"
settings = { clients = 3 }

[training]
algorithm = { name = "fed_prox", mu = 0.1, uplink = "int8" }
rounds = 4
clients_per_round = 2
"""


def test_a_job_file_reads_as_it_is_written(tmp_path):
    (tmp_path / "job.toml").write_text(TEXT)
    job = check_job(load_toml(tmp_path / "job.toml", JobFile))
    assert job.training.rounds == 4
    assert str(job.algorithm().select.spec) == "uniform(cohort_size=2)"
    assert job.algorithm().exchanges[0].uplink["model"].spec.name == "int8"
    assert make_task(job.task.file, job.task.settings).clients() == ("client-0", "client-1", "client-2")


def test_a_typo_names_file_key_and_the_nearest(tmp_path):
    (tmp_path / "job.toml").write_text(TEXT.replace("rounds = 4", "round = 4"))
    with pytest.raises(ConfigError, match=r"(?s)job.toml.*training.round.*rounds"):
        load_toml(tmp_path / "job.toml", JobFile)


def test_the_algorithms_own_select_wins_over_clients_per_round():
    words = {"name": "fed_avg", "select": "all_clients"}
    job = JobFile(TaskTable("digits"), TrainingTable(words, clients_per_round=2))
    assert job.algorithm().select.spec.name == "all_clients"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TrainingTable(rounds=0), "training.rounds must be at least 1, got 0"),
        (TrainingTable(quorum=-1), "training.quorum must be at least 0, got -1"),
        (TrainingTable(clients_per_round=-2), "training.clients_per_round must be at least 0, got -2"),
    ],
)
def test_numbers_out_of_range_name_their_key(table, message):
    with pytest.raises(ConfigError, match=message):
        check_job(JobFile(TaskTable("digits"), table))


def test_a_dropout_fraction_of_one_is_refused():
    with pytest.raises(ConfigError, match=r"virtual.dropout_fraction must be in 0 to 1 \(1 excluded\), got 1\.0"):
        check_job(JobFile(TaskTable("digits"), virtual=VirtualTable(dropout_fraction=1.0)))


def test_a_quantity_that_is_none_is_refused():
    with pytest.raises(InputError, match="'fast' is not a"):
        check_job(JobFile(TaskTable("digits"), virtual=VirtualTable(uplink="fast")))


def test_a_task_file_is_found_beside_the_job(tmp_path):
    with pytest.raises(TaskError, match=r"own.py' does not exist"):
        make_task("own.py", {}, folder=tmp_path)


def test_a_protocol_is_a_name_or_a_table_and_a_typo_suggests_the_nearest():
    job = JobFile(TaskTable("digits"), TrainingTable(protocol={"name": "hierarchical"}))
    assert check_job(job).protocol().spec.name == "hierarchical"
    with pytest.raises(ConfigError, match=r"\[training\] protocols has no 'hierarchic'. Did you mean 'hierarchical'"):
        check_job(JobFile(TaskTable("digits"), TrainingTable(protocol="hierarchic")))


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ("fed_prox(mu=0.1)", 'Write it as { name = "fed_prox", mu = 0.1 }'),
        ({"name": "fed_avg", "uplink": "top_k(fraction=0.1)"}, 'Write it as { name = "top_k", fraction = 0.1 }'),
        ({"name": "federated", "local": {"name": "sgd"}}, "since 0.2.0 a round is one or more 'exchanges'"),
    ],
)
def test_the_words_of_an_earlier_release_are_answered_with_the_new_ones(algorithm, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_job(JobFile(TaskTable("digits"), TrainingTable(algorithm)))


def test_a_protocol_that_does_not_carry_the_algorithm_is_refused_before_anything_runs():
    words = {"name": "fed_avg", "aggregate": "coordinate_median"}
    with pytest.raises(MisfitError, match="must see every update"):
        check_job(JobFile(TaskTable("digits"), TrainingTable(words, protocol="hierarchical")))
