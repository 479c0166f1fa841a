"""Train a LoRA adapter on a dataset without P and publish it as a version.

    python -m jobs.train data_file=/tmp/analyst.jsonl student_model=MODEL output_dir=s3://bucket/models/analyst
    python -m jobs.train jobs/configs/triage.toml num_epochs=3

The same command again goes on from the last checkpoint; where it was finished, it names the version.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from jobs import task
from jobs.capacity import require, require_here, require_room
from jobs.faults import collect, raise_all
from jobs.places import Place, find_model, model_places
from jobs.progress import TrainingProgress, show_training
from jobs.publishing import check_output, publish_adapter, publish_merged_model
from jobs.runtime import (
    ClusterConfig,
    begin_work,
    connect,
    disconnect,
    require_shared,
    run_main,
)
from jobs.saved_tokens import count_saved_tokens
from jobs.teaching import Student
from jobs.train_rows import Rows, read_rows
from raydistill.core.errors import RaydistillError
from raydistill.core.models import find_key, model_revision, read_model_config
from raydistill.core.preflight import check_storage
from raydistill.core.records import Version, digest
from raydistill.core.uris import absolute, check_name, join
from raydistill.dataset.read import read_examples
from raydistill.registry.versions import list_versions
from raydistill.training.config import TrainConfig

if TYPE_CHECKING:
    from raydistill.training.fit import FitResult

logger = logging.getLogger(__name__)


def run(
    config: TrainConfig, cluster: ClusterConfig | None = None, on_progress: TrainingProgress | None = None
) -> Version:
    """Train, publish and return the version; no alias moves.

    Args:
        config: what to train on what.
        cluster: where, unless Ray is connected already.
        on_progress: called with (steps done, steps in all, newest metrics); None shows a progress bar.

    Raises:
        ConfigError, NotFoundError, DatasetError, ConflictError, CapacityError: bad input; nothing was written.
        TrainingError: it failed on the way; the same command goes on from the last checkpoint.
    """
    cluster = cluster or ClusterConfig.model_validate({})
    cpus = config.min_workers * config.threads_per_worker
    require_here("train", cluster, cpus, training_gpus=config.min_workers if config.use_gpu else 0)
    output_uri = find_output(config)
    student, rows = _check_input(config)
    config = config.model_copy(update={"loss": rows.loss})

    from raydistill.training.fit import choose_dtype, decide, fit, wants_gpu

    connect(cluster)
    require_shared(list_places(config), cluster)
    gpus = config.min_workers if wants_gpu(config) else 0
    require("train", cpus=cpus, gpus=gpus, cluster=cluster)
    require_workers(config, gpus > 0, cluster)
    dtype = choose_dtype(config, gpus > 0)
    all_rows = [*rows.train, *rows.generic, *rows.validation]
    run_id = digest(decide(config, all_rows, student.model_dir, dtype, rows.teacher_prefix))[:12]
    for version in list_versions(output_uri):
        if version.metrics.get("run_id") == run_id:
            logger.info("%s is this very run's result already.", join(output_uri, version.label))
            return _merged(config, output_uri, version, student)
    log_path = config.log_path or join(_runs_uri(output_uri), run_id)
    config = config.model_copy(update={"log_path": log_path, "dtype": dtype})
    with show_training(on_progress) as report:
        result = fit(
            config, [*rows.train, *rows.generic], rows.validation, student.model_dir, report, rows.teacher_prefix
        )
    begin_work()  # what `fit` refuses, it refuses before it starts
    draft = _describe(config, student, rows, result, run_id)
    version = publish_adapter(output_uri, draft, result.adapter_dir, student.model_dir, rows.train)
    return _merged(config, output_uri, version, student)


def _check_input(config: TrainConfig) -> tuple[Student, Rows]:
    """Return the student and the rows; what is wrong with places, student and data is told at once."""
    from raydistill.training.checks import check_rows

    faults: list[RaydistillError] = []
    collect(faults, lambda: check_places(config))
    has_places = not faults
    student = collect(faults, lambda: check_student(config))
    if student is None and has_places:
        collect(faults, lambda: read_examples(config.data_file))
    raise_all(faults)
    assert student is not None
    student = dataclasses.replace(student, model_dir=find_model(config.student_model))
    rows = read_rows(config, student)
    check_rows(config, rows.train)
    return student, rows


def _merged(config: TrainConfig, output_uri: str, version: Version, student: Student) -> Version:
    if config.merge:
        publish_merged_model(output_uri, version, student.model_dir)
    return version


def require_workers(config: TrainConfig, on_gpu: bool, cluster: ClusterConfig) -> None:
    """Refuse workers that the nodes have no room for, as they are to be placed: Ray would wait without end."""
    size = {"CPU": config.threads_per_worker, **({"GPU": 1} if on_gpu else {})}
    apart = config.placement == "STRICT_SPREAD"
    what = "train.placement=STRICT_SPREAD" if apart else "train"
    require_room(what, config.min_workers, size, cluster, apart)


def find_output(config: TrainConfig) -> str:
    """Return the model's registry folder; its name must be usable as a model's."""
    output = config.output_dir or f"models/{PurePosixPath(config.data_file).stem}"
    uri = absolute(output)
    check_name(PurePosixPath(uri).name)
    return uri


def _runs_uri(output_uri: str) -> str:
    parent, _, name = output_uri.rpartition("/")
    root = parent.removesuffix("/models") if parent.endswith("/models") else parent
    return join(root, "runs", name)


def list_places(config: TrainConfig) -> list[Place]:
    """Return the places that every node must see."""
    output_uri = find_output(config)
    return [
        ("train.data_file", config.data_file),
        ("train.output_dir", output_uri),
        ("train.log_path", config.log_path or _runs_uri(output_uri)),
        *model_places("student_model", config.student_model),
    ]


def check_places(config: TrainConfig) -> None:
    """Refuse places that cannot be read (data_file) or written (output_dir, log_path), or that hold something else."""
    output_uri = find_output(config)
    check_storage("data_file", config.data_file, read_only=True)
    check_storage("output_dir", output_uri)
    check_output(output_uri)
    check_storage("log_path", config.log_path or _runs_uri(output_uri))


def check_student(config: TrainConfig) -> Student:
    """Return the student's facts without its weights; what is wrong with it, and with log_to, is told at once."""
    from raydistill.training.shape import check_targets, read_shape
    from raydistill.training.trackers import check_trackers

    faults: list[RaydistillError] = []
    collect(faults, lambda: check_trackers(config.log_to))
    student = collect(faults, lambda: check_model(config, weights=False))
    if student is not None:
        collect(faults, lambda: check_targets(config.lora_targets, read_shape(student.model_dir)))
    raise_all(faults)
    assert student is not None
    return student


