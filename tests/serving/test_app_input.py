"""What a student's settings may say of merging and of its registry; nothing is started."""

import pytest

from jobs import distill, serve
from jobs.runtime import ClusterConfig
from jobs.serve import StudentTable
from jobs.task import TaskConfig
from raydistill.core.errors import ConfigError, UnavailableError
from raydistill.serving import app
from tests.moto_bucket import open_bucket


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter_mode": "merged"}, "merged_alias has to say what"),
        ({"adapter_mode": "merged", "merged_alias": "triage/v0001"}, "name an alias"),
        ({"adapter_mode": "merged", "merged_alias": "a/b/c/d"}, "no model path"),
        ({"adapter_mode": "melted"}, "adapter_mode"),
    ],
)
def test_a_student_that_merges_has_to_know_what(settings, message, model_dir, tmp_path):
    with pytest.raises(ConfigError, match=message):
        app.build({"model": model_dir, "storage": str(tmp_path), **settings})


def test_a_registry_that_can_never_be_read_is_refused_before_an_engine_starts(model_dir):
    with open_bucket("there") as uri:
        with pytest.raises(ConfigError, match="student args: storage: s3://not-there/x/models: the bucket does not"):
            app.build({"model": model_dir, "storage": "s3://not-there/x"})
        app._check_registry(f"{uri}/models")


def test_a_registry_that_is_away_is_left_to_the_replica(monkeypatch, caplog):
    def be_away(key, *_, **__):
        raise ConfigError(f"{key}: away") from UnavailableError("away")

    monkeypatch.setattr(app, "check_storage", be_away)
    app._check_registry("s3://bucket/models")
    assert "away A replica waits" in caplog.text


def test_serve_merges_the_tasks_own_final_unless_told(monkeypatch):
    started = []
    monkeypatch.setattr(app, "start", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(serve, "claim_application", lambda *_: ("student", "/"))
    task = TaskConfig(name="triage", prompt="p.md", queries="q.jsonl", teacher_model="m", student_model="m")
    for settings in ({"adapter_mode": "merged"}, {"adapter_mode": "merged", "merged_alias": "triage/next"}, {}):
        table = StudentTable.model_validate(settings)
        serve.start_student(task, table, ClusterConfig.model_validate({}), "http://127.0.0.1:1", "serve")
    assert [arguments[2].merged_alias for arguments in started] == ["triage/final", "triage/next", None]


def test_distill_measures_the_adapter_beside_the_base_whatever_is_served_later():
    table = StudentTable.model_validate({"adapter_mode": "merged", "max_num_seqs": 7})
    measured = distill.student_to_measure(table)
    assert (measured.adapter_mode, measured.max_num_seqs) == ("lora", 7)
