"""What the engine's workers load: the base's weights with the adapter added, the same as PEFT's own merging."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from raydistill.engine.merging import add_adapter
from tests.tiny_adapter import make_tiny_adapter


@pytest.fixture(scope="module")
def base(model_dir):
    return load_file(f"{model_dir}/model.safetensors")


def test_weights_equal_pefts_own_merging(model_dir, base, tmp_path):
    folder = make_tiny_adapter(model_dir, tmp_path / "adapter", rank=4, alpha=12)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()  # pyright: ignore[reportCallIssue]
    changed = 0
    for name, weight in add_adapter(base.items(), folder):
        torch.testing.assert_close(weight.float(), merged[name], atol=1e-6, rtol=1e-5)
        changed += not torch.equal(weight, base[name])
    assert changed == 14, "all linear layers of both blocks"


def test_a_module_that_the_base_lacks_is_named(base, adapter_dir):
    lacking = {name: weight for name, weight in base.items() if "layers.1.mlp.up_proj" not in name}
    with pytest.raises(ValueError, match=r"no weight of model\.layers\.1\.mlp\.up_proj"):
        list(add_adapter(lacking.items(), adapter_dir))
