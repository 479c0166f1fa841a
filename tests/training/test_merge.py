"""The merged model is base and adapter in one, for plain transformers; it lies whole beside its version."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from raydistill.core import storage
from raydistill.registry.delete import delete_version
from raydistill.registry.merged import merged_uri, publish_merged, read_merged
from raydistill.registry.publish import publish
from raydistill.training.merge import merge_adapter
from tests.drafts import make_draft
from tests.tiny import make_tiny_model
from tests.tiny_adapter import make_tiny_adapter


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_model_gives_the_logits_of_base_and_adapter(tmp_path, dtype):
    base = make_tiny_model(tmp_path / "base", dtype=dtype)
    adapter = make_tiny_adapter(base, tmp_path / "adapter")
    merge_adapter(base, str(adapter), str(tmp_path / "merged"))
    text = "My order has not arrived yet"
    tokens = AutoTokenizer.from_pretrained(tmp_path / "merged")(text, return_tensors="pt").input_ids
    assert tokens.tolist() == AutoTokenizer.from_pretrained(base)(text, return_tensors="pt").input_ids.tolist()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == getattr(torch, dtype)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    bare = plain(tokens).logits
    both = PeftModel.from_pretrained(plain, str(adapter))(tokens).logits
    found = merged.float()(tokens).logits
    assert (both - bare).abs().mean() > 0.1
    torch.testing.assert_close(found, both, atol=1e-4 if dtype == "float32" else 0.5, rtol=0)
    assert (found - both).abs().mean() < 0.05 * (both - bare).abs().mean()
    assert not [file for file in (tmp_path / "merged").iterdir() if file.suffix in (".bin", ".pt")]


def test_merged_model_is_there_only_when_its_record_is(tmp_path, adapter_dir):
    uri = str(tmp_path / "models" / "triage")
    version = publish(uri, make_draft(), adapter_dir)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "model.safetensors").write_text("x")
    assert read_merged(uri, version) is None
    publish_merged(uri, version, tmp_path / "merged")
    record = read_merged(uri, version)
    assert record is not None and [entry["name"] for entry in record["files"]] == ["model.safetensors"]
    delete_version(uri, version.label)
    assert read_merged(uri, version) is None and storage.list_names(merged_uri(uri, version.label)) == []
