"""Everything that can die dies while create_data runs: the dataset is that of an undisturbed run. See `make soak`."""

import pytest

from tests.chaos.arena import open_arena
from tests.chaos.run import KINDS, run


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    with open_arena(tmp_path_factory.mktemp("arena")) as arena:
        yield arena


@pytest.mark.parametrize("seed", [1, 2])
def test_a_dataset_under_faults_is_that_of_an_undisturbed_run(arena, model_dir, seed):
    outcome = run(arena, model_dir, seed)
    assert not outcome.wrong, outcome
    assert sorted(kind for kind, _ in outcome.faults) == sorted(KINDS)
    assert outcome.num_starts > 1, "the driver was killed and started again"
