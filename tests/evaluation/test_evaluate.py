"""The whole evaluation over real tiny models: reference, every field of the report, and what it must refuse."""

import dataclasses
import io
import json
import math
import re

import pytest
import torch
from rich.console import Console

from raydistill.core.errors import ConfigError, DatasetError, ServiceError
from raydistill.core.models import model_revision
from raydistill.core.prompts import Prompt, teacher_messages
from raydistill.core.records import Query, digest
from raydistill.evaluation.config import CheckConfig, EvaluateConfig
from raydistill.evaluation.evaluate import Subject, evaluate
from raydistill.evaluation.reference import collect_reference, read_reference, write_reference
from raydistill.evaluation.report import report_table, write_report
from raydistill.registry.publish import publish
from raydistill.renderers import get_renderer, load_tokenizer, tokenizer_digest
from raydistill.scoring.model import load_model
from tests.drafts import make_tiny_draft
from tests.evaluation.tiny_endpoint import TinyEndpoint
from tests.plain_passes import plain_logprobs

PROMPT = Prompt(
    "messages",
    [
        {"role": "system", "content": "Sort messages of a help desk. " * 3},
        {"role": "user", "content": "My order has not arrived."},
        {"role": "assistant", "content": '{"team": "billing"}'},
    ],
)
CONFIG = EvaluateConfig(
    num_queries=6,
    min_tokens=120,
    max_tokens=12,
    concurrency=3,
    latency_tokens=3,
    latency_repeats=2,
    throughput_repeats=1,
    check=CheckConfig(must_match=["e"]),
)
FACTS = {"counts": {"asked": 20, "kept": 18, "dropped": {"truncated": 2}}, "seconds": {"create_data": 3.5}}


def make_queries(count):
    texts = [f"Where is parcel {index}? Please tell me." for index in range(count)]
    return [Query(digest(text), [{"role": "user", "content": text}]) for text in texts]


@pytest.fixture(scope="module")
def subject(model_dir, adapter_dir, tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("models") / "triage")
    version = publish(uri, make_tiny_draft(model_dir, prompt_digest=PROMPT.digest), adapter_dir)
    return Subject("triage/candidate", version, adapter_dir, model_dir, model_dir, PROMPT)


@pytest.fixture(scope="module")
def model(subject):
    return load_model(subject.model_dir, subject.adapter_dir)


@pytest.fixture(scope="module")
def teacher(model_dir):
    tokenizer = load_tokenizer(model_dir)
    facts = {"model": "tiny", "revision": model_revision(model_dir), "tokenizer_digest": tokenizer_digest(tokenizer)}
    return get_renderer("chat", tokenizer), facts


@pytest.fixture(scope="module")
def reference(model, teacher):
    renderer, facts = teacher
    return collect_reference(CONFIG, TinyEndpoint(model, "teacher"), make_queries(9), PROMPT, renderer, facts)


def served_as(subject):
    return f"triage/{subject.version.label}@{subject.version.content_digest}"


@pytest.fixture(scope="module")
def endpoint(model, subject):
    return TinyEndpoint(model, served_as(subject))


@pytest.fixture(scope="module")
def report(subject, reference, endpoint):
    return evaluate(CONFIG, subject, reference, endpoint, FACTS)


def test_reference_asks_with_p_and_reaches_the_tokens_asked_for(reference, model, teacher):
    renderer, facts = teacher
    endpoint = TinyEndpoint(model, "teacher")
    again = collect_reference(CONFIG, endpoint, list(reversed(make_queries(9))), PROMPT, renderer, facts)
    assert again == reference  # whatever the order of the file
    assert 6 <= len(reference.queries) <= 9
    assert [reply.query for reply in reference.greedy] == list(range(len(reference.queries)))
    assert reference.num_sampled_tokens >= CONFIG.min_tokens
    assert all(len(reply.tokens) <= CONFIG.max_tokens for reply in reference.sampled)
    asked = {tuple(row.tokens) for row in endpoint.rows}
    queries = [renderer.build_generation_prompt(teacher_messages(PROMPT, q.messages)) for q in reference.queries]
    assert {tuple(prompt.to_ints()) for prompt in queries} == asked
    sampled = [row for row in endpoint.rows if row.temperature == 1]
    assert len(sampled) == len(reference.sampled)
    assert len({(tuple(row.tokens), row.seed) for row in sampled}) == len(sampled)  # no sample twice


def test_reference_takes_all_queries_and_then_several_samples(model, teacher):
    renderer, facts = teacher
    config = CONFIG.model_copy(update={"num_queries": 2, "min_tokens": 80})
    found = collect_reference(config, TinyEndpoint(model, "t"), make_queries(3), PROMPT, renderer, facts)
    assert len(found.queries) == 3
    assert len(found.sampled) > 3
    assert found.num_sampled_tokens >= 80


