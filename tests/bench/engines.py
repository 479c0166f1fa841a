"""What the benches of the engine share: vLLM in this process, adapters on the demo model, timed batches."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raydistill.engine.args import vllm_args
from raydistill.engine.config import EngineConfig

Row = tuple[list[int], Any]  # prompt's tokens, adapter or None


@contextlib.contextmanager
def open_engine(model_dir: str, config: EngineConfig, lora: bool, **changes: Any) -> Iterator[Any]:
    """Give vLLM's LLM with the arguments of our replicas; its process ends with the block."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ.setdefault("OMP_NUM_THREADS", str(config.omp_threads))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM

    llm = LLM(model_dir, **(vllm_args(config, on_gpu=False, lora=lora) | {"disable_log_stats": False} | changes))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def make_adapter(model_dir: str, folder: Path, seed: int, rank: int, scale: float, dtype: str = "float32") -> str:
    """Save a random adapter of all linear layers, in a dtype of its own, and return its folder."""
    import torch
    from safetensors.torch import load_file, save_file

    from tests.tiny_adapter import make_tiny_adapter

    make_tiny_adapter(model_dir, folder, seed, rank=rank, scale=scale)
    path = folder / "adapter_model.safetensors"
    tensors = {name: weight.to(getattr(torch, dtype)) for name, weight in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return str(folder)


def generate(llm: Any, rows: Sequence[Row], max_tokens: int) -> tuple[list[Any], float]:
    """Return the outputs of rows that are asked at once, greedily and past any stop token, and the seconds."""
    from vllm import SamplingParams, TokensPrompt

    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, logprobs=0, detokenize=False)
    prompts = [TokensPrompt(prompt_token_ids=tokens) for tokens, _ in rows]
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, lora_request=[adapter for _, adapter in rows], use_tqdm=False)
    return outputs, time.perf_counter() - start


def read_answer(output: Any) -> tuple[list[int], list[float]]:
    """Return an output's tokens and their log-probabilities."""
    completion = output.outputs[0]
    tokens = list(completion.token_ids)
    return tokens, [entry[token].logprob for entry, token in zip(completion.logprobs, tokens, strict=True)]
