"""What every job needs around it: Ray, the HTTP front, a capacity check, and exit statuses."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from jobs.places import Place, check_shared
from raydistill.core.config import Section
from raydistill.core.errors import BAD_INPUT, RaydistillError
from raydistill.core.records import digest

IDLE_WORKERS = 1  # that a local cluster keeps
_has_begun = threading.Event()  # something was started or written; see `begin_work`


class ClusterConfig(Section):
    """Which Ray cluster a job runs on; the `[cluster]` table."""

    address: str | None = None
    """A running cluster; by default RAY_ADDRESS, else a local one for this job alone."""
    num_cpus: int = Field(12, ge=4)
    """*Logical* CPUs of a local cluster: replicas, actors and workers each hold one; it is no count of cores."""
    object_store_mib: int = Field(300, ge=80)
    """Shared memory of a local cluster's object store, in MiB."""
    http_port: int = Field(8000, ge=1, le=65535)
    """Port of the Serve front, on the loopback address."""
    shared_dir: str | None = None
    """A folder that every node sees, where there is more than one: outputs, datasets and models lie below it."""
    max_cpus: int | None = Field(None, ge=1)
    """Logical CPUs that a cluster can grow to by itself; Ray tells only what is there now."""
    max_gpus: int | None = Field(None, ge=0)
    """GPUs that a cluster can grow to by itself."""

    @field_validator("shared_dir")
    @classmethod
    def _is_the_same_everywhere(cls, shared_dir: str | None) -> str | None:
        if shared_dir is not None and not Path(shared_dir).is_absolute():
            raise ValueError("write an absolute path, the same on every node")
        return shared_dir


def connect(config: ClusterConfig) -> None:
    """Connect to the cluster, or start a local one."""
    import ray

    _quiet_libraries()
    if ray.is_initialized():
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    env = {"env_vars": {"OMP_NUM_THREADS": "1", "RAY_TRAIN_V2_ENABLED": "1", "PYTHONPATH": _python_path()}}
    quiet = {"logging_level": logging.WARNING, "log_to_driver": bool(os.environ.get("RAYDISTILL_RAY_LOGS"))}
    if address:
        ray.init(address=address, runtime_env=env, **quiet)
        _end_in_order_when_told()
        return
    # Ray starts as many workers at once as there are cores, and warns of each further one: replicas only wait.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(config.num_cpus))
    # It keeps one idle process for each logical CPU, up to 480 MB each (what has imported vllm); one is enough.
    os.environ.setdefault("RAY_num_workers_soft_limit", str(IDLE_WORKERS))
    # And it starts one for each, at once, which none of our tasks can use: they have a runtime environment.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    ray.init(
        address="local",  # without it Ray takes whichever cluster was started on this machine last
        num_cpus=config.num_cpus,
        object_store_memory=config.object_store_mib * 2**20,
        include_dashboard=False,
        runtime_env=env,
        **quiet,
    )
    _end_in_order_when_told()


def _end_in_order_when_told() -> None:
    """Let SIGTERM end the process as an exception does, through every `finally`: Ray's handler would abort it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def _quiet_libraries() -> None:
    """Say nothing of what works: RAYDISTILL_RAY_LOGS=1 brings the libraries' own lines back."""
    if os.environ.get("RAYDISTILL_RAY_LOGS"):
        return
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import ray.data
    import ray.serve  # noqa: F401 - both set their loggers up when they are imported, so that comes first
    from ray._private.log import PlainRayHandler
    from transformers.utils import logging as transformers_logging

    for name in ("ray.serve", "ray.train", "ray.llm", "ray._private", "vllm", "transformers", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, PlainRayHandler):  # the terminal's; the file shall have all
            handler.setLevel(logging.ERROR)

    transformers_logging.disable_progress_bar()


