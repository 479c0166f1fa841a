"""What a replica serves: which version each alias points to, and why a version was refused.

A version is downloaded beside the old one, checked, loaded under an id that is never reused, and proved by its
probe; only then does the replica's own pointer move, between requests. A refused version leaves the old one serving.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydistill.core import storage
from raydistill.core.errors import NotFoundError, RaydistillError, StorageError, VerificationError
from raydistill.core.records import Version
from raydistill.core.uris import join, parse_model_path
from raydistill.registry.aliases import read_aliases
from raydistill.registry.check import check_version
from raydistill.registry.fetch import fetch_version
from raydistill.registry.probe import probe_passes
from raydistill.registry.versions import read_version

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A version in the engine."""

    version: Version
    engine_name: str  # name/v0001@digest: what every response carries
    adapter: Any  # vLLM's LoRARequest


@dataclass(frozen=True)
class Gate:
    """What a version must pass before traffic: where it is unpacked, what it is checked against, how it is tried."""

    folder: Path
    model_dir: str
    max_rank: int
    load: Callable[[str, Path], Awaitable[Any]]  # engine name, folder -> adapter
    score: Callable[[Version, str, Any], Awaitable[list[float]]]  # -> log-probability of each probe point's token


class AdapterTable:
    """The aliases and versions of every model below one registry folder, as this replica serves them."""

    def __init__(self, models_uri: str, gate: Gate) -> None:
        """Take the registry's folder (ROOT/models) and the checks."""
        self._models_uri = models_uri
        self._gate = gate
        self._aliases: dict[tuple[str, str], Loaded] = {}
        self._loaded: dict[tuple[str, str], Loaded] = {}
        self._refused: dict[tuple[str, str], str] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._storage_error: str | None = None

    async def refresh(self) -> None:
        """Follow the aliases to where they point now; storage that is away leaves everything as it was."""
        try:
            found = await asyncio.to_thread(self._read_all)
        except StorageError as error:
            if self._storage_error is None:
                logger.warning("the registry cannot be read, serving what is loaded: %s", error)
            self._storage_error = str(error)
            return
        self._storage_error = None
        for key in set(self._aliases) - set(found):
            del self._aliases[key]
        for (name, alias), label in found.items():
            current = self._aliases.get((name, alias))
            if current is not None and current.version.label == label:
                continue
            try:
                loaded = await self._get(name, label)
            except RaydistillError as error:
                logger.error("%s/%s stays where it is: %s refused: %s", name, alias, label, error)
                continue
            self._aliases[name, alias] = loaded
            logger.info("%s/%s is now %s", name, alias, loaded.engine_name)

    def _read_all(self) -> dict[tuple[str, str], str]:
        return {
            (name, alias): label
            for name in storage.list_names(self._models_uri)
            for alias, label in read_aliases(join(self._models_uri, name)).mapping.items()
        }

    async def find(self, model: str) -> Loaded:
        """Return the version that answers `name`, `name/alias` or `name/v0001` now.

        Raises:
            NotFoundError: nothing verified is served under that name; the message names what is.
        """
        try:
            name, ref = parse_model_path(model)
        except RaydistillError as error:
            raise NotFoundError(f"{model!r} is not served here. {self._describe()}") from error
        if (name, ref) in self._aliases:
            return self._aliases[name, ref]
        if ref[:1] == "v" and ref[1:].isdigit():
            try:
                return await self._get(name, ref)
            except VerificationError as error:
                raise NotFoundError(f"{name}/{ref} was refused: {error}") from error
            except NotFoundError as error:
                raise NotFoundError(f"{model!r} is not served here. {self._describe()}") from error
        raise NotFoundError(f"{model!r} is not served here. {self._describe()}")

    async def _get(self, name: str, label: str) -> Loaded:
        key = (name, label)
        if key in self._loaded:
            return self._loaded[key]
        if key in self._refused:
            raise VerificationError(self._refused[key])
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key not in self._loaded:
                try:
                    self._loaded[key] = await self._load(name, label)
                except VerificationError as error:
                    self._refused[key] = str(error)  # a version is immutable: it never becomes right
                    raise
        return self._loaded[key]

    async def _load(self, name: str, label: str) -> Loaded:
        uri = join(self._models_uri, name)
        version = await asyncio.to_thread(read_version, uri, label)
        engine_name = f"{name}/{label}@{version.content_digest}"
        folder = await asyncio.to_thread(fetch_version, uri, version, self._gate.folder)
        await asyncio.to_thread(check_version, version, folder, self._gate.model_dir, self._gate.max_rank)
        adapter = await self._gate.load(engine_name, folder)
        served = await self._gate.score(version, engine_name, adapter)
        passed, reason = probe_passes(version.probe, served)
        if not passed:
            raise VerificationError(f"the probe failed: {reason}")
        return Loaded(version, engine_name, adapter)

    def names(self) -> list[str]:
        """Return the names that requests may use: aliases and loaded versions."""
        aliases = [f"{name}/{alias}" for name, alias in self._aliases]
        return sorted({*aliases, *(f"{name}/{label}" for name, label in self._loaded)})

    def saved_tokens(self, engine_name: str) -> int:
        """Return how many tokens of P a version's prompts do without; 0 where its record does not say."""
        versions = [item.version for item in self._loaded.values() if item.engine_name == engine_name]
        return int(versions[0].metrics.get("prompt_tokens_saved") or 0) if versions else 0

    def status(self) -> dict[str, Any]:
        """Return aliases with their exact versions, refused versions with their reasons, and the storage's state."""
        return {
            "aliases": {f"{name}/{alias}": item.engine_name for (name, alias), item in sorted(self._aliases.items())},
            "refused": {f"{name}/{label}": reason for (name, label), reason in sorted(self._refused.items())},
            "storage_error": self._storage_error,
        }

    def _describe(self) -> str:
        refused = ", ".join(f"{name}/{label}" for name, label in sorted(self._refused))
        known = ", ".join(self.names()) or "none"
        return f"Known: {known}." + (f" Refused: {refused} (see /status)." if refused else "")
