"""The student's replica: a token server that resolves alias to version in the call that submits to the engine."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from raydistill.core.errors import NotFoundError, ServiceError
from raydistill.core.records import TokenRequest, Version
from raydistill.core.uris import parse_model_path
from raydistill.engine import counting
from raydistill.engine.counting import Asked
from raydistill.engine.server import TokenServer
from raydistill.serving.adapters import AdapterTable, Gate
from raydistill.serving.folder import PrivateFolder

logger = logging.getLogger(__name__)

REGISTRY_PATIENCE_SECONDS = 540.0  # below the default of start_timeout_seconds, so that the reason is told
VERSION_PATIENCE_SECONDS = 20.0


class StudentServer(TokenServer):
    """TokenServer with the base model and every verified version that an alias points to."""

    _table: AdapterTable
    _poll: asyncio.Task[None]

    async def start(self) -> None:
        """Start the engine, then load what the aliases mean, before the replica reports healthy."""
        await super().start()
        options = self._llm_config.experimental_configs["raydistill"]
        self._folder = PrivateFolder()
        gate = Gate(
            folder=self._folder.path,
            model_dir=self._client.model_config.model,
            max_rank=options["max_lora_rank"],
            load=self.load_adapter,
            score=self._score_probe,
            unload=self.unload_adapter,
        )
        self._table = self._make_table(options, gate)
        await self._table.start(options["poll_seconds"], REGISTRY_PATIENCE_SECONDS, VERSION_PATIENCE_SECONDS)
        self._poll = asyncio.create_task(self._follow(options["poll_seconds"]))

    def _make_table(self, options: dict[str, Any], gate: Gate) -> AdapterTable:
        return AdapterTable(options["models_uri"], gate, options["max_resident"], self._llm_config.model_id)

    async def _follow(self, poll_seconds: float) -> None:
        while True:
            await asyncio.sleep(poll_seconds)
            try:
                await self._table.look()
            except Exception:  # the poll must outlive any fault: the old versions go on serving
                logger.exception("following the aliases failed; trying again in %s s", poll_seconds)

    async def check_health(self) -> None:
        """Fail when the engine is gone or nobody follows the aliases any more."""
        await super().check_health()
        if self._poll.done():
            raise RuntimeError("the task that follows the aliases has ended")

    async def resolve(self, model: str) -> tuple[str, Any]:
        """Return (exact version, adapter); an unknown or refused name never falls back to the base model."""
        if self.is_base(model):
            return self._llm_config.model_id, None
        loaded = await self._table.find(model)
        return loaded.engine_name, loaded.adapter

    @asynccontextmanager
    async def use_model(self, model: str) -> AsyncIterator[tuple[str, Any]]:
        """Resolve a request's `model` and keep its version in the engine for as long as the request runs."""
        if self.is_base(model):
            yield self._llm_config.model_id, None
            return
        async with self._table.use(model) as loaded:
            yield loaded.engine_name, loaded.adapter

    def known_models(self) -> list[str]:
        """Return the base model, the aliases and the loaded versions."""
        return [self._llm_config.model_id, *self._table.names()]

    async def status(self) -> dict[str, Any]:
        """Return what this replica serves, and what it refused and why."""
        return await super().status() | self._table.status()

    async def chat(self, request: Any, raw_request_info: Any = None) -> Any:
        """Return the answer of an OpenAI chat by the exact version that the alias means as it is first read."""
        return self._chat(request, raw_request_info)

    async def _chat(self, request: Any, raw_request_info: Any) -> AsyncIterator[Any]:
        try:
            async with self.use_model(request.model or "") as (name, _):
                counting.set_asked(self.describe_asked(request.model or "", name))
                exact = request.model_copy(update={"model": name})
                async with aclosing(await super().chat(exact, raw_request_info)) as parts:  # ends before the hold does
                    async for part in parts:
                        yield part
        except NotFoundError as error:
            yield _make_error(str(error.args[0]), "NotFoundError", 404)
        except ServiceError as error:
            yield _make_error(str(error.args[0]), "ServiceUnavailableError", 503)

    def describe_asked(self, model: str, name: str) -> Asked:
        """Return as what a row counts: alias, exact version, and the tokens of P that it did not have to carry."""
        if self.is_base(name):
            return super().describe_asked(model, name)
        return Asked("/".join(parse_model_path(model)), name, self._table.saved_tokens(name))

    async def _score_probe(self, version: Version, engine_name: str, adapter: Any) -> list[float]:
        rows = [
            TokenRequest(tokens=point.prefix, max_tokens=1, temperature=0, score_token_ids=[point.token])
            for point in version.probe
        ]
        results = await asyncio.gather(*(self.generate_with(row, engine_name, adapter) for row in rows))
        return [result.scores[0][0] if result.scores else float("nan") for result in results]


def _make_error(message: str, kind: str, code: int) -> Any:
    from ray.llm._internal.serve.core.configs.openai_api_models import ErrorInfo, ErrorResponse

    return ErrorResponse(error=ErrorInfo(message=message, type=kind, code=code))
