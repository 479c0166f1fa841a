"""A run's rows and checkpoints in its folder, local and in S3: read by index, whole or passed over."""

import errno
from pathlib import Path

import numpy as np
import pytest

from raydistill.core import storage
from raydistill.core.errors import StorageError, TrainingError
from raydistill.training.rowfile import ROWS_A_BATCH, read_rows, write_rows
from raydistill.training.saved import (
    State,
    fetch_checkpoint,
    find_checkpoint,
    list_checkpoints,
    publish_checkpoint,
    read_state,
    seal,
)
from tests.training.workers import make_rows, make_taught_rows


@pytest.fixture(params=["folder", "s3"])
def log_uri(request, tmp_path):
    """A run's folder."""
    if request.param == "folder":
        return str(tmp_path / "run")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def _publish(tmp_path, log_uri: str, step: int, text: str = "weights") -> str:
    folder = tmp_path / f"made-{step}-{text}"
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").write_text(text)
    (folder / "optimizer.safetensors").write_text("moments")
    seal(folder, State(step, best_step=step, best_loss_nats=1.5))
    return publish_checkpoint(folder, log_uri, step)


def test_rows_are_read_by_index_in_their_order(log_uri):
    rows = make_rows(12) * (ROWS_A_BATCH // 12 + 1)
    write_rows(log_uri, rows, make_rows(3))
    train, held_out = read_rows(log_uri)
    assert len(train) == len(rows) > ROWS_A_BATCH and list(held_out) == make_rows(3)
    assert train[ROWS_A_BATCH + 1] == rows[ROWS_A_BATCH + 1] and list(train[10:14]) == rows[10:14]
    assert list(train) == rows
    with pytest.raises(IndexError):
        train[len(rows)]


def test_teachers_tokens_and_soft_labels_are_read_as_they_were_written(log_uri):
    rows = make_taught_rows()
    write_rows(log_uri, rows, rows[:1])
    train, _ = read_rows(log_uri)
    assert list(train) == rows and [row.id for row in train.first_taught(2)] == ["row1", "row2"]
    assert {row.id for row in train if row.is_generic} == {"row6"}
    for row, expected in zip(train, rows, strict=True):
        assert (row.top_ids is None) == (expected.top_ids is None)
        if row.top_ids is not None:
            np.testing.assert_array_equal(row.top_ids, expected.top_ids)
            np.testing.assert_array_equal(row.top_logprobs, expected.top_logprobs)


def test_last_two_checkpoints_are_kept_and_the_newest_is_found(tmp_path, log_uri):
    assert find_checkpoint(log_uri) == (None, [])
    names = [_publish(tmp_path, log_uri, step) for step in (5, 10, 15)]
    assert list_checkpoints(log_uri) == [names[2], names[1]]
    assert find_checkpoint(log_uri) == (names[2], [])
    with fetch_checkpoint(log_uri, names[2]) as folder:
        assert read_state(folder) == State(15, best_step=15, best_loss_nats=1.5)
        assert (folder / "adapter" / "adapter_model.safetensors").read_text() == "weights"


@pytest.mark.parametrize(
    "damage",
    [
        lambda uri: storage.delete(f"{uri}/state.json"),
        lambda uri: storage.write_bytes(f"{uri}/state.json", b'{"step": 15'),
        lambda uri: storage.delete(f"{uri}/optimizer.safetensors"),
        lambda uri: storage.write_bytes(f"{uri}/adapter/adapter_model.safetensors", b"weight"),
    ],
    ids=["no state", "half a state", "no optimizer", "cut weights"],
)
def test_damaged_checkpoint_is_passed_over(tmp_path, log_uri, damage):
    before, newest = (_publish(tmp_path, log_uri, step) for step in (10, 15))
    damage(f"{log_uri}/checkpoints/{newest}")
    assert find_checkpoint(log_uri) == (before, [newest])
    with fetch_checkpoint(log_uri, newest) as folder, pytest.raises(TrainingError, match="no whole checkpoint"):
        read_state(folder)


@pytest.mark.parametrize("name", ["state.json", "optimizer.safetensors"])
def test_checkpoint_that_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, name):
    newest = _publish(tmp_path, str(tmp_path / "run"), 15)
    whole = Path.open

    def fail(path, *args, **options):
        if path.name == name:
            raise OSError(errno.EIO, "Input/output error")
        return whole(path, *args, **options)

    with monkeypatch.context() as patch, pytest.raises((OSError, StorageError), match="Input/output error"):
        patch.setattr(Path, "open", fail)
        find_checkpoint(str(tmp_path / "run"))
    assert find_checkpoint(str(tmp_path / "run")) == (newest, [])


def test_checkpoint_just_written_stays_beside_any_number_of_later_ones(tmp_path, log_uri):
    later = [_publish(tmp_path, log_uri, step) for step in (10, 15)]
    for name in later:
        storage.delete(f"{log_uri}/checkpoints/{name}/state.json")
    first = _publish(tmp_path, log_uri, 5)
    assert find_checkpoint(log_uri) == (first, [later[1]])
    assert list_checkpoints(log_uri) == [later[1], first]


def test_same_step_saved_again_leaves_the_first_alone(tmp_path, log_uri):
    first, second = _publish(tmp_path, log_uri, 5, "a"), _publish(tmp_path, log_uri, 5, "b")
    assert first != second and set(list_checkpoints(log_uri)) == {first, second}
    with fetch_checkpoint(log_uri, first) as folder:
        assert read_state(folder).step == 5


def test_state_knows_the_best_evaluation_and_when_to_stop():
    state = State().after(1, None, patience=2)
    assert state == State(1)
    state = state.after(2, 3.0, patience=2).after(3, 2.0, patience=2)
    assert state == State(3, best_step=3, best_loss_nats=2.0)
    state = state.after(4, 2.0, patience=2)
    assert (state.best_step, state.evaluations_without_gain, state.stopped) == (3, 1, False)
    assert state.after(5, 2.5, patience=2).stopped and not state.after(5, 2.5, patience=None).stopped
    assert state.after(5, 1.0, patience=2) == State(5, best_step=5, best_loss_nats=1.0)
