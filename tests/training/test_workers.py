"""Steps on real worker processes: any number of them, and any ZeRO stage, is the same training."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from raydistill.training.batches import rows_of_step
from tests.training import workers

CASES = [(num_workers, stage) for num_workers, stages in workers.STAGES.items() for stage in stages]


@pytest.fixture(scope="module")
def trained(gloo_results):
    """The folder of results of 1, 2 and 3 workers; all resume from what two workers in stage 2 saved."""
    return gloo_results.trained


def _folder(trained, num_workers: int, stage: int):
    return trained / f"workers{num_workers}-stage{stage}"


@pytest.fixture(scope="module")
def plain(model_dir) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients and loss of the first step by plain PEFT: row by row, no packing, no DeepSpeed."""
    model = workers.make_student(model_dir)
    rows = workers.make_rows()
    step = [rows[index] for index in rows_of_step(workers._plan(), 0)]
    losses, count = [], 0
    for row in step:
        tokens = torch.tensor([row.prompt_tokens + row.response_tokens])
        logprobs = model(tokens).logits[0].log_softmax(-1)
        for place, token in enumerate(row.response_tokens, start=len(row.prompt_tokens)):
            losses.append(-logprobs[place - 1, token])
            count += 1
    loss = torch.stack(losses).sum() / count
    loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.requires_grad}, loss.item()


@pytest.mark.parametrize(("num_workers", "stage"), CASES)
def test_gradients_are_those_of_plain_peft_on_any_number_of_workers(trained, plain, num_workers, stage):
    expected, loss = plain
    found = load_file(_folder(trained, num_workers, stage) / "gradients.safetensors")
    assert set(found) == set(expected) and len(found) == 28
    assert max(value.abs().max() for value in expected.values()) > 1e-2
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5)
    losses = json.loads((_folder(trained, num_workers, stage) / "losses.json").read_text())
    assert losses["losses"][0] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize(("num_workers", "stage"), CASES)
def test_losses_of_all_stages_and_worker_counts_agree(trained, num_workers, stage):
    reference = json.loads((_folder(trained, 1, 0) / "losses.json").read_text())
    found = json.loads((_folder(trained, num_workers, stage) / "losses.json").read_text())
    assert len(found["losses"]) == workers.STEPS
    assert found["losses"] == pytest.approx(reference["losses"], abs=2e-4)
    assert found["validation"] == pytest.approx(reference["validation"], abs=1e-5)


@pytest.mark.parametrize(("num_workers", "stage"), CASES)
def test_resuming_equals_an_undisturbed_run_when_workers_and_stage_change(trained, num_workers, stage):
    undisturbed = load_file(_folder(trained, 2, 2) / "weights.safetensors")
    resumed = load_file(_folder(trained, num_workers, stage) / "resumed.safetensors")
    start = load_file(_folder(trained, 2, 2) / "checkpoint" / "adapter" / "adapter_model.safetensors")
    assert set(resumed) == set(undisturbed)
    for name, weight in resumed.items():
        torch.testing.assert_close(weight, undisturbed[name], atol=2e-5, rtol=1e-4)
    moved = [name for name, weight in start.items() if not torch.equal(weight, undisturbed[_in_peft(name)])]
    assert len(moved) == len(start)
    losses = json.loads((_folder(trained, 2, 2) / "losses.json").read_text())["losses"]
    found = json.loads((_folder(trained, num_workers, stage) / "resumed.json").read_text())
    assert found["step"] == workers.SAVED_AT
    assert found["losses"] == pytest.approx(losses[workers.SAVED_AT :], abs=1e-5)


@pytest.fixture(scope="module")
def taught(model_dir) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Gradients and means of the taught rows by plain PEFT: whole prompts, row by row, the formulas by hand."""
    model = workers.make_student(model_dir)
    sums = {"loss": 0.0, "kl": 0.0, "cross_entropy": 0.0, "tokens": 0, "taught": 0}
    for row in workers.make_taught_rows():
        q_TV = _logprobs(model, row.prompt_tokens, row.response_tokens)
        cross_entropy = -q_TV[range(len(q_TV)), row.response_tokens].sum()
        weight, kl = 0.0, torch.tensor(0.0)
        if row.top_ids is not None:
            weight = workers.OBJECTIVE.kl_weight
            ids, p_TK = torch.from_numpy(row.top_ids).long(), torch.from_numpy(row.top_logprobs).float().exp()
            q_TK, tail_T = q_TV.exp().gather(1, ids), 1 - p_TK.sum(-1)
            kl = (p_TK * (p_TK / q_TK).log()).sum() + (tail_T * (tail_T / (1 - q_TK.sum(-1))).log()).sum()
        elif row.teacher_tokens is not None:
            weight = 1.0 if row.is_generic else workers.OBJECTIVE.kl_weight
            with model.disable_adapter(), torch.no_grad():
                before = [] if row.is_generic else list(workers.PREFIX)
                p_TV = _logprobs(model, [*before, *row.teacher_tokens], row.response_tokens)
            kl = (p_TV.exp() * (p_TV - q_TV)).sum()
        sums["loss"] += weight * kl + (1 - weight) * cross_entropy
        sums["kl"] += kl.item()
        sums["cross_entropy"] += cross_entropy.item()
        sums["tokens"] += len(q_TV)
        sums["taught"] += len(q_TV) * (weight > 0)
    loss = sums["loss"] / sums["tokens"]
    loss.backward()
    means = {"loss": loss.item(), "kl": sums["kl"] / sums["taught"]}
    means |= {"cross_entropy": sums["cross_entropy"] / sums["tokens"], "num_tokens": sums["tokens"]}
    return {name: value.grad for name, value in model.named_parameters() if value.requires_grad}, means


def _logprobs(model, prompt: list[int], response: list[int]) -> torch.Tensor:
    return model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


@pytest.mark.parametrize(("num_workers", "stage"), CASES)
def test_gradients_to_teachers_are_those_of_plain_peft_on_any_number_of_workers(trained, taught, num_workers, stage):
    expected, means = taught
    folder = _folder(trained, num_workers, stage)
    found = load_file(folder / "taught.safetensors")
    assert set(found) == set(expected) and max(value.abs().max() for value in expected.values()) > 1e-2
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5)
    written = json.loads((folder / "taught.json").read_text())
    assert written["step"] == pytest.approx(means, abs=1e-5)
    assert written["validation"] == pytest.approx(means, abs=1e-5)


def _in_peft(name: str) -> str:
    return name.replace(".weight", ".default.weight")


def test_saved_adapter_loads_in_plain_peft_when_training_wrote_it(trained, model_dir):
    adapter = _folder(trained, 2, 3) / "checkpoint" / "adapter"
    assert sorted(file.name for file in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base/as-written"
    assert config["r"] == workers.RANK and config["lora_alpha"] == workers.ALPHA
    assert set(config["target_modules"]) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    base = AutoModelForCausalLM.from_pretrained(model_dir)
    tokens = torch.tensor([[5, 9, 200, 31]])
    before = base(tokens).logits
    loaded = PeftModel.from_pretrained(base, str(adapter))
    weights = dict(loaded.named_parameters())
    assert all(torch.equal(weights[_in_peft(name)], value) for name, value in tensors.items())
    assert (loaded(tokens).logits - before).abs().max() > 1e-2