def test_reference_refuses_too_few_queries_and_answers_that_stay_short(model, teacher):
    renderer, facts = teacher
    with pytest.raises(ConfigError, match="num_queries is 6, but only 5"):
        collect_reference(CONFIG, TinyEndpoint(model, "t"), make_queries(5), PROMPT, renderer, facts)
    short = TinyEndpoint(model, "t", lambda result, _: dataclasses.replace(result, tokens=[2], logprobs=[-1.0]))
    config = CONFIG.model_copy(update={"num_queries": 1, "min_tokens": 1000})
    with pytest.raises(ServiceError, match="too short"):
        collect_reference(config, short, make_queries(1), PROMPT, renderer, facts)


def test_reference_reads_back_equal_and_anything_else_is_refused(reference, tmp_path):
    place = str(tmp_path / "reports" / "reference.json")
    write_reference(reference, place)
    assert read_reference(place) == reference
    (tmp_path / "reports" / "reference.json").write_text('{"queries": []}')
    with pytest.raises(DatasetError, match="is no reference"):
        read_reference(place)


def test_report_has_every_field_and_only_what_json_can_say(report, reference):
    assert set(report["validity"]) == {"teacher", "base", "student", "student_raw"}
    assert all(0 <= share <= 1 for share in report["validity"].values())
    assert report["kl"]["base"] > 0
    assert report["kl"]["student"] > 0
    assert report["kl"]["gap_closed"] == pytest.approx(1 - report["kl"]["student"] / report["kl"]["base"])
    low, high = report["kl"]["gap_closed_interval"]
    assert low <= report["kl"]["gap_closed"] <= high
    assert report["kl"]["tokens"] == reference.num_sampled_tokens >= 120
    tokens = report["tokens"]
    assert tokens["reduction"] == pytest.approx(1 - tokens["prompt_without_p"] / tokens["prompt_with_p"])
    for arm in ("base_with_p", "base_without_p", "adapter"):
        assert report["latency"][f"{arm}_seconds"] > 0
        assert report["latency"][f"{arm}_tokens_per_second"] > 0
    assert report["counts"] == FACTS["counts"]
    assert set(report["seconds"]) == {"create_data", "evaluate"}
    assert report["held_out"]["queries"] == len(reference.queries)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_kl_is_what_plain_forward_passes_give(report, reference, model, teacher):
    renderer, _ = teacher
    total = {"base": 0.0, "student": 0.0}
    for reply in reference.sampled:
        messages = reference.queries[reply.query].messages
        with_p = renderer.build_generation_prompt(teacher_messages(PROMPT, messages)).to_ints()
        without_p = renderer.build_generation_prompt(messages).to_ints()
        with model.disable_adapter():
            p = plain_logprobs(model, with_p, reply.tokens, torch.float64)
            base = plain_logprobs(model, without_p, reply.tokens, torch.float64)
        student = plain_logprobs(model, without_p, reply.tokens, torch.float64)
        for name, q in (("base", base), ("student", student)):
            total[name] += float((p.exp() * (p - q)).sum())
    for name, nats in total.items():
        assert report["kl"][name] == pytest.approx(nats / reference.num_sampled_tokens, rel=1e-3)


def test_served_difference_is_zero_for_the_published_files_and_shows_another_adapter(report, subject, reference, model):
    assert report["kl"]["served_difference"] < 1e-4

    def shift(result, _):
        return dataclasses.replace(result, logprobs=[value + 0.5 for value in result.logprobs])

    shifted = evaluate(CONFIG, subject, reference, TinyEndpoint(model, served_as(subject), shift), FACTS)
    assert shifted["kl"]["served_difference"] == pytest.approx(0.5, abs=1e-3)


def test_endpoint_is_asked_without_p_except_for_its_latency(report, endpoint, subject):
    lengths = [len(row.tokens) for row in endpoint.rows if row.model == "triage/candidate"]
    assert lengths
    assert max(lengths) < min(len(row.tokens) for row in endpoint.rows if len(row.tokens) > 100)
    raw = load_tokenizer(subject.model_dir).encode(make_queries(1)[0].messages[0]["content"])
    assert any(row.tokens == raw for row in endpoint.rows)


def test_evaluate_refuses_answers_of_another_version(subject, reference, model):
    with pytest.raises(ServiceError, match=r"answered by triage/v0007@.*triage/v0001 is to be evaluated"):
        evaluate(CONFIG, subject, reference, TinyEndpoint(model, "triage/v0007@abc"))
    with pytest.raises(ServiceError, match="answered by base"):
        evaluate(CONFIG, subject, reference, TinyEndpoint(model, "base"))


