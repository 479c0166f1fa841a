"""Train a LoRA adapter on a dataset without P and publish it as a version.

    python -m jobs.train data_file=/tmp/analyst.jsonl student_model=MODEL output_dir=s3://bucket/models/analyst
    python -m jobs.train jobs/configs/triage.toml num_epochs=3

The same command again goes on from the last checkpoint; where it was finished, it names the version.
"""

import dataclasses
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from jobs import task
from jobs.places import Place, find_model, model_places
from jobs.runtime import ClusterConfig, connect, disconnect, require, require_nodes, require_shared, run_main
from jobs.saved_tokens import count_saved_tokens
from raydistill.core import storage
from raydistill.core.errors import DatasetError
from raydistill.core.models import model_revision, read_model_config
from raydistill.core.preflight import check_storage
from raydistill.core.records import Example, Manifest, ProbePoint, Version, digest
from raydistill.core.uris import absolute, check_name, is_remote, join
from raydistill.dataset.encode import encode_examples, split_validation
from raydistill.dataset.read import read_examples
from raydistill.registry.publish import publish
from raydistill.registry.versions import list_versions
from raydistill.training.batches import EncodedRow
from raydistill.training.config import TrainConfig

if TYPE_CHECKING:
    from raydistill.training.fit import FitResult

