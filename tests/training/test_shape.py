"""What is known of a student and its adapter before a weight is loaded, and what is advised from it."""

import logging

import pytest
import torch
from transformers import AutoConfig

from raydistill.core.errors import ConfigError
from raydistill.training.batches import EncodedRow, plan_steps
from raydistill.training.checks import advise
from raydistill.training.fitting import describe_shortage, is_shortage
from raydistill.training.model import load_student
from raydistill.training.shape import check_targets, read_shape
from raydistill.training.usage import GPU_PEAK_FLOPS, count_parameters, peak_flops
from tests.training.fit_driver import make_config
from tests.training.runs import make_job


@pytest.mark.parametrize("targets", [None, ["q_proj", "down_proj"]])
def test_shape_counts_what_peft_makes(model_dir, targets):
    model = load_student(model_dir, 4, 4, 0, "float32", targets)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    shape = read_shape(model_dir)
    assert shape.count_lora(4, targets) == trained
    assert shape.num_parameters == sum(value.numel() for value in model.parameters()) - trained
    lora = [name.rpartition(".lora_")[0] for name, _ in model.named_parameters() if "lora_" in name]
    adapted = {name.rpartition(".")[2] for name in lora}
    assert adapted == (set(targets) if targets else {name for name, _, _ in shape.linear})


def test_unknown_targets_are_named_with_the_known_ones(model_dir):
    shape = read_shape(model_dir)
    check_targets(None, shape)
    check_targets(["q_proj"], shape)
    with pytest.raises(ConfigError, match=r"no linear layer qproj, lm_head.*did you mean q_proj.*up_proj"):
        check_targets(["qproj", "lm_head"], shape)


def test_student_without_linear_layers_is_refused(tmp_path):
    AutoConfig.for_model("gpt2", vocab_size=90, n_embd=32, n_layer=1, n_head=2).save_pretrained(tmp_path)
    shape = read_shape(str(tmp_path))
    for targets in (None, ["c_attn"]):
        with pytest.raises(ConfigError, match="no linear layer but its head that could carry an adapter"):
            check_targets(targets, shape)