def test_evaluate_refuses_another_prompt(subject, reference, endpoint):
    other = dataclasses.replace(subject, prompt=Prompt("system", [{"role": "system", "content": "Other."}]))
    with pytest.raises(ConfigError, match="different prompts"):
        evaluate(CONFIG, other, reference, endpoint)


def test_kl_is_null_for_another_tokenizer_and_everything_without_scoring(subject, reference, endpoint):
    foreign = dataclasses.replace(reference, teacher={**reference.teacher, "tokenizer_digest": "other"})
    found = evaluate(CONFIG, subject, foreign, endpoint)["kl"]
    assert found["base"] is found["student"] is found["gap_closed"] is None
    assert found["served_difference"] < 1e-4
    unscored = evaluate(CONFIG.model_copy(update={"kl": False}), subject, reference, endpoint)
    assert set(unscored["kl"].values()) == {None}
    show(unscored)


def show(report, width=80):
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(report_table(report))
    return console.file.getvalue()


def test_table_fits_80_columns_and_cuts_nothing(report):
    text = show(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for said in (
        "valid answers",
        "KL to the teacher",
        "gap closed",
        "prompt tokens",
        "20 asked, 18 kept",
        "2 truncated",
    ):
        assert said in text


def with_another_teacher(report):
    teacher = {**report["model"]["teacher"], "model": "large-model", "revision": "another"}
    validity = {**report["validity"], "teacher": 0.43}
    return {**report, "model": {**report["model"], "teacher": teacher}, "validity": validity}


def read_table(text):
    """Return the cells of each row by its first one."""
    rows = [re.split("[│┃]", line)[1:-1] for line in text.splitlines() if line[:1] in "│┃"]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in rows}


def test_a_base_that_is_the_teacher_has_one_column_with_it(report):
    report = {**report, "validity": {**report["validity"], "teacher": 0.43}}
    text = show(report)
    table = read_table(text)
    assert "base with P" in text and "teacher with P" not in text
    assert table["valid answers"][0] == "43\u00a0%"
    assert table["KL to the teacher, nats/token"][0] == "0"
    assert table["prompt tokens"][0] == f"{report['tokens']['prompt_with_p']:.0f}"
    assert "KL is KL(base with P || arm)" in text


def test_another_teacher_has_a_column_of_its_own_and_the_base_with_p_none_of_its_numbers(report, tmp_path):
    other = with_another_teacher(report)
    text = show(other)
    table = read_table(text)
    assert max(map(len, text.splitlines())) <= 80
    assert table["valid answers"][:2] == ["43\u00a0%", ""]
    assert table["KL to the teacher, nats/token"][:2] == ["0", ""]
    assert table["prompt tokens"][:2] == ["", f"{report['tokens']['prompt_with_p']:.0f}"]
    assert "KL is KL(teacher with P || arm); the teacher, large-model" in " ".join(text.split())
    write_report(other, str(tmp_path / "r"))
    page = (tmp_path / "r" / "report.html").read_text()
    assert "<th></th><th>teacher with P</th><th>base with P</th><th>base, no P</th><th>student</th>" in page
    assert "<td>valid answers</td><td>43\u00a0%</td><td></td>" in page


@pytest.mark.parametrize(("adapter", "said"), [(9.0, True), (0.1, False)])
def test_table_says_where_the_adapter_is_slower(report, adapter, said):
    latency = {**report["latency"], "base_with_p_seconds": 1.0, "adapter_seconds": adapter}
    latency |= {"base_with_p_tokens_per_second": 100.0, "adapter_tokens_per_second": 100.0 / adapter}
    text = " ".join(show({**report, "latency": latency}).split())
    assert ("SLOWER: a lone request takes 9.00 s by the adapter and 1.00 s by the base with P" in text) is said
    assert text.count("SLOWER") == (2 if said else 0)


def test_files_are_written_whole_and_the_page_needs_nothing_else(report, tmp_path):
    report = {**report, "examples": [dict.fromkeys(report["examples"][0], "<script>alert(1)</script>")]}
    write_report(report, str(tmp_path / "reports"))
    assert json.loads((tmp_path / "reports" / "report.json").read_text()) == report
    page = (tmp_path / "reports" / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<svg") == 3
    assert "src=" not in page
    assert "<link" not in page


def test_report_with_nan_is_refused_rather_than_written(report, tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_report({**report, "tokens": {**report["tokens"], "prompt_with_p": math.nan}}, str(tmp_path / "r"))
    assert not (tmp_path / "r").exists()
