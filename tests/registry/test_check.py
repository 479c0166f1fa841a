"""Checks before an engine sees an adapter: each fault alone is refused with its own reason."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from raydistill.core.errors import VerificationError
from raydistill.registry import check
from raydistill.registry.check import check_version
from raydistill.registry.fetch import fetch_version
from raydistill.registry.publish import publish
from raydistill.renderers import load_tokenizer
from tests.drafts import make_tiny_draft
from tests.processes import run_code
from tests.tiny import make_tiny_model


@pytest.fixture
def fetched(model_dir, adapter_dir, tmp_path):
    """A version and its fetched folder, private to the test, which may damage it."""
    uri = str(tmp_path / "models" / "triage")
    version = publish(uri, make_tiny_draft(model_dir), adapter_dir)
    return version, fetch_version(uri, version, tmp_path / "cache")


def change_weights(folder, change):
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def test_check_accepts_what_was_published(fetched, model_dir):
    version, folder = fetched
    check_version(version, folder, model_dir, max_rank=4)


def test_check_accepts_bfloat16_weights(fetched, model_dir):
    version, folder = fetched
    change_weights(folder, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    check_version(version, folder, model_dir, max_rank=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -101.0])
def test_check_refuses_one_bad_weight(fetched, model_dir, value, dtype):
    version, folder = fetched

    def poison(tensors):
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        list(tensors.values())[-1][1, 1] = value
        return tensors

    change_weights(folder, poison)
    with pytest.raises(VerificationError, match="holds a weight of"):
        check_version(version, folder, model_dir, max_rank=4)


def test_the_tokenizer_is_read_once_for_a_revision_of_the_base(fetched, model_dir, monkeypatch):
    version, folder = fetched
    read = []
    monkeypatch.setattr(check, "load_tokenizer", lambda place: read.append(place) or load_tokenizer(place))
    check._template_digest.cache_clear()
    for _ in range(2):
        check_version(version, folder, model_dir, max_rank=4)
    assert read == [model_dir]
    check._template_digest(version.renderer, model_dir, "another revision")
    assert read == [model_dir, model_dir]


def test_check_refuses_another_base_model_a_template_and_a_rank(fetched, model_dir, tmp_path):
    version, folder = fetched
    other = make_tiny_model(tmp_path / "other", dtype="bfloat16")
    with pytest.raises(VerificationError, match="Serve the base model it was trained on"):
        check_version(version, folder, other, max_rank=4)
    odd = dataclasses.replace(version, template_digest="0" * 32)
    with pytest.raises(VerificationError, match="chat template"):
        check_version(odd, folder, model_dir, max_rank=4)
    with pytest.raises(VerificationError, match="max_lora_rank=4"):
        check_version(version, folder, model_dir, max_rank=3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"r": 8}, "rank 8"),
        ({"lora_alpha": 1e30}, "alpha 1e\\+30"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 64}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": "many"}, "no LoRA configuration"),
    ],
)
def test_check_refuses_a_configuration_that_is_not_the_published_plain_lora(fetched, model_dir, changes, reason):
    version, folder = fetched
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(VerificationError, match=reason):
        check_version(version, folder, model_dir, max_rank=64)


def test_check_refuses_a_scale_that_was_published_too_large(fetched, model_dir):
    version, folder = fetched
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 1e30}))
    published = dataclasses.replace(version, lora={**version.lora, "alpha": 1e30})
    with pytest.raises(VerificationError, match="alpha/rank"):
        check_version(published, folder, model_dir, max_rank=4)


def test_check_refuses_to_merge_a_head_that_is_tied_to_the_embeddings(fetched, model_dir):
    version, folder = fetched
    head = {
        "base_model.model.lm_head.lora_A.weight": torch.full((4, 128), 0.1),
        "base_model.model.lm_head.lora_B.weight": torch.full((384, 4), 0.1),
    }
    change_weights(folder, lambda tensors: {**tensors, **head})
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": "all-linear"}))
    version = dataclasses.replace(version, lora={**version.lora, "modules": 15})
    check_version(version, folder, model_dir, max_rank=4)
    with pytest.raises(VerificationError, match=r"adapts lm_head, which is tied .* cannot be merged"):
        check_version(version, folder, model_dir, max_rank=4, merges=True)


def drop_module(tensors):
    return {name: tensor for name, tensor in tensors.items() if "layers.1.self_attn.q_proj" not in name}


def rename_module(tensors):
    return {name.replace("layers.1.self_attn.q_proj", "layers.7.self_attn.q_proj"): t for name, t in tensors.items()}


def cut_factor(tensors):
    return {name: t[:, :-1].contiguous() if "0.mlp.down_proj.lora_A" in name else t for name, t in tensors.items()}


def drop_factor(tensors):
    return {name: tensor for name, tensor in tensors.items() if "0.mlp.down_proj.lora_B" not in name}


def add_tensor(tensors):
    name = next(name for name in tensors if "lora_A" in name)
    return {**tensors, name.replace("lora_A.weight", "lora_magnitude_vector"): torch.zeros(4)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (drop_module, "adapts 13 modules"),
        (rename_module, "is no linear layer"),
        (cut_factor, "has shape"),
        (drop_factor, "has shape None"),
        (add_tensor, "no LoRA factors"),
    ],
)
def test_check_refuses_modules_that_do_not_fit_the_base(fetched, model_dir, change, reason):
    version, folder = fetched
    change_weights(folder, change)
    with pytest.raises(VerificationError, match=reason):
        check_version(version, folder, model_dir, max_rank=4)


def test_check_loads_no_torch_ray_or_vllm(fetched, model_dir, tmp_path):
    version, folder = fetched
    (tmp_path / "version.json").write_text(json.dumps(dataclasses.asdict(version)))
    code = (
        "import sys; from pathlib import Path\n"
        "from raydistill.core.records import version_from_json\n"
        "from raydistill.registry import aliases, check, fetch, files, probe, publish, resolve\n"
        f"check.check_weights(Path({str(folder / 'adapter_model.safetensors')!r}), 'x')\n"
        "print([name for name in ('torch', 'ray', 'vllm', 'deepspeed') if name in sys.modules])"
    )
    assert run_code(code) == "[]"
