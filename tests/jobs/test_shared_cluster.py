"""A job on a cluster that others use too leaves nothing of its own there, and hides no error when it ends early."""

from tests.processes import run_code

CODE = """
import ray
from jobs.runtime import ClusterConfig, connect, name_application
from jobs.serve import stop_student

own = ClusterConfig.model_validate({"num_cpus": 4, "object_store_mib": 80})
connect(own)
shared = own.model_copy(update={"address": "somewhere"})
job = ray.get_runtime_context().get_job_id()
assert name_application("student", own) == ("student", "/")
assert name_application("teacher", shared) == (f"teacher-{job}", f"/teacher-{job}")
stop_student(shared)  # Serve does not run: nothing was started
print("fine")
"""


def test_stopping_the_student_is_no_error_where_serve_never_ran():
    assert run_code(CODE) == "fine"
