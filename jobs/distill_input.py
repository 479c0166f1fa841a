"""What distil is told: every table of a task file, and all that can be wrong with them before anything is started."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jobs import task, train
from jobs.budget import check_length
from jobs.data_config import CreateDataConfig
from jobs.data_plan import Queries, find_parts, make_plan
from jobs.faults import collect, raise_all
from jobs.places import find_model
from jobs.runtime import ClusterConfig
from jobs.serve import StudentTable
from jobs.teaching import Student, check_loss
from raydistill.core.errors import ConfigError, RaydistillError
from raydistill.core.preflight import check_storage
from raydistill.core.prompts import load_prompt, teacher_messages
from raydistill.core.records import Query
from raydistill.core.uris import absolute, is_remote, join
from raydistill.dataset.layout import folder_of
from raydistill.engine.config import EngineConfig
from raydistill.evaluation.config import EvaluateConfig
from raydistill.evaluation.reference import in_asking_order
from raydistill.queries.read import iter_queries
from raydistill.queries.split import is_held_out
from raydistill.training.config import TrainConfig


@dataclass(frozen=True)
class Settings:
    """Every table of the task file."""

    task: task.TaskConfig
    create_data: CreateDataConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    teacher: EngineConfig
    student: StudentTable
    cluster: ClusterConfig

    @property
    def models_uri(self) -> str:
        """The registry folder of this task's model."""
        return absolute(self.train.output_dir or join(self.task.storage, "models", self.task.name))


def read_settings(argv: Sequence[str]) -> Settings:
    """Return the settings of a command line; every fault is reported at once, and nothing heavy is imported."""
    classes: dict[str, Any] = {item.name: item.type for item in dataclasses.fields(Settings) if item.name != "task"}
    if all("=" in argument for argument in argv):
        raise ConfigError(
            "distill needs a task file: python -m jobs.distill jobs/configs/triage.toml [table.key=value]"
        )
    found, sections = task.load(argv, classes, None)
    assert found is not None
    tables: dict[str, Any] = dict(sections)
    return Settings(task=found, **tables)


def check_input(settings: Settings) -> Queries:
    """Return the queries to ask for training; what can be wrong is found before anything is started, all at once."""
    queries = _split_queries(settings.task.queries)
    faults: list[RaydistillError] = []
    collect(faults, lambda: _check_places(settings))
    faults += collect(faults, lambda: _find_contradictions(settings)) or []
    parts = collect(faults, lambda: find_parts(settings.create_data, queries))
    collect(faults, lambda: _check_held_out(settings))
    student = collect(faults, lambda: train.check_student(settings.train))
    if student is not None:
        collect(faults, lambda: _check_served(settings, student))
    raise_all(faults)
    assert student is not None
    whole = dataclasses.replace(student, model_dir=find_model(settings.train.student_model))
    plan = make_plan(settings.create_data, queries, parts)
    has_labels = settings.create_data.top_logprobs is not None
    if settings.create_data.teacher_application is None:  # else its length is asked of the one that runs
        collect(faults, lambda: check_length(plan, settings.create_data, settings.teacher))
    collect(faults, lambda: check_loss(settings.train, whole, plan.draft.teacher, has_labels))
    raise_all(faults)
    return queries


def _check_places(settings: Settings) -> None:
    """Refuse storage that cannot be used, else a place below it that holds something else."""
    check_storage("task.storage", settings.task.storage)
    train.check_places(settings.train)


def _find_contradictions(settings: Settings) -> list[ConfigError]:
    """Return where a table says something else than what distil does with it."""
    the_task, asked, trained, evaluated = settings.task, settings.create_data, settings.train, settings.evaluate
    models = join(the_task.storage, "models", the_task.name)
    url = settings.student.url or f"http://127.0.0.1:{settings.cluster.http_port}"
    pairs = [
        ("create_data.prompt", asked.prompt, "task.prompt", the_task.prompt),
        ("create_data.queries", asked.queries or the_task.queries, "task.queries", the_task.queries),
        ("create_data.teacher_model", asked.teacher_model, "task.teacher_model", the_task.teacher_model),
        ("train.student_model", trained.student_model, "task.student_model", the_task.student_model),
        ("train.data_file", folder_of(trained.data_file), "create_data.output_file", folder_of(asked.output_file)),
        ("train.output_dir", trained.output_dir or models, "where the student looks for models", models),
    ]
    faults = [(key, value, other, theirs) for key, value, other, theirs in pairs if _whole(value) != _whole(theirs)]
    if evaluated.version != "candidate":
        faults.append(("evaluate.version", evaluated.version, "what distill evaluates", "candidate"))
    if "student_url" in evaluated.model_fields_set and evaluated.student_url.rstrip("/") != url.rstrip("/"):
        other = "student.url" if settings.student.url else "where distill starts its student"
        faults.append(("evaluate.student_url", evaluated.student_url, other, url))
    return [
        ConfigError(f"{key} is {value}, but {other} is {theirs}: leave {key} out, or say the same in both.")
        for key, value, other, theirs in faults
    ]


def _whole(place: str) -> str:
    """Return a path made absolute; a model of the hub is none, and comes out the same wherever it stands."""
    return absolute(place) if is_remote(place) or "://" not in place else place


def _split_queries(path: str) -> Queries:
    def iter_side(held_out: bool) -> Iterator[Query]:
        return (query for query in iter_queries(path) if is_held_out(query) == held_out)

    return Queries(given=lambda: iter_side(False), apart=lambda: iter_side(True))


def _check_held_out(settings: Settings) -> None:
    num_held_out = num_queries = 0
    for query in iter_queries(settings.task.queries):
        num_queries += 1
        num_held_out += is_held_out(query)
    if num_held_out < settings.evaluate.num_queries:
        raise ConfigError(
            f"evaluate.num_queries is {settings.evaluate.num_queries}, but only {num_held_out} of the "
            f"{num_queries} queries in {settings.task.queries} are held out: add queries or ask for fewer."
        )


def _check_served(settings: Settings, student: Student) -> None:
    """Refuse what the student that distil starts would not take; how a long-lived one was started is not known here."""
    if settings.student.url is not None:
        return
    faults: list[RaydistillError] = []
    rank, max_rank = settings.train.lora_rank, settings.student.max_lora_rank
    if rank > max_rank:
        faults.append(
            ConfigError(
                f"train.lora_rank is {rank}, but student.max_lora_rank is {max_rank}, so the student would refuse the "
                "adapter: make them fit."
            )
        )
    collect(faults, lambda: _check_student_length(settings, student))
    raise_all(faults)


def _check_student_length(settings: Settings, student: Student) -> None:
    """Refuse a P that the student cannot read: what P costs is measured on its own base."""
    from raydistill.renderers import get_renderer

    renderer, prompt = get_renderer(settings.train.renderer, student.tokenizer), load_prompt(settings.task.prompt)
    held_out = in_asking_order([query for query in iter_queries(settings.task.queries) if is_held_out(query)])
    rows = [teacher_messages(prompt, query.messages) for query in held_out[: settings.evaluate.num_queries]]
    longest = max((renderer.build_generation_prompt(messages).length for messages in rows), default=0)
    needed, have = longest + settings.evaluate.latency_tokens, settings.student.max_model_len
    if needed > have:
        raise ConfigError(
            f"student.max_model_len is {have}, but P, a held-out query and evaluate.latency_tokens take {needed} "
            f"tokens: the student's base is measured with P too. Raise student.max_model_len to {needed} or more."
        )
