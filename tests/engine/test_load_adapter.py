"""What is said of an adapter that the engine does not load: a refusal, or the end of the engine."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raydistill.core.errors import EngineLostError, ServiceError, VerificationError
from raydistill.core.records import TokenRequest
from raydistill.engine.server import TokenServer


@pytest.mark.parametrize(("errored", "expected"), [(False, VerificationError), (True, EngineLostError)])
def test_an_engine_that_dies_while_it_loads_has_refused_nothing(errored: bool, expected: type[Exception]):
    async def load(request: Any) -> Any:
        return SimpleNamespace(error=SimpleNamespace(message=f"{request.lora_name}: no"))  # as vLLM tells of both

    models = SimpleNamespace(lora_requests={}, load_lora_adapter=load)
    server: Any = SimpleNamespace(engine=SimpleNamespace(_oai_models=models), _client=SimpleNamespace(errored=errored))
    with pytest.raises(expected):
        asyncio.run(TokenServer.load_adapter(server, "triage/v0001@1", Path("nowhere")))


@pytest.mark.parametrize(("failure", "code"), [(ServiceError, "unavailable"), (EngineLostError, None)])
def test_a_row_whose_engine_dies_while_its_version_is_loaded_is_lost_and_not_unavailable(
    failure: type[Exception], code: str | None
):
    class Loading(TokenServer):
        async def resolve(self, model: str) -> tuple[str, Any]:
            raise failure(f"{model} is not there")

        def __del__(self) -> None:  # LLMServer's is a coroutine, for Serve
            pass

    server: Any = object.__new__(Loading)
    rows = [TokenRequest(tokens=[1], model="triage/v0001")]
    if code is None:
        with pytest.raises(failure):
            asyncio.run(server.generate(rows))
    else:
        assert asyncio.run(server.generate(rows))[0].error_code == code
