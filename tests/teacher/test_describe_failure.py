"""A failed row says its cause in one line."""

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from raydistill.teacher.attempt import describe_failure


@pytest.mark.parametrize(
    "cause", [ValueError("the engine is gone"), ValueError("first\n\x1b[36mray::f()\nthe engine is gone")]
)
def test_a_task_error_is_its_cause_in_one_line(cause):
    error = RayTaskError("generate", "\x1b[36mray::ServeReplica\x1b[39m\nTraceback ...\n  File ...", cause)
    assert describe_failure(error.as_instanceof_cause()) == "ValueError: the engine is gone"


def test_an_error_without_a_cause_keeps_its_own_words():
    assert describe_failure(ActorDiedError()).startswith("ActorDiedError: ")


def test_an_error_without_words_is_its_type():
    assert describe_failure(ValueError()) == "ValueError"
