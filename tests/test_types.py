"""The public shapes, and what importing them costs."""

import dataclasses

import pytest

from raydistill import types
from tests.processes import run_code


def test_model_input_keeps_its_tokens_when_made_from_ints():
    given = [3, 1, 2]
    prompt = types.ModelInput.from_ints(given)
    given.append(9)
    assert prompt.to_ints() == [3, 1, 2] and prompt.length == 3
    prompt.to_ints().append(7)
    assert prompt.length == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(prompt, "tokens", [])  # noqa: B010 - assignment itself is what is tested


def test_public_surface_is_light_when_imported():
    code = (
        "import sys, raydistill; "
        "raydistill.ServiceClient, raydistill.get_lr, raydistill.types.ModelInput, raydistill.renderers.get_renderer; "
        "print([m for m in ('ray', 'torch', 'vllm', 'deepspeed', 'transformers') if m in sys.modules])"
    )
    assert run_code(code) == "[]"
