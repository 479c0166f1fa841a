"""What the engine says of an adapter that it does not load: a refusal, or the end of the engine."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raydistill.core.errors import EngineLostError, VerificationError
from raydistill.engine.server import TokenServer


@pytest.mark.parametrize(("errored", "expected"), [(False, VerificationError), (True, EngineLostError)])
def test_an_engine_that_dies_while_it_loads_has_refused_nothing(errored: bool, expected: type[Exception]):
    async def load(request: Any) -> Any:
        return SimpleNamespace(error=SimpleNamespace(message=f"{request.lora_name}: no"))  # as vLLM tells of both

    models = SimpleNamespace(lora_requests={}, load_lora_adapter=load)
    server: Any = SimpleNamespace(engine=SimpleNamespace(_oai_models=models), _client=SimpleNamespace(errored=errored))
    with pytest.raises(expected):
        asyncio.run(TokenServer.load_adapter(server, "triage/v0001@1", Path("nowhere")))
