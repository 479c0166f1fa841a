"""The checkpoints of a run in its folder: whole or not at all, newest first.

They are ours and not Ray Train's: its list of checkpoints is one file that is not replaced in one step, belongs to
one version of Ray, and where it names a folder that is gone the run can never go on (2.60). Here a checkpoint counts
once its state.json is there, which is written last and holds the digest of every other file.

checkpoints/step-000020-3f9a/: adapter/ (PEFT's format), optimizer.safetensors, best/ (the adapter with the lowest
held-out loss, where that is an earlier one), state.json.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raydistill.core import storage
from raydistill.core.errors import NotFoundError, TrainingError
from raydistill.core.uris import is_remote, join

CHECKPOINTS, STATE = "checkpoints", "state.json"
ADAPTER, BEST, OPTIMIZER = "adapter", "best", "optimizer.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
KEPT = 2  # the one just written, and one before it for the case that the newest is damaged

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        step: steps done.
        best_step: the step with the lowest held-out loss; None where none was measured.
        best_loss_nats: that loss.
        evaluations_without_gain: in a row, since the best.
        stopped: the run ended before its last step, because the held-out loss fell no more.
    """

    step: int = 0
    best_step: int | None = None
    best_loss_nats: float | None = None
    evaluations_without_gain: int = 0
    stopped: bool = False

    @property
    def best_folder(self) -> str | None:
        """Where a checkpoint of this state has the best adapter; None where nothing was measured."""
        if self.best_step is None:
            return None
        return ADAPTER if self.best_step == self.step else BEST

    def after(self, step: int, held_out_loss_nats: float | None, patience: int | None) -> "State":
        """Return the state after a step, and after its evaluation where there was one."""
        if held_out_loss_nats is None:
            return dataclasses.replace(self, step=step)
        if self.best_loss_nats is None or held_out_loss_nats < self.best_loss_nats:
            return State(step, step, held_out_loss_nats)
        without = self.evaluations_without_gain + 1
        stopped = patience is not None and without >= patience
        return dataclasses.replace(self, step=step, evaluations_without_gain=without, stopped=stopped)


def seal(folder: Path, state: State) -> None:
    """Write state.json, which makes a whole checkpoint of the files in a local folder."""
    files = {name: _sha256(folder / name) for name in _files(folder)}
    text = json.dumps({**dataclasses.asdict(state), "files": files}, indent=2) + "\n"
    (folder / STATE).write_text(text, encoding="utf-8")


def read_state(folder: Path) -> State:
    """Return the state of a checkpoint in a local folder.

    Raises:
        TrainingError: it is not whole.
        StorageError, OSError: it cannot be read now, which says nothing about it; damaged ones are deleted.
    """
    try:
        values = json.loads(storage.read_bytes(str(folder / STATE)))
        files = values.pop("files")
        state = State(**values)
    except (NotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"{folder} is no whole checkpoint: its {STATE} is missing or damaged.") from error
    damaged = [name for name, sha256 in files.items() if not _is_intact(folder / name, sha256)]
    if damaged:
        raise TrainingError(f"{folder} is no whole checkpoint: {', '.join(damaged)} is missing or damaged.")
    return state


def publish_checkpoint(folder: Path, log_uri: str, step: int) -> str:
    """Copy a sealed checkpoint below a run's folder, state.json last, and delete all but it and the newest other one.

    It stays even where the folder holds others of later steps, which no run goes on from any more.

    Returns:
        The checkpoint's name, of which no other attempt at the same step makes use.
    """
    name = f"step-{step:06d}-{secrets.token_hex(2)}"
    for file in [*_files(folder), STATE]:
        storage.upload(folder / file, join(log_uri, CHECKPOINTS, name, file))
    others = [other for other in list_checkpoints(log_uri) if other != name]
    for old in others[KEPT - 1 :]:
        delete_checkpoint(log_uri, old)
    return name


def list_checkpoints(log_uri: str) -> list[str]:
    """Return the names of the checkpoints that were begun, newest first."""
    names = storage.list_names(join(log_uri, CHECKPOINTS))
    return sorted((name for name in names if name.startswith("step-")), reverse=True)


def find_checkpoint(log_uri: str) -> tuple[str | None, list[str]]:
    """Return the newest whole checkpoint's name, None without one, and the names of newer ones that are damaged."""
    damaged = []
    for name in list_checkpoints(log_uri):
        try:
            with fetch_checkpoint(log_uri, name) as folder:
                read_state(folder)
        except TrainingError as error:
            logger.warning("%s It is passed over.", error)
            damaged.append(name)
            continue
        return name, damaged
    return None, damaged


@contextlib.contextmanager
def fetch_checkpoint(log_uri: str, name: str) -> Iterator[Path]:
    """Give a checkpoint as a folder on this node; it may not be whole."""
    uri = join(log_uri, CHECKPOINTS, name)
    if not is_remote(uri):
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with contextlib.suppress(NotFoundError, ValueError, KeyError, TypeError):  # `read_state` tells what is wrong
            storage.download(join(uri, STATE), folder / STATE)
            for file in json.loads((folder / STATE).read_bytes())["files"]:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                storage.download(join(uri, file), folder / file)
        yield folder


def _files(folder: Path) -> list[str]:
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    return sorted(name for name in files if name != STATE)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _is_intact(file: Path, sha256: str) -> bool:
    try:
        return _sha256(file) == sha256
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


def delete_checkpoint(log_uri: str, name: str) -> None:
    """Delete a checkpoint, its state.json first, so that it is none at any moment in between."""
    uri = join(log_uri, CHECKPOINTS, name)
    storage.delete(join(uri, STATE))
    if not is_remote(uri):
        shutil.rmtree(uri, ignore_errors=True)
        return
    for part in ("", ADAPTER, BEST):
        for name in storage.list_names(join(uri, part) if part else uri):
            storage.delete(join(uri, part, name) if part else join(uri, name))
