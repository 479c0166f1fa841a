"""`jobs.evaluate` over HTTP: tiny real models behind the token-level protocol on a loopback socket."""

import dataclasses
import json
import shutil
from typing import Any

import pytest

from jobs import evaluate
from jobs.task import TaskConfig, load
from raydistill.client.service import ServiceClient
from raydistill.core.errors import ConfigError, NotFoundError
from raydistill.core.prompts import load_prompt
from raydistill.core.records import TokenRequest
from raydistill.dataset.write import open_dataset
from raydistill.evaluation.config import EvaluateConfig
from raydistill.registry.aliases import move_alias
from raydistill.registry.publish import publish
from raydistill.registry.resolve import resolve
from raydistill.scoring.model import load_model
from raydistill.types import SampledSequence
from tests.client import protocol_server
from tests.client.protocol_server import Answer, State
from tests.dataset.ledger import DRAFT
from tests.drafts import make_tiny_draft
from tests.evaluation.tiny_endpoint import TinyEndpoint
from tests.jsonl import write_jsonl
from tests.tiny import make_tiny_model

TASK = """
[task]
name = "triage"
prompt = "prompt.md"
queries = "queries.jsonl"
teacher_model = "{model}"
student_model = "{model}"
storage = "{root}"
[train]
num_epochs = 1
[evaluate]
num_queries = 4
min_tokens = 40
max_tokens = 10
concurrency = 3
latency_tokens = 2
latency_repeats = 1
throughput_repeats = 1
"""


def answer_with(endpoint: TinyEndpoint) -> Answer:
    """Return what the protocol server answers: the request's body as a row of the endpoint."""

    def answer(body: dict[str, Any], model: str) -> tuple[SampledSequence, str]:
        params = body["sampling_params"]
        row = TokenRequest(
            body["prompt"]["chunks"][0]["tokens"],
            model=model,
            max_tokens=params["max_tokens"],
            temperature=params["temperature"],
            seed=params.get("seed"),
            stop_token_ids=params.get("stop") or [],
            ignore_eos=params.get("stop") == [],
        )
        result = endpoint([row])[0]
        return SampledSequence(result.tokens, result.logprobs, result.finish_reason), result.model

    return answer


