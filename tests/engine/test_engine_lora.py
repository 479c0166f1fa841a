"""A real vLLM engine with adapters in every slot it has: equal to plain PEFT, and mixed batches equal to solo runs."""

import dataclasses
import os
import random

import psutil
import pytest
import torch

from tests.engine.lora_engine import ask, make_adapters, open_engine
from tests.plain_passes import greedy_tokens
from tests.tiny_adapter import make_tiny_adapter

pytest.importorskip("vllm")
TOKENS = 6
MIXED_BATCHES = int(os.environ.get("RAYDISTILL_MIXED_BATCHES", "20"))  # `make soak` asks for more
PROMPTS = [[5, 9, 33, 70, 8], [44, 12, 90], [61, 7, 7, 23, 150, 81, 200], [301, 10]]


@pytest.fixture(scope="module")
def engine(model_dir, tmp_path_factory):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folders = make_adapters(model_dir, tmp_path_factory.mktemp("engine"))
    bases = [AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32) for _ in folders]
    peft = [PeftModel.from_pretrained(*pair).eval() for pair in zip(bases, folders, strict=True)]
    with open_engine(model_dir, "float32") as llm:
        yield llm, model_dir, folders, peft


def _ask(llm, prompts, adapters):
    results = ask(llm, prompts, adapters, max_tokens=TOKENS)
    return [(result.tokens, result.logprobs) for result in results]


def test_mixed_batch_equals_peft_without_a_spare_slot(engine):
    from transformers import AutoModelForCausalLM
    from vllm.lora.request import LoRARequest

    llm, model_dir, folders, peft = engine
    adapters = [LoRARequest(f"a{index}", index, folder) for index, folder in enumerate(folders, 1)]
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    cases = [
        (prompt, adapter, model)
        for prompt in PROMPTS
        for adapter, model in zip([None, *adapters], [base, *peft], strict=True)
    ]
    answers = _ask(llm, [case[0] for case in cases], [case[1] for case in cases])
    for (prompt, adapter, model), (tokens, logprobs) in zip(cases, answers, strict=True):
        want_tokens, want_logprobs = greedy_tokens(model, prompt, TOKENS)
        assert tokens == want_tokens, adapter
        assert logprobs == pytest.approx(want_logprobs, abs=1e-3), adapter
    distinct = {tuple(tokens) for tokens, _ in answers[:4]}
    assert len(distinct) > 1, "the adapters change nothing, so this test would see no mistake"


def test_the_engine_computes_in_one_process(engine):
    children = psutil.Process().children()  # the engine of a replica, where the world is up, is Ray's child
    (core,) = [child for child in children if child.name().startswith("VLLM::")]
    below = [child.name() for child in core.children(recursive=True)]
    assert not [name for name in below if name.startswith("VLLM::")], below


