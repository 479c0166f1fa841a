"""A student for one alias: its version is merged into the engine's weights, so a row costs what the base's costs.

The weights change in place, in a running engine: no second copy of the model, no second accelerator, no restart. The
price is a moment without traffic: requests that run are answered first, and those that come meanwhile wait, until the
new weights have passed the version's probe or the old ones are back.
"""

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from raydistill.core.errors import NotFoundError, RaydistillError, ServiceError
from raydistill.core.uris import parse_model_path
from raydistill.serving.adapters import AdapterTable, Key
from raydistill.serving.gate import Gate, Loaded
from raydistill.serving.replica import StudentServer
from raydistill.serving.weights import Weights


class MergedTable(AdapterTable):
    """An AdapterTable that follows one alias, and serves no version beside the one that it means."""

    def __init__(self, models_uri: str, gate: Gate, alias: Key, weights: Weights) -> None:
        """Take the registry's folder, the checks, the alias as (model's name, alias), and what is changed for it."""
        super().__init__(models_uri, gate, max_resident=1)
        self._alias = alias
        self._weights = weights

    def _wanted(self) -> set[Key]:
        return super()._wanted() & {self._alias}

    def _may_mean(self, key: Key, label: str) -> bool:
        return True  # it is in the weights, and requests wait; the next look follows to where the alias is by now

    def _point(self, key: Key, loaded: Loaded) -> None:
        super()._point(key, loaded)
        self._weights.open()

    async def find(self, model: str) -> Loaded:
        """Return the version that is merged, if a request's `model` means it; see `AdapterTable.find`."""
        served = self._served.get(self._alias)
        try:
            name, ref = parse_model_path(model)
        except RaydistillError:
            name = ref = ""
        if served is not None and name == self._alias[0] and ref in (self._alias[1], served.version.label):
            return served
        if (name, ref) == self._alias:
            raise self._explain(model, name, ref)
        only = f"this student has only {'/'.join(self._alias)}, merged into its weights"
        raise NotFoundError(f"{model!r} is not served here: {only}. {self._describe()}")

    def names(self) -> list[str]:
        """Return the alias and its version; one that was replaced is no name, though its files leave a look later."""
        served = self._served.get(self._alias)
        return [] if served is None else ["/".join(self._alias), f"{self._alias[0]}/{served.version.label}"]

    @asynccontextmanager
    async def use(self, model: str) -> AsyncIterator[Loaded]:
        """Find the version, when its weights do not change, and keep them for as long as the request runs."""
        async with self._weights.use() as held:
            loaded = await self.find(model)
            if loaded.engine_name != held:  # a guard: nothing is known that would lead here
                raise ServiceError(f"the weights are {held}'s, not {loaded.engine_name}'s")
            yield loaded


class MergedServer(StudentServer):
    """StudentServer whose weights are the one served version's; the base model itself is not served."""

    _weights: Weights

    def _make_table(self, options: dict[str, Any], gate: Gate) -> MergedTable:
        name, alias = parse_model_path(options["merged_alias"])
        self._weights = Weights(self._llm_config.model_id, self.merge_adapter)
        gate = dataclasses.replace(
            gate,
            load=self._weights.load,
            unload=self._weights.unload,
            merges=True,
            limit_seconds=gate.limit_seconds + options["request_timeout_seconds"],  # it waits for those that run
        )
        return MergedTable(options["models_uri"], gate, (name, alias), self._weights)

    async def check_health(self) -> None:
        """Fail as StudentServer does, and where the weights are nobody's."""
        await super().check_health()
        if self._weights.fault:
            raise RuntimeError(self._weights.fault)

    def is_base(self, model: str) -> bool:
        """Return False: the base model's weights are not there."""
        del model
        return False

    def known_models(self) -> list[str]:
        """Return the alias and the version that it means, when there is one."""
        return self._table.names()

    async def status(self) -> dict[str, Any]:
        """Return what this replica serves, and whether requests wait while its weights change."""
        return await super().status() | {"adapter_mode": "merged", "weights_change": self._weights.are_changing}