PROBE_TIMEOUT_SECONDS = 900
Progress = Callable[[int, int, dict[str, Any]], None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Student:
    """The base model as training and serving must agree on it."""

    model_dir: str
    tokenizer: Any
    tokenizer_digest: str
    template_digest: str
    max_tokens: int


@dataclass(frozen=True)
class Rows:
    """What is trained on."""

    train: list[EncodedRow]
    validation: list[EncodedRow]
    too_long: int
    manifest: Manifest | None

    @property
    def fingerprint(self) -> str:
        """The dataset's, or a digest of the rows where nothing is known about them."""
        return self.manifest.fingerprint if self.manifest else f"rows-{digest([row.id for row in self.train])}"


def run(config: TrainConfig, cluster: ClusterConfig | None = None, on_progress: Progress | None = None) -> Version:
    """Train, publish and return the version; no alias moves.

    Args:
        config: what to train on what.
        cluster: where, unless Ray is connected already.
        on_progress: called with (steps done, steps in all, newest metrics); None shows a progress bar.

    Raises:
        ConfigError, NotFoundError, DatasetError, ConflictError, CapacityError: bad input; nothing was written.
        TrainingError: it failed on the way; the same command goes on from the last checkpoint.
    """
    output_uri = find_output(config)
    check_places(config)
    student = check_model(config)
    rows = read_rows(config, student)

    from raydistill.training.fit import check_rows, choose_dtype, decide, fit, wants_gpu

    check_rows(config, rows.train)
    cluster = cluster or ClusterConfig.model_validate({})
    connect(cluster)
    require_shared(list_places(config), cluster)
    gpus = config.num_workers if wants_gpu(config) else 0
    require("train", cpus=config.num_workers * config.threads_per_worker, gpus=gpus, cluster=cluster)
    require_spread(config, cluster)
    dtype = choose_dtype(config, gpus > 0)
    run_id = digest(decide(config, [*rows.train, *rows.validation], student.model_dir, dtype))[:12]
    for version in list_versions(output_uri):
        if version.metrics.get("run_id") == run_id:
            logger.info("%s is this very run's result already.", join(output_uri, version.label))
            return version
    log_path = config.log_path or join(_runs_uri(output_uri), run_id)
    config = config.model_copy(update={"log_path": log_path, "dtype": dtype})
    with _shown(on_progress) as report:
        result = fit(config, rows.train, rows.validation, student.model_dir, report)
    return _publish(config, student, rows, result, run_id)


def require_spread(config: TrainConfig, cluster: ClusterConfig) -> None:
    """Refuse workers that shall each have a node of their own where there are fewer: Ray would wait without end."""
    if config.placement == "STRICT_SPREAD":
        require_nodes("train.placement=STRICT_SPREAD", config.num_workers, cluster)


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
    """Refuse places that cannot be read (data_file) or written (output_dir, log_path)."""
    output_uri = find_output(config)
    check_storage("data_file", config.data_file, read_only=True)
    check_storage("output_dir", output_uri)
    check_storage("log_path", config.log_path or _runs_uri(output_uri))


def check_model(config: TrainConfig) -> Student:
    """Return the student's facts; a model that cannot be found or has no chat template is refused here."""
    model_dir = find_model(config.student_model)

    from raydistill.renderers import get_renderer, load_tokenizer, tokenizer_digest

    tokenizer = load_tokenizer(model_dir)
    renderer = get_renderer(config.renderer, tokenizer)
    longest = read_model_config(model_dir).get("max_position_embeddings") or 2**31
    max_tokens = min(config.max_length or longest, longest)
    return Student(model_dir, tokenizer, tokenizer_digest(tokenizer), renderer.template_digest, max_tokens)


def read_rows(config: TrainConfig, student: Student) -> Rows:
    """Return the dataset's rows as token ids; rows that are too long are left out and counted."""
    examples, manifest = read_examples(config.data_file, student.tokenizer_digest)
    _compare_templates(config, student, manifest)
    train_examples, validation_examples = split_validation(examples)
    train, long_train = _encode(config, student, train_examples)
    validation, long_validation = _encode(config, student, validation_examples)
    too_long = long_train + long_validation
    if too_long:
        logger.warning(
            "%s: %d of %d examples are left out: they have more than %d tokens.",
            config.data_file,
            too_long,
            len(examples),
            student.max_tokens,
        )
    if not train:
        raise DatasetError(f"{config.data_file} leaves no row of at most {student.max_tokens} tokens for training.")
    return Rows(train, validation, too_long, manifest)


def _compare_templates(config: TrainConfig, student: Student, manifest: Manifest | None) -> None:
    teacher = manifest.teacher if manifest else {}
    same_tokenizer = teacher.get("tokenizer_digest") == student.tokenizer_digest
    same_renderer = teacher.get("renderer", config.renderer) == config.renderer
    if same_tokenizer and same_renderer and teacher.get("template_digest") != student.template_digest:
        logger.warning(
            "%s has the teacher's tokenizer but another chat template than the one its prompts were rendered with.",
            config.student_model,
        )


def _encode(config: TrainConfig, student: Student, examples: list[Example]) -> tuple[list[EncodedRow], int]:
    encoded = encode_examples(examples, student.tokenizer, config.renderer, config.raw_fraction)
    rows = [
        EncodedRow(example.id, prompt, response)
        for example, (prompt, response) in zip(examples, encoded, strict=True)
        if len(prompt) + len(response) <= student.max_tokens
    ]
    return rows, len(examples) - len(rows)


def _publish(config: TrainConfig, student: Student, rows: Rows, result: "FitResult", run_id: str) -> Version:
    """Build the probe and publish the adapter."""
    output_uri = find_output(config)
    with tempfile.TemporaryDirectory() as temporary:
        adapter_dir = result.adapter_dir
        if is_remote(adapter_dir):
            for name in storage.list_names(adapter_dir):
                storage.download(join(adapter_dir, name), Path(temporary) / name)
            adapter_dir = temporary
        probe, verifiable = _probe(student.model_dir, adapter_dir, rows.train)
        adapter = json.loads((Path(adapter_dir) / "adapter_config.json").read_bytes())
        draft = Version(
            name=PurePosixPath(output_uri).name,
            number=0,
            base_model=config.student_model,
            base_revision=model_revision(student.model_dir),
            tokenizer=student.tokenizer_digest,
            renderer=config.renderer,
            template_digest=student.template_digest,
            lora={
                "rank": adapter["r"],
                "alpha": adapter["lora_alpha"],
                "targets": sorted(adapter["target_modules"]),
                "modules": result.num_modules,
            },
            files=[],
            dataset_fingerprint=rows.fingerprint,
            prompt_digest=rows.manifest.prompt_digest if rows.manifest else "",
            metrics={
                **result.metrics,
                **count_saved_tokens(config.data_file, rows.manifest, config.renderer, student.tokenizer),
                "run_id": run_id,
                "log_path": config.log_path,
                "rows": {"train": len(rows.train), "validation": len(rows.validation), "too_long": rows.too_long},
            },
            probe=probe,
            verifiable=verifiable,
        )
        if not verifiable:
            logger.warning("The adapter moves too little to be told from its base by a probe; it is unverifiable.")
        return publish(output_uri, draft, adapter_dir)


def _probe(model_dir: str, adapter_dir: str, rows: list[EncodedRow]) -> tuple[list[ProbePoint], bool]:
    """Build the probe in a process of its own on this node, so that the model's memory is free again afterwards."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from raydistill.scoring.probe import build_probe

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote = ray.remote(num_cpus=1, max_calls=1, scheduling_strategy=here)(  # pyright: ignore[reportArgumentType] - its annotation is too narrow
        build_probe
    )
    pairs = [(row.prompt_tokens, row.response_tokens) for row in rows]
    return ray.get(remote.remote(model_dir, adapter_dir, pairs), timeout=PROBE_TIMEOUT_SECONDS)


@contextmanager
def _shown(on_progress: Progress | None) -> Iterator[Progress]:
    """Give the caller's progress function, or one that moves a bar on the terminal."""
    if on_progress is not None:
        yield on_progress
        return
    from rich.progress import Progress as Bar

    with Bar() as bar:
        bar_task = bar.add_task("training", total=None)

        def report(done: int, total: int, line: dict[str, Any]) -> None:
            loss = line.get("train/loss_nats")
            text = "training" if loss is None else f"training, {loss:.3f} nats"
            bar.update(bar_task, completed=done, total=total, description=text)

        yield report


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