def check_model(config: TrainConfig, weights: bool = True) -> Student:
    """Return the student's facts; a model that cannot be found or has no chat template is refused here."""
    model_dir = find_model(config.student_model, weights)

    from raydistill.renderers import get_renderer, load_tokenizer, tokenizer_digest

    tokenizer = load_tokenizer(model_dir)
    renderer = get_renderer(config.renderer, tokenizer)
    longest = find_key(read_model_config(model_dir), "max_position_embeddings") or 2**31
    max_tokens = min(config.max_length or longest, longest)
    return Student(model_dir, tokenizer, tokenizer_digest(tokenizer), renderer.template_digest, max_tokens)


def _describe(config: TrainConfig, student: Student, rows: Rows, result: "FitResult", run_id: str) -> Version:
    """Return the version as it is to be published, but for what is told from the adapter itself."""
    return Version(
        name=PurePosixPath(find_output(config)).name,
        number=0,
        base_model=config.student_model,
        base_revision=model_revision(student.model_dir),
        tokenizer=student.tokenizer_digest,
        renderer=config.renderer,
        template_digest=student.template_digest,
        lora={"modules": result.num_modules},
        files=[],
        dataset_fingerprint=rows.fingerprint,
        prompt_digest=rows.manifest.prompt_digest if rows.manifest else "",
        metrics={
            **result.metrics,
            **count_saved_tokens(config.data_file, rows.manifest, config.renderer, student.tokenizer),
            "run_id": run_id,
            "log_path": config.log_path,
            "rows": {
                "train": len(rows.train),
                "validation": len(rows.validation),
                "too_long": rows.too_long,
                "cut": rows.cut,
            },
        },
        probe=[],
        verifiable=False,
    )


def main(argv: Sequence[str]) -> None:
    """Run the job from a command line's arguments."""
    tables = {"train": TrainConfig, "cluster": ClusterConfig}
    _, sections = task.load(argv, tables, "train")
    config, cluster = sections["train"], sections["cluster"]
    assert isinstance(config, TrainConfig) and isinstance(cluster, ClusterConfig)
    try:
        version = run(config, cluster)
    finally:
        disconnect(cluster)
    facts = {key: value for key, value in dataclasses.asdict(version)["metrics"].items() if isinstance(value, float)}
    print(f"{version.name}/{version.label} in {join(find_output(config), version.label)}")
    print(", ".join(f"{key} {value:.4g}" for key, value in facts.items()))
    if not version.verifiable:
        print("unverifiable: too small to be proved after loading; `raydistill promote --force` makes it final")


if __name__ == "__main__":
    run_main(main)