def _python_path() -> str:
    """Return the path under which workers find `jobs` and `raydistill` as this process does."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")]))


def start_http(config: ClusterConfig) -> str:
    """Start Serve with its front on the loopback address and return the base URL; one that runs already stays."""
    from ray import serve
    from ray.exceptions import ActorAlreadyExistsError
    from ray.serve.context import _get_global_client

    # One front, on the head, where jobs run: on every node nobody could reach it, and nodes of one machine cannot share
    # the port, so Serve would start theirs again and again.
    options = {"proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": config.http_port}}
    try:
        serve.start(**options)
    except ActorAlreadyExistsError:  # another job started it at the same moment; now it is found
        serve.start(**options)
    client = _get_global_client()
    assert client is not None
    return f"http://127.0.0.1:{client.http_config.port}"


def is_own_cluster(config: ClusterConfig) -> bool:
    """Return whether the cluster is a local one that was started for this job alone."""
    return not (config.address or os.environ.get("RAY_ADDRESS"))


def name_application(role: str, config: ClusterConfig, purpose: str) -> tuple[str, str]:
    """Return (name, route prefix) of a job's own application: on a shared cluster other jobs have theirs.

    Args:
        role: "teacher" or "student".
        config: which cluster the job runs on.
        purpose: what it is for, like a dataset's folder: the same for the same command.
    """
    import ray

    job = "" if is_own_cluster(config) else ray.get_runtime_context().get_job_id()
    name = f"{role}-{digest(purpose)[:12]}-{job}" if job else role
    return name, "/" if name == "student" else f"/{name}"


def claim_application(role: str, config: ClusterConfig, purpose: str) -> tuple[str, str]:
    """Return `name_application`'s, when what jobs that are dead left there for the same purpose is gone.

    A job that is killed stops nothing, and Serve goes on: the same command again would have no room for its own. What a
    living job started stays, whatever its purpose.
    """
    from ray import serve
    from ray._private import state  # Ray's public list of jobs needs the dashboard

    name, route_prefix = name_application(role, config, purpose)
    dead = set() if is_own_cluster(config) else {job["JobID"] for job in state.jobs() if job["IsDead"]}
    for job in dead:
        left = f"{name.rpartition('-')[0]}-{job}"
        if left in serve.status().applications:
            serve.delete(left)
    return name, route_prefix


def disconnect(config: ClusterConfig) -> None:
    """Leave the cluster; a local one is stopped with everything that runs on it."""
    import ray

    if not ray.is_initialized():
        return
    if is_own_cluster(config):
        from ray import serve
        from ray.serve.context import _set_global_client

        # Not serve.shutdown(), which kills its controller in the middle of calls that Ray then complains of.
        for name in serve.status().applications:
            serve.delete(name)
        _set_global_client(None)  # Serve would take the next cluster of this process for this one
    ray.shutdown()


def require_shared(places: Sequence[Place], config: ClusterConfig) -> None:
    """Refuse places that not every node of the connected cluster sees; see `check_shared`."""
    import ray

    check_shared(places, config.shared_dir, sum(node["Alive"] for node in ray.nodes()))


def begin_work() -> None:
    """Say that from here on something is started or written: a fault that shows later is no bad input (status 2)."""
    _has_begun.set()


def run_main(main: Callable[[list[str]], Any]) -> None:
    """Run a job's main with the command line's arguments and end with its exit status.

    0: done. 2: bad input, nothing was started or written. 1: it failed on the way. 130: interrupted (Ctrl-C).
    """
    set_up_logging()
    _has_begun.clear()
    try:
        main(sys.argv[1:])
    except RaydistillError as error:
        print(f"error: {_text(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, BAD_INPUT) and not _has_begun.is_set() else 1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one ended", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def set_up_logging() -> None:
    """Let our own rooms speak on standard error, one line a record, and the libraries only when something is wrong.

    Ours get a handler of their own, because importing ray.serve.llm turns the root logger's lines into JSON.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    for name in ("raydistill", "jobs", "__main__"):
        ours = logging.getLogger(name)
        ours.handlers, ours.propagate = [handler], False
        ours.setLevel(logging.INFO)
    for name in ("httpx", "botocore", "filelock", "ray"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _text(error: BaseException) -> str:
    return str(error.args[0]) if error.args else type(error).__name__
