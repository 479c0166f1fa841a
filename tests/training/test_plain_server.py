"""What training writes, served by vLLM without this package: tokens equal to plain PEFT. `make soak` asks for it."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch

from raydistill.training.merge import merge_adapter
from raydistill.training.saved import fetch_checkpoint, find_checkpoint
from tests.loopback import free_port, wait_for_listener
from tests.plain_passes import greedy_tokens
from tests.training import runs, workers

pytestmark = pytest.mark.skipif("RAYDISTILL_PLAIN_SERVERS" not in os.environ, reason="two servers of vLLM: make soak")
TOKENS = 8
PROMPTS = [row.prompt_tokens for row in workers.make_rows()[:8]]


@pytest.fixture(scope="module")
def trained(model_dir, tmp_path_factory):
    """A run's adapter, and the student with it merged in."""
    root = tmp_path_factory.mktemp("plain")
    job = runs.make_job(model_dir, str(root / "run"))
    runs.write_run(job)
    workers.run_workers(runs.train_all, 1, [job])
    name, _ = find_checkpoint(job.log_uri)
    with fetch_checkpoint(job.log_uri, name) as folder:
        adapter = folder / "adapter"
    merge_adapter(model_dir, str(adapter), str(root / "merged"))
    return adapter, root / "merged"


@contextlib.contextmanager
def _serve(model: str | Path, folder: Path, *flags: str):
    """Start vLLM's own server, no plugin of ours in it; give a function from a model's name and a prompt to tokens."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--served-model-name", "base", "--dtype", "float32", "--max-model-len", "128"]
    command += ["--enforce-eager", "--gpu-memory-utilization", "0.05", *flags]
    settings = {"VLLM_PLUGINS": "", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env={**os.environ, **settings}, stdout=log, stderr=log)
        try:
            wait_for_listener(port, 300)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                yield lambda name, prompt: _ask(client, name, prompt)
        finally:
            server.terminate()
            server.wait(60)


def _ask(client: httpx.Client, name: str, prompt: list[int]) -> list[int]:
    body = {"model": name, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    answer = client.post("/v1/completions", json={**body, "return_token_ids": True})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"]


@pytest.fixture(scope="module")
def expected(model_dir, trained):
    """Greedy tokens of plain PEFT for each prompt."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    bare = [greedy_tokens(base, prompt, TOKENS)[0] for prompt in PROMPTS]
    adapted = PeftModel.from_pretrained(base, str(trained[0])).eval()
    found = [greedy_tokens(adapted, prompt, TOKENS)[0] for prompt in PROMPTS]
    assert bare != found, "the adapter changes nothing, so these tests would see no mistake"
    return bare, found


def test_adapter_is_served_as_plain_peft_has_it(model_dir, trained, expected, tmp_path):
    flags = ("--enable-lora", "--max-lora-rank", "8", "--max-loras", "2", "--lora-modules", f"trained={trained[0]}")
    with _serve(model_dir, tmp_path, *flags) as ask:
        assert [ask("trained", prompt) for prompt in PROMPTS] == expected[1]
        assert [ask("base", prompt) for prompt in PROMPTS] == expected[0]


def test_merged_model_is_served_as_plain_peft_has_the_adapter(trained, expected, tmp_path):
    with _serve(trained[1], tmp_path) as ask:
        assert [ask("base", prompt) for prompt in PROMPTS] == expected[1]
