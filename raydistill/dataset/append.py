"""Writing to the answers ledger with Ray Data: one object a block, committed in two phases."""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from ray.data import Dataset, SaveMode
from ray.data.checkpoint import CheckpointConfig
from ray.data.context import DataContext
from ray.data.datasource import FilenameProvider
from ray.exceptions import RayError

from raydistill.core import storage
from raydistill.core.answers import ANSWER_SCHEMA
from raydistill.core.errors import ServiceError
from raydistill.core.uris import join
from raydistill.dataset.ledger import ANSWERS, CHECKPOINT, ID_COLUMN, committed_names, count_rows

POLL_SECONDS = 1.0


class PartNames(FilenameProvider):
    """Names an object by its write and task, as a commit needs: known before its content is."""

    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        """Return the name of a write task's object."""
        return f"part-{write_uuid}_{task_index:06}.parquet"


@contextlib.contextmanager
def checkpointed(folder: str) -> Iterator[None]:
    """Let Ray Datasets that are made in this context skip committed rows and commit what they append.

    The checkpoint is never deleted: it is the ledger's list of commits.
    """
    uri = join(folder, CHECKPOINT)
    context = DataContext.get_current()
    before = context.checkpoint_config, context.enable_progress_bars
    context.checkpoint_config = CheckpointConfig(
        id_column=ID_COLUMN,
        checkpoint_path=uri,
        override_filesystem=storage.filesystem(uri)[0],
        delete_checkpoint_on_success=False,
    )
    context.enable_progress_bars = False
    try:
        yield
    finally:
        context.checkpoint_config, context.enable_progress_bars = before


def append_answers(answers: Dataset, folder: str) -> None:
    """Write a Ray Dataset of ANSWER_SCHEMA rows to the ledger; returns when all of them are committed."""
    files, path = storage.filesystem(join(folder, ANSWERS))
    answers.write_parquet(
        path,
        filesystem=files,
        filename_provider=PartNames(),
        arrow_parquet_args_fn=functools.partial(dict, schema=ANSWER_SCHEMA, compression="zstd"),
        mode=SaveMode.APPEND,
    )


def watch(work: Callable[[], None], folder: str, stall_seconds: float) -> Iterator[int]:
    """Do the work on a thread and yield the number of rows committed so far whenever it grew; ends with the work.

    Raises:
        ServiceError: the work failed, or nothing was committed for stall_seconds.
    """
    future: Future[None] = Future()

    def target() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            future.set_exception(error)
        else:
            future.set_result(None)

    seen = set(committed_names(folder))
    num_rows, last_commit = 0, time.monotonic()
    # A daemon: Ray Data cannot be told to give up, and a stalled one must not keep the process.
    threading.Thread(target=target, name="ask-teacher", daemon=True).start()
    while True:
        is_done = future.done()
        new = set(committed_names(folder)) - seen
        if new:
            seen |= new
            num_rows += sum(count_rows(folder, name) for name in new)
            last_commit = time.monotonic()
            yield num_rows
        if is_done:
            break
        if time.monotonic() - last_commit > stall_seconds:
            raise ServiceError(
                f"{folder}: no answer was committed for {stall_seconds:.0f} s. Look at the teacher's and Ray's logs "
                "(are there enough logical CPUs?), then run the same command again; it goes on where it stopped."
            )
        time.sleep(POLL_SECONDS)
    try:
        future.result()
    except RayError as error:
        raise ServiceError(f"asking the teacher failed: {error}. Run the same command again to go on.") from error
