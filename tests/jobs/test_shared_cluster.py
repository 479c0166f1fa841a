"""A job on a cluster that others use too leaves nothing of its own there, and hides no error when it ends early.

What a killed one leaves has the name that the same command again gives its own, and goes first.
"""

from tests.processes import run_code

CODE = """
from jobs.runtime import ClusterConfig, connect, name_application
from jobs.serve import stop_student
from jobs.task import TaskConfig

own = ClusterConfig.model_validate({"num_cpus": 4, "object_store_mib": 80})
connect(own)
shared = own.model_copy(update={"address": "somewhere"})
assert name_application("student", own, "a") == ("student", "/")
name, route = name_application("teacher", shared, "a")
assert name.startswith("teacher-") and route == f"/{name}"
assert name_application("teacher", shared, "a")[0] == name != name_application("teacher", shared, "b")[0]
task = TaskConfig(name="t", prompt="p", queries="q", teacher_model="m", student_model="m")
stop_student(task, shared, "serve")  # Serve does not run: nothing was started
print("fine")
"""


def test_stopping_the_student_is_no_error_where_serve_never_ran():
    assert run_code(CODE) == "fine"
