"""`jobs.evaluate` over HTTP: tiny real models behind the token-level protocol on a loopback socket."""

import contextlib
import json
import socket
import threading
import time

import pytest
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response

from jobs import evaluate
from raydistill.client.service import ServiceClient
from raydistill.core.errors import ConfigError, NotFoundError
from raydistill.core.prompts import load_prompt
from raydistill.core.records import TokenRequest
from raydistill.core.wire import encode_sample_response
from raydistill.registry.aliases import move_alias
from raydistill.registry.publish import publish
from raydistill.scoring.model import load_model
from raydistill.types import SampledSequence
from tests.evaluation.tiny_endpoint import TinyEndpoint
from tests.tiny import make_tiny_model
from tests.tiny_adapter import make_draft, make_tiny_adapter

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


def make_app(endpoint: TinyEndpoint, known: dict[str, str]) -> FastAPI:
    """Return an application that answers the protocol; `known` maps what may be asked for to a row's `model`."""
    app = FastAPI()
    samples: dict[str, dict] = {}

    @app.post("/api/v1/client/config")
    def client_config():
        return {}

    @app.post("/api/v1/create_session")
    def create_session():
        return {"session_id": "s"}

    @app.post("/api/v1/create_sampling_session")
    async def create_sampling_session(request: Request):
        body = await request.json()
        wanted = body.get("model_path") or body["base_model"]
        if wanted not in known:
            raise HTTPException(404, f"{wanted} is not served; known are {', '.join(known)}")
        return {"sampling_session_id": f"ss{list(known).index(wanted)}"}

    @app.get("/api/v1/samplers/{sampler_id}")
    def get_sampler(sampler_id: str):
        return {"sampler_id": sampler_id, "base_model": "base"}

    @app.post("/api/v1/asample")
    async def asample(request: Request):
        body = await request.json()
        request_id = f"{body['sampling_session_id']}-{body['seq_id']}"
        samples[request_id] = body
        return {"request_id": request_id, "sample_sequence_ids": ["0"]}

    @app.post("/api/v1/retrieve_future")
    async def retrieve_future(request: Request):
        body = samples[(await request.json())["request_id"]]
        params = body["sampling_params"]
        row = TokenRequest(
            body["prompt"]["chunks"][0]["tokens"],
            model=list(known.values())[int(body["sampling_session_id"][2:])],
            max_tokens=params["max_tokens"],
            temperature=params["temperature"],
            seed=params.get("seed"),
            stop_token_ids=params.get("stop") or [],
            ignore_eos=params.get("stop") == [],
        )
        result = endpoint([row])[0]
        data = encode_sample_response([SampledSequence(result.tokens, result.logprobs, result.finish_reason)])
        headers = {"x-raydistill-model": result.model}
        return Response(data, media_type="application/x-protobuf", headers=headers)

    return app


@contextlib.contextmanager
def serve(app: FastAPI):
    """Run an application in a thread; yields its base URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A task, a published candidate, and one application that serves it and its base; yields (task file, URL, ...)."""
    folder = tmp_path_factory.mktemp("world")
    model_dir = make_tiny_model(folder / "model")
    (folder / "prompt.md").write_text("Sort the messages of a help desk into teams. " * 4)
    lines = [json.dumps({"text": f"Where is parcel {index}?"}) for index in range(60)]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    (folder / "task.toml").write_text(TASK.format(model=model_dir, root=folder / "root"))
    adapter_dir = make_tiny_adapter(model_dir, folder / "adapter")
    digest = load_prompt(folder / "prompt.md").digest
    uri = str(folder / "root" / "models" / "triage")
    version = publish(uri, make_draft(model_dir, prompt_digest=digest), adapter_dir)
    move_alias(uri, "candidate", version.label)
    endpoint = TinyEndpoint(load_model(model_dir, adapter_dir), f"triage/v0001@{version.content_digest}")
    known = {model_dir: "", "raydistill://triage/candidate": "triage/candidate"}
    with serve(make_app(endpoint, known)) as url:
        yield folder, url, model_dir, endpoint


def test_without_a_reference_or_a_teacher_it_says_what_to_do(world):
    folder, url, _, _ = world
    with pytest.raises(NotFoundError, match=r"reference\.json does not exist.*teacher_url="):
        evaluate.main([str(folder / "task.toml"), f"student_url={url}", f"task.storage={folder / 'elsewhere'}"])


def test_evaluates_over_http_collects_the_reference_once_and_writes_the_report(world, capsys):
    folder, url, _, endpoint = world
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
    evaluate.main([str(folder / "task.toml"), f"student_url={url}", "kl=false"])
    assert [row for row in endpoint.rows if len(row.tokens) > 100 and row.temperature == 1] == with_p


def test_bad_keys_and_names_are_refused_before_anything_is_asked(world):
    folder, url, _, endpoint = world
    asked = len(endpoint.rows)
    with pytest.raises(ConfigError, match=r"num_querys.*did you mean num_queries"):
        evaluate.main([str(folder / "task.toml"), "num_querys=3"])
    with pytest.raises(ConfigError, match="task file"):
        evaluate.main([f"student_url={url}"])
    with pytest.raises(NotFoundError, match=r"no alias 'finale'.*candidate -> v0001"):
        evaluate.main([str(folder / "task.toml"), f"student_url={url}", f"teacher_url={url}", "version=finale"])
    assert len(endpoint.rows) == asked


def test_ask_over_http_keeps_the_order_and_tells_failures_row_by_row(world):
    _, url, model_dir, endpoint = world
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