@pytest.fixture(scope="module")
def served(model_dir, adapter_dir, tmp_path_factory):
    """A task, a published candidate, and a server of it and its base; yields (folder of the task, URL, endpoint)."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "prompt.md").write_text("Sort the messages of a help desk into teams. " * 4)
    write_jsonl(folder / "queries.jsonl", *({"text": f"Where is parcel {index}?"} for index in range(60)))
    (folder / "task.toml").write_text(TASK.format(model=model_dir, root=folder / "root"))
    digest = load_prompt(folder / "prompt.md").digest
    uri = str(folder / "root" / "models" / "triage")
    version = publish(uri, make_tiny_draft(model_dir, prompt_digest=digest), adapter_dir)
    move_alias(uri, "candidate", version.label)
    endpoint = TinyEndpoint(load_model(model_dir, adapter_dir), f"triage/v0001@{version.content_digest}")
    known = {"raydistill://triage/candidate": "triage/candidate"}
    with protocol_server.serve(State(model_dir, known, answer_with(endpoint))) as url:
        yield folder, url, endpoint


@pytest.fixture
def fresh(served, tmp_path):
    """Storage that holds the candidate and nothing else."""
    shutil.copytree(served[0] / "root" / "models", tmp_path / "fresh" / "models")
    return tmp_path / "fresh"


def test_without_a_reference_or_a_teacher_it_says_what_to_do(served, fresh):
    folder, url, _ = served
    with pytest.raises(NotFoundError, match=r"reference\.json does not exist.*teacher_url="):
        evaluate.main([str(folder / "task.toml"), f"student_url={url}", f"task.storage={fresh}"])


def test_evaluates_over_http_collects_the_reference_once_and_writes_the_report(served, capsys):
    folder, url, endpoint = served
    report = evaluate.main([str(folder / "task.toml"), f"student_url={url}", f"teacher_url={url}"])
    place = folder / "root" / "reports" / "triage"
    assert json.loads((place / "v0001" / "report.json").read_text()) == report
    assert "<svg" in (place / "v0001" / "report.html").read_text()
    assert (place / "reference.json").is_file()
    assert report["model"]["served_as"] == [endpoint.version]
    assert report["kl"]["served_difference"] < 1e-4
    assert report["held_out"]["teacher_tokens"] >= 40
    shown = capsys.readouterr().out
    assert "triage v0001" in shown
    assert f"{place}/v0001/report.html" in shown.replace("\n", "")
    with_p = [row for row in endpoint.rows if len(row.tokens) > 100 and row.temperature == 1]
    assert with_p
    path = place / "v0001" / "report.json"
    facts = {"counts": {"asked": 1, "kept": 1, "dropped": {}}, "seconds": {"train": 9.0, "evaluate": 0.0}}
    path.write_text(json.dumps({**report, **facts}))
    again = evaluate.main([str(folder / "task.toml"), f"student_url={url}", "kl=false"])
    assert again["counts"] == facts["counts"]
    assert again["seconds"]["train"] == 9.0 and again["seconds"]["evaluate"] > 0
    assert [row for row in endpoint.rows if len(row.tokens) > 100 and row.temperature == 1] == with_p


def test_an_unknown_version_is_told_before_the_teacher_is_asked(served, fresh):
    folder, url, endpoint = served
    before = len(endpoint.rows)
    argv = [f"student_url={url}", f"teacher_url={url}", f"task.storage={fresh}", "version=finale"]
    with pytest.raises(NotFoundError, match="no alias 'finale'"):
        evaluate.main([str(folder / "task.toml"), *argv])
    assert len(endpoint.rows) == before and not (fresh / "reports").exists()


def test_counts_and_seconds_of_a_version_are_those_of_its_last_report_else_of_its_dataset(served, fresh, caplog):
    _, task = _read(served[0], f"task.storage={fresh}")
    version = dataclasses.replace(resolve(str(fresh / "models/triage"), "v0001"), dataset_fingerprint="f")
    assert evaluate.read_facts(task, version) == {}
    counts = {"asked": 3, "kept": 2, "dropped": {"empty": 1}}
    manifest = dataclasses.replace(DRAFT, fingerprint="f", counts={**counts, "answered": 3})
    open_dataset(str(fresh / "datasets/triage"), manifest)
    assert evaluate.read_facts(task, version) == {"counts": counts}
    assert evaluate.read_facts(task, dataclasses.replace(version, dataset_fingerprint="g")) == {}
    report = fresh / "reports/triage/v0001/report.json"
    report.parent.mkdir(parents=True)
    facts = {"counts": {**counts, "asked": 5}, "seconds": {"train": 7.5}}
    report.write_text(json.dumps({**facts, "kl": {}}))
    assert evaluate.read_facts(task, version) == facts
    report.write_text("{")
    assert evaluate.read_facts(task, version) == {"counts": counts}
    assert "cannot be read" in caplog.text


def _read(folder, *arguments) -> tuple[EvaluateConfig, TaskConfig]:
    task, sections = load([str(folder / "task.toml"), *arguments], {"evaluate": EvaluateConfig}, "evaluate")
    config = sections["evaluate"]
    assert task is not None and isinstance(config, EvaluateConfig)  # for the type checker
    return config, task


@pytest.fixture
def asked(served, model_dir, tmp_path):
    """A task of its own whose reference was collected; yields (folder, URL of the teacher)."""
    folder, url, _ = served
    for name in ("prompt.md", "queries.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "task.toml").write_text(TASK.format(model=model_dir, root=tmp_path / "root"))
    evaluate.get_reference(*_read(tmp_path, f"teacher_url={url}"))
    return tmp_path, url


def test_a_reference_is_used_again_where_nothing_changed(asked, served):
    folder, _ = asked
    before = len(served[2].rows)
    reference = evaluate.get_reference(*_read(folder, "concurrency=5"))
    assert len(reference.greedy) == len(reference.queries) >= 4
    assert len(served[2].rows) == before


@pytest.mark.parametrize(
    "changed",
    [
        "evaluate.max_tokens",
        "evaluate.min_tokens",
        "evaluate.num_queries",
        "evaluate.seed",
        "task.queries",
        "task.prompt",
    ],
)
def test_a_reference_that_was_asked_otherwise_is_never_taken(asked, served, changed):
    folder, url = asked
    table, _, key = changed.partition(".")
    if table == "evaluate":
        arguments = [f"{key}=3"]
    else:
        arguments = []
        file = folder / ("prompt.md" if key == "prompt" else "queries.jsonl")
        more = "Be brief.\n" if key == "prompt" else "".join(f'{{"text": "Where is box {i}?"}}\n' for i in range(40))
        file.write_text(file.read_text() + more)
    with pytest.raises(ConfigError, match=f"another {changed};.*teacher_url="):
        evaluate.get_reference(*_read(folder, *arguments))
    before = len(served[2].rows)
    evaluate.get_reference(*_read(folder, *arguments, f"teacher_url={url}"))
    assert len(served[2].rows) > before
    assert evaluate.find_reference(*_read(folder, *arguments))[1] == []


def test_a_reference_of_another_teacher_is_never_taken_and_that_of_a_copy_is(asked, model_dir, tmp_path):
    folder, _ = asked
    copy = shutil.copytree(model_dir, tmp_path / "copy")
    assert evaluate.find_reference(*_read(folder, f"task.teacher_model={copy}"))[1] == []
    other = make_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match=r"another task\.teacher_model;.*teacher_url="):
        evaluate.get_reference(*_read(folder, f"task.teacher_model={other}"))


def test_bad_keys_and_names_are_refused_before_anything_is_asked(served):
    folder, url, endpoint = served
    asked = len(endpoint.rows)
    with pytest.raises(ConfigError, match=r"num_querys.*did you mean num_queries"):
        evaluate.main([str(folder / "task.toml"), "num_querys=3"])
    with pytest.raises(ConfigError, match="task file"):
        evaluate.main([f"student_url={url}"])
    with pytest.raises(NotFoundError, match=r"no alias 'finale'.*candidate -> v0001"):
        evaluate.main([str(folder / "task.toml"), f"student_url={url}", f"teacher_url={url}", "version=finale"])
    assert len(endpoint.rows) == asked


def test_ask_over_http_keeps_the_order_and_tells_failures_row_by_row(served, model_dir):
    _, url, endpoint = served
    rows = [
        TokenRequest([5, 6, index], model=name, max_tokens=3, temperature=0.0, ignore_eos=True)
        for index in range(7, 11)
        for name in ("", "triage/candidate")
    ]
    with ServiceClient(url) as service:
        ask = evaluate.ask_over_http(service, model_dir)
        results = ask(rows)
        for row, result in zip(rows, results, strict=True):
            alone = endpoint.answer(row)
            assert result.tokens == alone.tokens
            assert result.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
            assert result.model == alone.model
        with pytest.raises(NotFoundError, match="known are"):
            ask([TokenRequest([5], model="triage/final", max_tokens=1)])
        with pytest.raises(ConfigError, match="one kind of stop"):
            ask([TokenRequest([5], max_tokens=1, stop=["x"], stop_token_ids=[2])])
