"""The whole route on real parts: vLLM, Serve, Ray Data, Ray Train with DeepSpeed, the registry and the HTTP client."""

import dataclasses
import json
import math
import time
from pathlib import Path

import httpx
import pytest

import raydistill
from raydistill import renderers, types
from raydistill.core import storage
from raydistill.core.errors import NotFoundError
from raydistill.core.prompts import load_prompt
from raydistill.core.records import version_from_json
from raydistill.registry.aliases import move_alias, read_aliases
from raydistill.registry.versions import read_version
from tests.plain_passes import greedy_tokens
from tests.scaled_version import publish_scaled

PROMPT_TOKENS = [5, 9, 33, 70, 8, 120]


def _client(world, model="tiny/final"):
    return raydistill.ServiceClient(world.url).create_sampling_client(model_path=f"raydistill://{model}")


def _greedy(client, tokens=PROMPT_TOKENS):
    params = types.SamplingParams(max_tokens=6, temperature=0.0, stop=[])
    return client.sample(types.ModelInput.from_ints(tokens), sampling_params=params).result(60)


def _status(world):
    return httpx.get(f"{world.url}/status", timeout=10).json()


def _wait(condition, what):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"not within 30 s: {what}"
        time.sleep(0.2)


def test_report_has_every_field(world):
    report = world.report
    shares = [report["validity"][arm] for arm in ("teacher", "base", "student", "student_raw")]
    assert all(0 <= share <= 1 for share in shares)
    assert {"student", "majority"} <= set(report["agreement"])
    kl = report["kl"]
    assert kl["base"] > 0.05, "P changes nothing, so this world would not notice a student that learnt nothing"
    assert kl["gap_closed"] == pytest.approx(1 - kl["student"] / kl["base"])
    assert math.isfinite(kl["gap_closed"])  # a random model of two layers is no measure of quality
    assert kl["served_difference"] < 1e-3  # both sides in float32
    assert report["tokens"]["reduction"] == pytest.approx(
        1 - report["tokens"]["prompt_without_p"] / report["tokens"]["prompt_with_p"]
    )
    latency = report["latency"]
    for arm in ("base_with_p", "base_without_p", "adapter"):
        assert latency[f"{arm}_seconds"] > 0
        assert latency[f"{arm}_tokens_per_second"] > 0
    assert {"create_data", "train", "evaluate"} <= set(report["seconds"])
    assert report["held_out"]["teacher_tokens"] >= 40
    root = Path(world.settings.task.storage) / "reports/tiny/v0001"
    assert json.loads((root / "report.json").read_text())["kl"] == kl
    assert "<html" in (root / "report.html").read_text()


def test_every_asked_row_is_kept_or_dropped(world):
    counts = world.report["counts"]
    assert counts["asked"] == 40
    assert counts["asked"] == counts["kept"] + sum(counts["dropped"].values())
    assert counts["kept"] >= 16, "too few answers end by themselves for this world to mean anything"


def test_dataset_holds_no_p_and_no_held_out_query(world):
    from raydistill.dataset.read import read_examples
    from raydistill.queries.read import read_queries
    from raydistill.queries.split import split_queries

    task = world.settings.task
    examples, manifest = read_examples(f"{task.storage}/datasets/tiny")
    assert manifest.finished
    p = load_prompt(task.prompt)
    asked, held_out = split_queries(read_queries(task.queries))
    held = {query.id for query in held_out}
    for example in examples:
        assert example.query_id not in held
        assert [message["role"] for message in example.messages] == ["user"]
        assert p.messages[0]["content"] not in json.dumps(example.messages)
    assert len({example.query_id for example in examples}) <= len(asked)


def test_adapter_loads_in_plain_peft(world):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(world.base_dir, dtype=torch.float32)
    folder = f"{world.settings.task.storage}/models/tiny/v0001"
    model = PeftModel.from_pretrained(base, folder).eval()
    tokens, logprobs = greedy_tokens(model, PROMPT_TOKENS, 6)
    served = _greedy(_client(world, "tiny/v0001")).sequences[0]
    assert served.tokens == tokens
    assert served.logprobs == pytest.approx(logprobs, abs=1e-3)


def test_aliases_point_to_the_version(world):
    uri = world.settings.models_uri
    kept = Path(world.settings.task.storage) / "prompts/tiny" / f"{read_version(uri, 'v0001').prompt_digest}.json"
    assert json.loads(kept.read_text())["messages"] == load_prompt(world.settings.task.prompt).messages
    assert read_aliases(uri).mapping == {"candidate": "v0001", "final": "v0001"}
    assert read_version(uri, "v0001").verifiable
    assert math.isfinite(read_version(uri, "v0001").metrics["validation_loss_nats"])


def test_sample_names_the_exact_version(world):
    client = _client(world)
    result = _greedy(client)
    assert result.model.startswith("tiny/v0001@")
    tokenizer = client.get_tokenizer()
    assert tokenizer.decode(result.sequences[0].tokens)


@pytest.mark.parametrize("model", ["tiny/final", "tiny/v0001", "tiny"])
def test_openai_route_answers_by_the_version(world, model):
    messages = [{"role": "user", "content": "I lost my parcel."}]
    body = {"model": model, "messages": messages, "max_tokens": 4, "temperature": 0}
    answer = httpx.post(f"{world.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-raydistill-model"].startswith("tiny/v0001@")
    tokenizer = renderers.load_tokenizer(world.base_dir)
    rendered = renderers.get_renderer("chat", tokenizer).build_generation_prompt(messages)
    assert answer.json()["usage"]["prompt_tokens"] == rendered.length, "trainer and server must agree on the tokens"