def test_mixed_batch_equals_solo_runs(engine):
    from vllm.lora.request import LoRARequest

    llm, _, folders, _ = engine
    adapters = [None, *(LoRARequest(f"a{index}", index, folder) for index, folder in enumerate(folders, 1))]
    pairs = [(prompt, adapters[index % 4]) for index, prompt in enumerate(PROMPTS * 3)]
    mixed = _ask(llm, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    for pair, (tokens, logprobs) in zip(pairs, mixed, strict=True):
        (solo_tokens, solo_logprobs) = _ask(llm, [pair[0]], [pair[1]])[0]
        assert tokens == solo_tokens
        assert logprobs == pytest.approx(solo_logprobs, abs=1e-4)


def test_random_mixed_batches_of_base_and_three_adapters_equal_solo_runs(engine):
    from vllm.lora.request import LoRARequest

    llm, _, folders, _ = engine
    dice = random.Random(7)
    adapters = [None, *(LoRARequest(f"a{index}", index, folder) for index, folder in enumerate(folders, 1))]
    prompts = [[dice.randrange(3, 384) for _ in range(dice.choice((1, 4, 9, 30, 60)))] for _ in range(8)]
    rows = [(prompt, adapter) for prompt in prompts for adapter in adapters]
    solo = [_ask(llm, [prompt], [adapter])[0] for prompt, adapter in rows]
    for _ in range(MIXED_BATCHES):
        chosen = [dice.randrange(len(rows)) for _ in range(dice.randrange(2, 17))]
        mixed = _ask(llm, [rows[index][0] for index in chosen], [rows[index][1] for index in chosen])
        for index, (tokens, logprobs) in zip(chosen, mixed, strict=True):
            assert tokens == solo[index][0]
            assert logprobs == pytest.approx(solo[index][1], abs=1e-3)


def _ask_while(llm, adapters, refused):
    """Return the tokens of long answers in whose middle the engine is given adapters that it refuses."""
    from vllm import TokensPrompt
    from vllm.lora.request import LoRARequest

    from raydistill.core.records import TokenRequest
    from raydistill.engine.wording import sampling_params

    engine, found = llm.llm_engine, {}
    params = sampling_params(TokenRequest(tokens=[], max_tokens=100, temperature=0, ignore_eos=True))
    for index, (prompt, adapter) in enumerate(zip(PROMPTS, adapters, strict=True)):
        engine.add_request(f"r{index}", TokensPrompt(prompt_token_ids=prompt), params, lora_request=adapter)
    engine.step()
    for number, folder in enumerate(refused, 90):
        assert engine.has_unfinished_requests()
        with pytest.raises(Exception, match="add_lora"):
            engine.add_lora(LoRARequest(f"bad{number}", number, folder))
    while engine.has_unfinished_requests():
        found |= {output.request_id: list(output.outputs[0].token_ids) for output in engine.step() if output.finished}
    return [found[f"r{index}"] for index in range(len(PROMPTS))]


def test_an_adapter_that_the_engine_refuses_changes_nobodys_answers(engine, tmp_path):
    from vllm.lora.request import LoRARequest

    llm, model_dir, folders, _ = engine
    adapters = [None, *(LoRARequest(f"a{index}", index, folder) for index, folder in enumerate(folders, 1))]
    before = _ask_while(llm, adapters, [])
    refused = [make_tiny_adapter(model_dir, tmp_path / "rank64", rank=64), str(tmp_path / "nothing")]
    assert _ask_while(llm, adapters, refused) == before
    assert _ask_while(llm, adapters, []) == before


def test_probe_scores_are_the_asked_tokens(engine):
    from vllm import TokensPrompt

    from raydistill.core.records import TokenRequest
    from raydistill.engine.wording import make_result, sampling_params

    llm, model_dir, _, _ = engine
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    row = TokenRequest(tokens=PROMPTS[0], max_tokens=1, temperature=0, score_token_ids=[17])
    output = llm.generate([TokensPrompt(prompt_token_ids=row.tokens)], sampling_params(row), use_tqdm=False)[0]
    result = make_result(row, output, "", 0.0)
    with torch.no_grad():
        want = base(torch.tensor([row.tokens])).logits[0, -1].log_softmax(-1)[17]
    assert result.scores[0][0] == pytest.approx(float(want), abs=1e-3)
    assert dataclasses.asdict(result)["finish_reason"] == "length"


def test_top_logprobs_are_the_models_most_likely_tokens(engine):
    from transformers import AutoModelForCausalLM
    from vllm import TokensPrompt

    from raydistill.core.records import TokenRequest
    from raydistill.engine.wording import make_result, sampling_params

    llm, model_dir, _, _ = engine
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    row = TokenRequest(tokens=PROMPTS[0], max_tokens=3, temperature=1.0, seed=5, ignore_eos=True, top_logprobs=5)
    output = llm.generate([TokensPrompt(prompt_token_ids=row.tokens)], sampling_params(row), use_tqdm=False)[0]
    result = make_result(row, output, "", 0.0)
    with torch.no_grad():
        logits_TV = base(torch.tensor([row.tokens + result.tokens])).logits[0, len(row.tokens) - 1 : -1].log_softmax(-1)
    want = logits_TV.topk(5)
    assert result.top_ids.shape == result.top_logprobs.shape == (3, 5)
    assert result.top_logprobs.astype(float) == pytest.approx(want.values.numpy(), abs=0.02)
    of_ids = logits_TV.gather(1, torch.tensor(result.top_ids.astype("int64")))
    assert result.top_logprobs.astype(float) == pytest.approx(of_ids.numpy(), abs=0.02)
    sampled = logits_TV.gather(1, torch.tensor(result.tokens)[:, None])[:, 0]
    assert result.logprobs == pytest.approx(sampled.tolist(), abs=1e-3)


def test_a_seed_survives_a_prompt_in_chunks(engine):
    """Without our patch the engine dies here; the second time the prompt comes from the cache, in one chunk."""
    from vllm import TokensPrompt

    from raydistill.core.records import TokenRequest
    from raydistill.engine.wording import sampling_params

    prompt = [5 + index % 300 for index in range(200)]
    row = TokenRequest(tokens=prompt, max_tokens=TOKENS, temperature=1.0, seed=11, ignore_eos=True)
    llm = engine[0]
    chunked, cached = (
        llm.generate([TokensPrompt(prompt_token_ids=prompt)], sampling_params(row), use_tqdm=False)[0] for _ in range(2)
    )
    assert chunked.num_cached_tokens < 72 <= cached.num_cached_tokens
    assert chunked.outputs[0].token_ids == cached.outputs[0].token_ids
