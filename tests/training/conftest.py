"""What gloo workers leave for the tests of this folder: one group of processes for each number of workers."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from raydistill.training.batches import plan_steps
from raydistill.training.fit import make_job
from raydistill.training.job import Job
from raydistill.training.rowfile import write_rows
from raydistill.training.saved import State, list_checkpoints, seal
from tests.moto_bucket import open_bucket
from tests.training import fit_driver, runs, workers


@dataclass(frozen=True)
class Results:
    """Folders of `workers.train_all_stages` and finished runs of the loop by name."""

    trained: Path
    jobs: dict[str, Job]


@pytest.fixture(scope="session")
def gloo_results(model_dir, tmp_path_factory):
    """All that 2 workers do, and then what 1 and 3 go on with."""
    trained, root = tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("runs")
    jobs = runs.make_jobs(model_dir, root)
    for job in jobs.values():
        runs.write_run(job)
    jobs["undisturbed"] = _make_undisturbed(model_dir, str(root / "undisturbed"))
    checkpoint = str(trained / "workers2-stage2" / "checkpoint")
    workers.run_workers(_do_both, 2, model_dir, str(trained), None, list(jobs.values()))
    jobs["resumed"] = runs.make_job(model_dir, str(root / "resumed"), stage=0)
    _break_off(Path(jobs["calm"].log_uri), root / "resumed")
    jobs["anew"] = runs.make_job(model_dir, str(root / "anew"), stage=0)
    _break_off(Path(jobs["calm"].log_uri), root / "anew", also_before=True)
    jobs["gained"] = runs.make_job(model_dir, str(root / "gained"), stage=0)
    _make_first_the_best(Path(jobs["calm"].log_uri), root / "gained")
    jobs["offloaded"] = runs.make_job(model_dir, str(root / "offloaded"), stage=3, offload="optimizer")
    _break_off(Path(jobs["calm"].log_uri), root / "offloaded")
    alone = [jobs[name] for name in ("resumed", "anew", "gained", "offloaded")]
    workers.run_workers(_do_both, 1, model_dir, str(trained), checkpoint, alone)
    workers.run_workers(_do_both, 3, model_dir, str(trained), checkpoint, [])
    return Results(trained, jobs)


def _make_undisturbed(model_dir: str, log_uri: str) -> Job:
    """The run of fit_driver, as what is killed again and again has to end."""
    config = fit_driver.make_config(model_dir, log_uri)
    plan = plan_steps(len(fit_driver.TRAINED), config.batch_size, config.num_epochs, None, config.seed)
    write_rows(log_uri, fit_driver.TRAINED, fit_driver.HELD_OUT)
    return make_job(config, plan, model_dir, "float32", log_uri)


def _do_both(rank: int, num_workers: int, model_dir: str, trained: str, resume_from: str | None, jobs: list[Job]):
    workers.train_all_stages(rank, num_workers, model_dir, trained, resume_from)
    runs.train_all(rank, num_workers, jobs)


def _make_first_the_best(whole: Path, gained: Path) -> None:
    """Copy a run as it was at its last but one checkpoint, whose own adapter has a loss that no later one has."""
    shutil.copytree(whole, gained)
    newest, before = list_checkpoints(str(gained))
    shutil.rmtree(gained / "checkpoints" / newest)
    folder = gained / "checkpoints" / before
    shutil.rmtree(folder / "best", ignore_errors=True)
    seal(folder, State(8, best_step=8, best_loss_nats=0.0))
    shutil.copytree(folder / "adapter", gained / "kept")


def _break_off(whole: Path, broken: Path, also_before: bool = False) -> None:
    """Copy a run as it was when the upload of its last checkpoint broke off; one file of a second one is cut.

    The one before these is whole, unless it lacks its state too.
    """
    shutil.copytree(whole, broken)
    newest, before = list_checkpoints(str(broken))
    (broken / "checkpoints" / newest / "state.json").unlink()
    shutil.copytree(broken / "checkpoints" / before, broken / "checkpoints" / "step-000011-dead")
    file = broken / "checkpoints" / "step-000011-dead" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    if also_before:
        (broken / "checkpoints" / before / "state.json").unlink()


@pytest.fixture(scope="module")
def bucket():
    """An S3 bucket, for one file: it is in the environment as long as it is there."""
    with open_bucket("training") as uri:
        yield uri
