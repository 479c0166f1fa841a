"""Rows of token ids answered by ray.data.llm's vLLM processor, with its defaults for batches and concurrency."""

import time
from collections.abc import Sequence
from typing import Any


def answer(
    rows: Sequence[tuple[int, list[int]]],
    sampling: dict[str, Any],
    model_dir: str,
    engine_args: dict[str, Any],
    runtime_env: dict[str, Any],
) -> tuple[int, float]:
    """Return how many tokens the answers have, and the seconds that all took, the start of its engine included.

    Args:
        rows: (seed, prompt tokens).
        sampling: of vLLM, without the seed.
        model_dir: local folder.
        engine_args: of vLLM.
        runtime_env: of the engine's process.
    """
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    config = vLLMEngineProcessorConfig(
        model_source=model_dir,
        engine_kwargs=dict(engine_args),
        runtime_env=dict(runtime_env),
        placement_group_config={"bundles": [{"CPU": 2}]},  # its default wants a GPU
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "tokenized_prompt": row["tokens"],
            "sampling_params": {**sampling, "seed": int(row["seed"])},
        },
        postprocess=lambda row: {"num_tokens": row["num_generated_tokens"]},
    )
    start = time.monotonic()
    dataset = ray.data.from_items([{"seed": seed, "tokens": tokens} for seed, tokens in rows])
    num_tokens = sum(row["num_tokens"] for row in processor(dataset).take_all())
    return num_tokens, time.monotonic() - start
