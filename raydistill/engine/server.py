"""The replica: Ray Serve's LLMServer with a token-level method, used by handle."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ray import serve
from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionRequest
from ray.llm._internal.serve.core.server.llm_server import LLMServer
from vllm import TokensPrompt
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.v1.engine.exceptions import EngineDeadError

from raydistill.core.errors import EngineGoneError, EngineLostError, NotFoundError, ServiceError, VerificationError
from raydistill.core.models import model_revision
from raydistill.core.records import TokenRequest, TokenResult, Usage
from raydistill.engine import counting
from raydistill.engine.args import find_model_here
from raydistill.engine.counting import Asked
from raydistill.engine.metrics import BASE
from raydistill.engine.pacing import SETTING, join_events
from raydistill.engine.wording import make_result, sampling_params

ERROR_EVENT = 'data: {"error"'  # how vllm begins an error in a stream


class TokenServer(LLMServer):
    """LLMServer whose `generate` takes many rows of token ids and answers each, in order."""

    async def start(self) -> None:
        """Find the model on this node and start the engine on it."""
        await asyncio.to_thread(find_model_here, self._llm_config)
        loading: Any = self._llm_config.model_loading_config
        self._revision = await asyncio.to_thread(model_revision, loading.model_source)  # of what is loaded now
        await super().start()
        counting.count_rows_of(self._client)

    async def _start_engine(self) -> None:
        """Start the engine, without two things that the parent does besides.

        Its usage reports, for which a process of 250 MB would stay; and its search for the model's files, which are
        here: a process of its own that imports vllm for it, 9 s on two cores.
        """
        callback: Any = self._llm_config.get_or_create_callback()
        callback.ctx.run_init_node = False
        engine: Any = self.engine
        await engine.start()

    async def generate(self, rows: list[TokenRequest], after: str | None = None) -> list[TokenResult]:
        """Return one result for each row.

        A row that the engine refuses (too long, bad parameters, unknown model) comes back with
        `finish_reason="error"` and the reason; the others are not touched by it.

        Args:
            rows: what to answer.
            after: the id of a request for the same rows that failed; here and below for the router, see
                raydistill.engine.routing.

        Raises:
            EngineLostError: the engine is gone; the replica will be replaced, ask again.
        """
        self._check_engine()
        return list(await asyncio.gather(*(self._generate_row(row) for row in rows)))

    async def answer_chat(
        self, fields: dict[str, Any], after: str | None = None
    ) -> AsyncIterator[dict[str, Any] | str]:
        """Yield the whole answer of an OpenAI chat, or its error, as one dict; streamed, its events as texts.

        Args:
            fields: of the request's body. Plain values in and out, so that the front need not import vllm.
            after: as in `generate`.

        Raises:
            EngineLostError: the engine is gone; the replica will be replaced, ask again.
        """
        self._check_engine()
        # The engine knows requests by their id, and two clients may choose the same one.
        fields["request_id"] = f"{fields.get('request_id', 'chat')}-{uuid.uuid4().hex[:8]}"
        try:
            request = ChatCompletionRequest(**fields)
        except (ValidationError, VLLMValidationError) as error:
            yield {"error": {"message": _describe_refusal(error), "code": 400}}
            return
        counting.set_asked(Asked(BASE, BASE))  # a student knows better, see its `chat`
        try:
            first = 2 * (request.n or 1)  # of each answer its role, and its first token
            async with aclosing(join_events(self._chat_parts(request), self._piece_seconds, first)) as parts:
                async for part in parts:
                    yield part
        except EngineDeadError:
            raise _engine_lost() from None  # vllm's own error could be read only where vllm is imported

    async def _chat_parts(self, request: ChatCompletionRequest) -> AsyncGenerator[dict[str, Any] | str, None]:
        async with aclosing(await self.chat(request)) as parts:
            async for part in parts:
                for item in part if isinstance(part, list) else [part]:
                    yield self._check_part(item if isinstance(item, str) else item.model_dump(exclude_none=True))

    def _piece_seconds(self) -> float:
        """Return how long a stream's piece is worth now: with more rows running, each sends less often."""
        per_second = self._llm_config.experimental_configs.get(SETTING)
        return self._client.output_processor.get_num_unfinished_requests() / per_second if per_second else 0.0

    def _check_part(self, part: dict[str, Any] | str) -> dict[str, Any] | str:
        """Return a part of a chat's answer, an error in a stream as the dict it is elsewhere."""
        if isinstance(part, str) and part.startswith(ERROR_EVENT):
            part = json.loads(part.removeprefix("data: "))
        if isinstance(part, dict) and "error" in part and self._client.errored:
            raise _engine_lost()
        return part

    async def info(self, after: str | None = None) -> dict[str, Any]:
        """Return what never changes: the base model, its folder, revision and vocabulary, and the longest request."""
        model_config = self._client.model_config
        return {
            "model_id": self._llm_config.model_id,
            "model_dir": model_config.model,
            "revision": self._revision,
            "vocab_size": model_config.get_vocab_size(),
            "max_model_len": model_config.max_model_len,
        }

    async def resolve(self, model: str) -> tuple[str, Any]:
        """Return (the exact model's name, its engine adapter or None) of a request's `model`.

        Raises:
            NotFoundError: nothing is known under that name.
        """
        if self.is_base(model):
            return self._llm_config.model_id, None
        raise NotFoundError(f"{model!r} is not served here. Known: {', '.join(self.known_models())}.")

    @asynccontextmanager
    async def use_model(self, model: str) -> AsyncIterator[tuple[str, Any]]:
        """Resolve a request's `model` and keep what answers it in the engine for as long as the request runs."""
        yield await self.resolve(model)

    def is_base(self, model: str) -> bool:
        """Return whether a request's `model` means the base model: nothing, its name or its folder."""
        return model in ("", self._llm_config.model_id, self._client.model_config.model)

    def describe_asked(self, model: str, name: str) -> Asked:
        """Return as what a row counts: the alias it asked for and the exact version that answers."""
        return Asked(BASE, BASE if self.is_base(name) else name)

    async def resolve_name(self, model: str, after: str | None = None) -> str:
        """Return the exact name of the model that would answer now; see `resolve`."""
        self._check_engine()
        return (await self.resolve(model))[0]

    def known_models(self) -> list[str]:
        """Return the names that requests may use."""
        return [self._llm_config.model_id]

    async def status(self) -> dict[str, Any]:
        """Return what this replica serves."""
        replica = serve.get_replica_context().replica_id.unique_id
        running = self._client.output_processor.get_num_unfinished_requests()
        models = self.known_models()
        return {"replica": replica, "base_model": self._llm_config.model_id, "models": models, "running": running}

    async def load_adapter(self, name: str, folder: Path) -> Any:
        """Load a LoRA adapter from a local folder, which must stay; return what `generate_with` takes.

        Args:
            name: the engine's id of it; never used again for other weights, since the prefix cache is keyed by it.
            folder: with adapter_config.json and adapter_model.safetensors, already verified.

        Raises:
            VerificationError: the engine refuses it.
            EngineLostError: the engine has died; the adapter may be a good one.
        """
        engine: Any = self.engine
        models = engine._oai_models  # vLLM's registry, shared with its OpenAI routes
        if name not in models.lora_requests:
            answer = await models.load_lora_adapter(LoadLoRAAdapterRequest(lora_name=name, lora_path=str(folder)))
            if not isinstance(answer, str):
                if self._client.errored:  # vLLM makes an answer of that too
                    raise _engine_lost()
                raise VerificationError(f"the engine refused the adapter: {answer.error.message}")
        return models.lora_requests[name]

    async def unload_adapter(self, name: str, adapter: Any) -> None:
        """Take an adapter that no request uses out of the engine; afterwards its files are not asked for again."""
        engine: Any = self.engine
        await engine._oai_models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))  # unknown is as good
        await self._client.remove_lora(adapter.lora_int_id)

    async def merge_adapter(self, name: str, folder: Path | None) -> None:
        """Make the engine's weights anew from the base model's files, with an adapter added, and call them by a name.

        The engine has to be started with the worker of `raydistill.engine.merging`. It finishes what it computes first,
        takes nothing meanwhile, and forgets the keys and values of all prompts: they are of the weights before.

        Args:
            name: what `model` in a chat's request has to be from now on, and what its answer names.
            folder: as in `load_adapter`; None for the base model alone.

        Raises:
            Exception: it could not be done; the weights are those of before, or those wanted, or some of each.
        """
        await self._client.pause_generation(mode="wait", clear_cache=True)
        try:
            await self._client.collective_rpc("merge_adapter", args=(str(folder) if folder else None,))
        finally:
            await self._client.resume_generation()
        engine: Any = self.engine
        models = engine._oai_models
        models.base_model_paths[:] = [BaseModelPath(name=name, model_path=self._client.model_config.model)]

    def _check_engine(self) -> None:
        """Raise EngineGoneError where the engine is gone, as it is until Serve has replaced the replica."""
        if self._client.errored:
            raise EngineGoneError("the engine is gone already. Ask again: the replica will be replaced.")

    @property
    def _client(self) -> Any:
        engine: Any = self.engine
        return engine._engine_client  # vLLM's AsyncLLM; the public surface is OpenAI requests only

    async def _generate_row(self, row: TokenRequest) -> TokenResult:
        start = time.perf_counter()
        try:
            async with self.use_model(row.model) as (name, adapter):
                with counting.asked(self.describe_asked(row.model, name)):
                    return await self.generate_with(row, name, adapter)
        except EngineDeadError:
            raise _engine_lost() from None
        except EngineLostError:  # a ServiceError too; it came while the row's version was being loaded
            raise
        except (VLLMClientError, ValueError, TypeError, LookupError, RuntimeError) as error:
            message = f"{type(error).__name__}: {error}"
            codes = {NotFoundError: "unknown_model", VLLMClientError: "refused", ServiceError: "unavailable"}
            return TokenResult(
                [],
                [],
                "error",
                Usage(len(row.tokens), 0, 0),
                latency_seconds=time.perf_counter() - start,
                error=message,
                error_code=next((code for kind, code in codes.items() if isinstance(error, kind)), ""),
            )

    async def generate_with(self, row: TokenRequest, name: str, adapter: Any) -> TokenResult:
        """Return the answer of one exact model; the row's own `model` is not looked at."""
        start = time.perf_counter()
        final = None
        async for output in self._client.generate(
            TokensPrompt(prompt_token_ids=list(row.tokens)),
            sampling_params(row),
            uuid.uuid4().hex,
            lora_request=adapter,
        ):
            final = output
        if final is None:
            raise RuntimeError("the engine ended the request without an answer")
        return make_result(row, final, name, time.perf_counter() - start)


def _engine_lost() -> EngineLostError:
    return EngineLostError("the engine is gone. Ask again: the replica will be replaced.")


def _describe_refusal(error: ValidationError | VLLMValidationError) -> str:
    """Return what is wrong with a request in one line, the field first where it is known."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'][:3]))}: {first['msg']}"
