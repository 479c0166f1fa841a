"""What is said of an adapter that the engine does not load: a refusal, or the end of the engine."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raydistill.core.errors import EngineGoneError, EngineLostError, ServiceError, VerificationError
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


class Server(TokenServer):
    """Without an engine; its versions cannot be loaded."""

    def __init__(self, failure: type[Exception], errored: bool) -> None:  # type: ignore[override]
        self.engine: Any = SimpleNamespace(_engine_client=SimpleNamespace(errored=errored))
        self.failure = failure

    def __del__(self) -> None:  # LLMServer's is a coroutine, for Serve
        pass

    async def resolve(self, model: str) -> tuple[str, Any]:
        raise self.failure(f"{model} is not there")


ROWS = [TokenRequest(tokens=[1], model="triage/v0001")]


def test_a_row_whose_engine_dies_while_its_version_is_loaded_is_lost_and_not_unavailable():
    assert asyncio.run(Server(ServiceError, errored=False).generate(ROWS))[0].error_code == "unavailable"
    with pytest.raises(EngineLostError):
        asyncio.run(Server(EngineLostError, errored=False).generate(ROWS))


def test_what_comes_to_an_engine_that_is_gone_is_told_that_it_has_no_part_in_that():
    server = Server(AssertionError, errored=True)
    for asked in (server.generate(ROWS), server.resolve_name("triage"), anext(server.answer_chat({}))):
        with pytest.raises(EngineGoneError):
            asyncio.run(_await(asked))


async def _await(asked: Any) -> Any:
    return await asked
