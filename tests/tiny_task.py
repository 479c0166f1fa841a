"""A task on a tiny model: all that `jobs.distill` needs, in one folder."""

import json
from pathlib import Path

from tests.jsonl import write_jsonl
from tests.tiny import make_tiny_model

NAMES = ["parcel", "invoice", "password", "printer", "refund", "order", "router", "coupon", "screen", "account"]
VERBS = ["lost", "broke", "forgot", "changed", "cannot open", "never got", "paid twice for", "want"]


def write_tiny_task(folder: Path, port: int) -> Path:
    """Write a task file, P, queries and a tiny base model; returns the task file."""
    base = make_tiny_model(folder / "base", dtype="float32")
    make_answers_end(Path(base))
    prompt = [
        {"role": "system", "content": "You are the help desk of a shop. Answer in few words."},
        {"role": "user", "content": "My parcel is late."},
        {"role": "assistant", "content": "Shipping."},
    ]
    (folder / "p.json").write_text(json.dumps(prompt))
    queries = [f"I {verb} my {name}, number {len(name) * index}." for index, name in enumerate(NAMES) for verb in VERBS]
    write_jsonl(folder / "q.jsonl", *({"text": query} for query in queries))
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
        smoke_rows = 0
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
        omp_threads = 1
        max_model_len = 384
        max_num_seqs = 16
        [student]
        dtype = "float32"
        omp_threads = 1
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
