"""Liger's kernels by a stand-in for the package: what it is asked for, where, and what is done when it is wrong."""

import importlib.machinery
import sys
import types

import pytest
import torch
from transformers.models.llama import modeling_llama

from raydistill.training.batches import EncodedRow
from raydistill.training.kernels import PACKAGE, add_kernels
from tests.training.workers import make_student

ROW = EncodedRow("a", [5, 6, 7], [8, 9])
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def liger(monkeypatch):
    """The package: it scales what norms and rotary positions give by its factor; None patches nothing."""
    package, inner = types.ModuleType(PACKAGE), types.ModuleType(f"{PACKAGE}.transformers")
    package.__spec__ = importlib.machinery.ModuleSpec(PACKAGE, None)
    package.asked, package.factor = [], 1.0

    def apply(model, **flags):
        package.asked.append(flags)
        if package.factor is None:
            return
        rotate, norm = modeling_llama.apply_rotary_pos_emb, model.model.norm
        plain = norm.forward
        monkeypatch.setattr(
            modeling_llama, "apply_rotary_pos_emb", lambda *args: tuple(package.factor * one for one in rotate(*args))
        )
        norm.__dict__["forward"] = lambda hidden: package.factor * plain(hidden)

    inner._apply_liger_kernel_to_instance = apply
    monkeypatch.setitem(sys.modules, PACKAGE, package)
    monkeypatch.setitem(sys.modules, f"{PACKAGE}.transformers", inner)
    return package


def test_kernels_are_asked_for_without_those_of_head_and_loss(liger, model_dir):
    model = make_student(model_dir)
    assert add_kernels(model, ROW, "float32", CUDA)
    assert liger.asked == [{"cross_entropy": False, "fused_linear_cross_entropy": False}]
    assert "forward" in vars(model.get_base_model().model.norm)


def test_kernels_are_not_for_cpus_and_not_without_the_package(liger, model_dir, monkeypatch):
    model = make_student(model_dir)
    assert not add_kernels(model, ROW, "float32", CPU)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert not add_kernels(model, ROW, "float32", CUDA) and not liger.asked


def test_kernels_that_change_the_logits_are_taken_back_with_a_warning(liger, model_dir, caplog):
    model, rotate = make_student(model_dir), modeling_llama.apply_rotary_pos_emb
    tokens = torch.tensor([[5, 6, 7, 8]])
    before, liger.factor = model(tokens).logits, 1.5
    assert not add_kernels(model, ROW, "float32", CUDA) and len(liger.asked) == 1
    assert torch.equal(model(tokens).logits, before) and modeling_llama.apply_rotary_pos_emb is rotate
    assert "forward" not in vars(model.get_base_model().model.norm) and "trains without them" in caplog.text


def test_family_that_has_no_kernels_is_told(liger, model_dir, caplog):
    liger.factor = None
    assert not add_kernels(make_student(model_dir), ROW, "float32", CUDA)
    assert "knows none for LlamaForCausalLM" in caplog.text
