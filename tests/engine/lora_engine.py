"""A real vLLM engine with three adapters in three slots, none to spare, and how tests ask it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_adapter import make_tiny_adapter


def make_adapters(model_dir: str, folder: Path) -> list[str]:
    """Save three adapters that answer otherwise than the base and than one another; returns their folders."""
    return [
        make_tiny_adapter(model_dir, folder / f"adapter{seed}", seed, rank=8, alpha=16, scale=0.07)
        for seed in (1, 2, 3)
    ]


@contextmanager
def open_engine(model_dir: str, dtype: str) -> Iterator[Any]:
    """Give vLLM's LLM on the tiny model."""
    from vllm import LLM

    from raydistill.engine.args import vllm_args
    from raydistill.engine.config import EngineConfig

    config = EngineConfig(dtype=dtype, max_model_len=256, max_num_seqs=16, max_loras=2, max_lora_rank=8)
    args = vllm_args(config, on_gpu=False, lora=True) | {
        "max_loras": 3,
        "max_num_batched_tokens": 128,  # longer prompts are cut in chunks
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        llm = LLM(model_dir, **args)
        yield llm
        llm.llm_engine.engine_core.shutdown()


def ask(llm: Any, prompts: list[list[int]], adapters: list[Any], **wanted: Any) -> list[Any]:
    """Return the greedy answers, as TokenResults."""
    from vllm import TokensPrompt

    from raydistill.core.records import TokenRequest
    from raydistill.engine.wording import make_result, sampling_params

    row = TokenRequest(tokens=[], temperature=0, ignore_eos=True, **wanted)
    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts],
        sampling_params(row),
        lora_request=adapters,
        use_tqdm=False,
    )
    return [make_result(row, output, "", 0.0) for output in outputs]