def test_streamed_chat_says_the_same_in_pieces(world):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "I lost my parcel."}], "max_tokens": 6}
    body |= {"temperature": 0}
    whole = httpx.post(f"{world.url}/v1/chat/completions", json=body, timeout=60).json()
    with httpx.stream("POST", f"{world.url}/v1/chat/completions", json={**body, "stream": True}, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-raydistill-model"] == whole["model"]
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    pieces = [json.loads(event) for event in events[:-1]]
    assert {piece["model"] for piece in pieces} == {whole["model"]}
    text = "".join(choice["delta"].get("content") or "" for piece in pieces for choice in piece["choices"])
    assert text == whole["choices"][0]["message"]["content"]


def test_a_chat_that_the_engine_cannot_read_is_the_callers_fault(world):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi " * 500}]}
    answer = httpx.post(f"{world.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] == "refused_by_engine"
    assert "384" in answer.json()["error"]["message"]


def test_unknown_names_never_fall_back_to_the_base(world):
    with pytest.raises(NotFoundError, match=r"tiny/final"):
        _client(world, "tinny/final")
    body = {"model": "tinny", "messages": [{"role": "user", "content": "hi"}]}
    answer = httpx.post(f"{world.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 404
    assert "tiny/final" in answer.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_logprobs", True),
        ("tools", []),
        ("chat_template", "x"),
        ("n", 1000),
        ("temperature", -1),
        ("messages", [{"role": "user"}]),
        ("messages", [{"role": "wizard", "content": "hi"}]),
    ],
)
def test_unknown_and_absurd_chat_fields_are_refused_by_name(world, field, value):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], field: value}
    answer = httpx.post(f"{world.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 422
    assert field in answer.text


def test_token_ids_out_of_range_are_refused(world):
    with pytest.raises(Exception, match="99999"):
        _greedy(_client(world), [5, 99999])


def test_versions_are_swapped_and_bad_ones_refused_under_way(world):
    uri, client = world.settings.models_uri, _client(world)
    base_client = raydistill.ServiceClient(world.url).create_sampling_client(base_model=world.base_dir)
    before, base_before = _greedy(client), _greedy(base_client)
    second = publish_scaled(world, -1.5)
    move_alias(uri, "final", second.label)
    exact = f"tiny/{second.label}@{second.content_digest}"
    _wait(lambda: _status(world)["aliases"]["tiny/final"] == exact, "the swap")
    after = _greedy(client)
    assert after.model == exact
    assert after.sequences[0].logprobs != before.sequences[0].logprobs
    assert _greedy(_client(world, "tiny/candidate")).sequences == before.sequences

    # A flipped byte, and weights that are not the ones the probe was made for.
    broken = publish_scaled(world, -1.6)
    weights = Path(uri) / broken.label / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 0xFF
    weights.write_bytes(bytes(data))
    wrong = publish_scaled(world, 1.3)
    record = Path(uri) / wrong.label / "version.json"
    probe = [
        dataclasses.replace(point, adapter=min(-0.1, point.base - (point.adapter - point.base) - 3))
        for point in version_from_json(record.read_bytes()).probe
    ]
    storage.write_bytes(str(record), _with_probe(record.read_bytes(), probe))
    for bad, reason in ((broken, "SHA-256"), (wrong, "probe")):
        move_alias(uri, "final", bad.label)
        label = f"tiny/{bad.label}"
        _wait(lambda label=label: label in _status(world)["refused"], f"the refusal of {label}")
        status = _status(world)
        assert reason in status["refused"][label]
        assert status["aliases"]["tiny/final"] == exact, "the old version goes on serving"
        assert _greedy(client).sequences == after.sequences
        with pytest.raises(NotFoundError, match="refused"):
            _client(world, label)
    assert _greedy(base_client).sequences == base_before.sequences
    assert _greedy(base_client).model == world.base_dir
    move_alias(uri, "final", "v0001")
    _wait(lambda: _status(world)["aliases"]["tiny/final"].startswith("tiny/v0001@"), "the rollback")
    assert _greedy(client).sequences == before.sequences


def _with_probe(record: bytes, probe) -> bytes:
    data = json.loads(record)
    data["probe"] = [dataclasses.asdict(point) for point in probe]
    return json.dumps(data).encode()


def test_the_same_data_again_asks_nothing(world):
    from ray import serve

    from jobs import distill
    from jobs.data_plan import Queries
    from raydistill.queries.read import read_queries
    from raydistill.queries.split import split_queries

    settings, clock = world.settings, distill.Clock()
    asked, _ = split_queries(read_queries(settings.task.queries))
    manifest, reference = distill._ask_teacher(settings, Queries(given=lambda: asked), clock)
    assert set(clock.seconds) == {"create_data"}, "no teacher may be started"
    assert "teacher" not in serve.status().applications
    assert manifest.counts["asked"] == 40
    assert manifest.counts["kept"] == world.report["counts"]["kept"]
    assert len(reference.queries) >= settings.evaluate.num_queries


def test_more_than_the_cluster_can_ever_have_is_refused_with_both_numbers(world):
    from jobs import train
    from jobs.capacity import require
    from raydistill.core.errors import CapacityError

    started = time.monotonic()
    config = world.settings.train.model_copy(update={"num_workers": 500, "seed": 1})
    with pytest.raises(CapacityError, match=r"500 CPU.*has 12"):
        train.run(config, world.settings.cluster)
    with pytest.raises(CapacityError, match=r"3 GPU.*has 0"):
        require("a job", gpus=3)
    with pytest.raises(CapacityError, match="memory, the cluster has"):
        require("a job", memory_bytes=2**60)
    assert time.monotonic() - started < 5
