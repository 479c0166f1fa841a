"""One distilled world for all integration tests: a tiny model, distilled through every real part, still served."""

import dataclasses
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

NAMES = ["parcel", "invoice", "password", "printer", "refund", "order", "router", "coupon", "screen", "account"]
VERBS = ["lost", "broke", "forgot", "changed", "cannot open", "never got", "paid twice for", "want"]


@dataclasses.dataclass(frozen=True)
class World:
    """A finished run of jobs.distill on a tiny model."""

    task_file: Path
    settings: Any  # jobs.distill.Settings
    report: dict[str, Any]
    url: str
    base_dir: str


def write_tiny_task(folder: Path, port: int) -> Path:
    """Write a task file, P, queries and a tiny base model; returns the task file."""
    base = tiny.make_tiny_model(folder / "base", dtype="float32")
    make_answers_end(Path(base))
    prompt = [
        {"role": "system", "content": "You are the help desk of a shop. Answer in few words."},
        {"role": "user", "content": "My parcel is late."},
        {"role": "assistant", "content": "Shipping."},
    ]
    (folder / "p.json").write_text(json.dumps(prompt))
    queries = [f"I {verb} my {name}, number {len(name) * index}." for index, name in enumerate(NAMES) for verb in VERBS]
    (folder / "q.jsonl").write_text("".join(json.dumps({"text": query}) + "\n" for query in queries))
    text = f"""
        [task]
        name = "tiny"
        prompt = "p.json"
        queries = "q.jsonl"
        teacher_model = "{base}"
        student_model = "{base}"
        storage = "{folder}/storage"
        [create_data]
        num_examples = 40
        max_tokens = 24
        temperature = 1.0
        commit_rows = 16
        [train]
        num_epochs = 6
        learning_rate = 0.02
        num_workers = 2
        lora_rank = 8
        dtype = "float32"
        [evaluate]
        num_queries = 8
        min_tokens = 40
        max_tokens = 24
        latency_tokens = 8
        latency_repeats = 2
        throughput_repeats = 1
        concurrency = 8
        [teacher]
        dtype = "float32"
        max_model_len = 384
        max_num_seqs = 16
        [student]
        dtype = "float32"
        max_model_len = 384
        max_num_seqs = 16
        max_lora_rank = 8
        poll_seconds = 0.5
        [cluster]
        http_port = {port}
    """
    file = folder / "tiny.toml"
    file.write_text("\n".join(line.strip() for line in text.splitlines()))
    return file


def make_answers_end(model_dir: Path) -> None:
    """Raise the weight of the end-of-turn token, so that a random model's answers end by themselves now and then."""
    from safetensors.numpy import load_file, save_file

    path = model_dir / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.embed_tokens.weight"][2] *= 2.5
    save_file(tensors, path, metadata={"format": "pt"})


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    from jobs import distill
    from jobs.runtime import disconnect

    port = free_port()
    task_file = write_tiny_task(tmp_path_factory.mktemp("world"), port)
    settings = distill.read_settings([str(task_file)])
    try:
        report = distill.run(settings)
        yield World(task_file, settings, report, f"http://127.0.0.1:{port}", settings.task.student_model)
    finally:
        disconnect(settings.cluster)