@pytest.mark.parametrize(
    ("num_tokens", "num_steps", "said"),
    [
        (1000, 200, []),
        (1000, 99, ["99 steps are few"]),
        (40_000, 200, ["16384 parameters for 40000 completion tokens", "lora_rank=10 would"]),
    ],
)
def test_few_steps_and_a_small_adapter_are_advised_against(model_dir, caplog, num_tokens, num_steps, said):
    rows = [EncodedRow(f"r{index}", [1], [2] * (num_tokens // 8)) for index in range(8)]
    config = make_config(model_dir, "unused", lora_rank=4)
    with caplog.at_level(logging.WARNING):
        advise(config, rows, plan_steps(8, 8, num_steps, None, 0), read_shape(model_dir))
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert all(part in text for part in said) and len(caplog.records) == (1 if said else 0)


def test_parameters_of_a_token_leave_out_an_embedding_that_is_no_head(model_dir):
    tied = load_student(model_dir, 4, 4, 0, "float32").get_base_model()
    assert count_parameters(tied) == sum(value.numel() for value in tied.parameters())
    head, embedding = tied.get_output_embeddings(), tied.get_input_embeddings()
    head.weight = torch.nn.Parameter(embedding.weight.detach().clone())
    assert count_parameters(tied) == sum(value.numel() for value in tied.parameters()) - embedding.weight.numel()


def test_peak_is_measured_on_a_cpu_and_looked_up_for_a_gpu(monkeypatch):
    assert 1e8 < peak_flops(torch.device("cpu"), "float32") < 1e14
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    assert peak_flops(torch.device("cuda"), "bfloat16") == GPU_PEAK_FLOPS["H100", "bfloat16"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L40S")
    assert peak_flops(torch.device("cuda"), "bfloat16") == GPU_PEAK_FLOPS["L40S", "bfloat16"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU 9000")
    assert peak_flops(torch.device("cuda"), "bfloat16") is None


def test_shortage_of_memory_says_what_fits(model_dir):
    job = make_job(model_dir, "unused")
    assert is_shortage(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")) and is_shortage(MemoryError())
    assert is_shortage(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."))
    assert not is_shortage(RuntimeError("shape mismatch"))
    weights = describe_shortage(job, 70 * 10**9, 80 * 1024, "GPU", num_workers=2)
    assert "80.0 GiB" in weights and "take 260.8" in weights and "micro_batch_size" not in weights
    assert "dtype=bfloat16" in weights and "zero_stage=3 with num_workers=6" in weights and "offload=" in weights
    activations = describe_shortage(job, 10**9, 80 * 1024, "GPU", num_workers=1)
    assert "micro_batch_size=1" in activations and "max_length" in activations and "offload" not in activations
    assert "num_workers=1" in describe_shortage(job, 10**9, 8 * 1024, "machine", num_workers=2)


@pytest.mark.parametrize(
    ("dtype", "billions", "kind", "gib", "workers", "advice"),
    [
        ("float32", 20, "GPU", 80, 1, "dtype=bfloat16, or zero_stage=3 with num_workers=2 or more"),
        ("bfloat16", 70, "GPU", 80, 2, "zero_stage=3 with num_workers=3 or more"),
        (
            "float32",
            70,
            "GPU",
            80,
            2,
            "dtype=bfloat16 with zero_stage=3 and num_workers=3 or more, or zero_stage=3 with num_workers=6 or more",
        ),
        ("float32", 2, "machine", 16, 2, "dtype=bfloat16, or num_workers=1"),
        ("float32", 3, "machine", 16, 2, "dtype=bfloat16 with num_workers=1"),
        ("float32", 3, "machine", 16, 1, "dtype=bfloat16"),
        ("bfloat16", 3, "machine", 16, 2, "num_workers=1"),
    ],
)
def test_shortage_of_memory_advises_what_fits_alone_or_together(model_dir, dtype, billions, kind, gib, workers, advice):
    job = make_job(model_dir, "unused", dtype=dtype)
    text = describe_shortage(job, billions * 10**9, gib * 1024, kind, workers, machine_mib=32 * 1024)
    assert f" Set {advice}. The same command" in text
    assert ("in each of 2 workers" in text) == (kind == "machine" and workers == 2)


@pytest.mark.parametrize(("dtype", "workers"), [("float32", 2), ("bfloat16", 1)])
def test_shortage_of_memory_says_so_where_nothing_fits(model_dir, dtype, workers):
    text = describe_shortage(make_job(model_dir, "unused", dtype=dtype), 8 * 10**9, 16 * 1024, "machine", workers)
    assert text.endswith("Take a smaller student_model, or a machine with 25 GiB or more.") and " Set " not in text


@pytest.mark.parametrize(
    ("machine_gib", "advice"),
    [
        (200, "offload=parameters with zero_stage=3"),
        (100, "dtype=bfloat16 with zero_stage=3 and offload=parameters"),
        (40, None),
    ],
)
def test_offload_is_advised_where_the_machine_holds_the_base_of_each_worker(model_dir, machine_gib, advice):
    job = make_job(model_dir, "unused")
    text = describe_shortage(job, 14 * 10**9, 24 * 1024, "GPU", 2, machine_mib=machine_gib * 1024)
    assert text.endswith("it is another run.") and ("offload" in text) == (advice is not None)
    assert advice is None or f", or {advice}. The same" in text


def test_base_that_lies_in_the_machine_or_on_many_gpus_is_not_what_is_short(model_dir):
    for stage, offload, workers in ((3, "parameters", 1), (3, "none", 8)):
        text = describe_shortage(make_job(model_dir, "unused", stage, offload), 70 * 10**9, 80 * 1024, "GPU", workers)
        assert "micro_batch_size=1" in text and "a smaller max_length" in text and "zero_stage" not in text
