"""A job on a cluster that others use too leaves nothing of its own there, and hides no error when it ends early."""

import json

from tests.processes import run_code

ENDS_EARLY = """
from jobs.runtime import ClusterConfig, connect, name_application
from jobs.serve import stop_student
from jobs.task import TaskConfig

own = ClusterConfig.model_validate({"num_cpus": 4, "object_store_mib": 80})
connect(own)
shared = own.model_copy(update={"address": "somewhere"})
assert name_application("student", own, "a") == ("student", "/")
task = TaskConfig(name="t", prompt="p", queries="q", teacher_model="m", student_model="m")
stop_student(task, shared, "serve")  # Serve does not run: nothing was started
print("fine")
"""

# Two other jobs with a teacher for the same dataset, of which one is killed, and then the same command once more.
OTHER = """
import sys, time
from ray import serve
from jobs.runtime import ClusterConfig, claim_application, connect

cluster = ClusterConfig.model_validate({"address": sys.argv[1]})
connect(cluster)

@serve.deployment(ray_actor_options={"num_cpus": 0})
class Teacher:
    pass

serve.start(http_options={"location": "NoServer"})
name, route = claim_application("teacher", cluster, "dataset")
assert route == f"/{name}"
serve.run(Teacher.bind(), name=name, route_prefix=None)
print(name, flush=True)
time.sleep(300)
"""
SAME = f"""
import json, subprocess, sys, time
import ray
from ray import serve
from ray._private import state
from jobs.runtime import ClusterConfig, claim_application, connect, disconnect, name_application

own = ClusterConfig.model_validate({{"num_cpus": 4, "object_store_mib": 100}})
connect(own)
address = ray.get_runtime_context().gcs_address
shared = own.model_copy(update={{"address": address}})
command = [sys.executable, "-c", {OTHER!r}, address]
children, names = [], []
for _ in range(2):
    children.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    names.append(children[-1].stdout.readline().strip())
killed, alive = names
children[0].kill()
children[0].wait()
for _ in range(100):
    if any(job["IsDead"] for job in state.jobs()):
        break
    time.sleep(0.1)
before = sorted(serve.status().applications)
other, _ = claim_application("teacher", shared, "another dataset")
untouched = sorted(serve.status().applications)
mine, _ = claim_application("teacher", shared, "dataset")
assert mine == name_application("teacher", shared, "dataset")[0]
after = sorted(serve.status().applications)
children[1].kill()
children[1].wait()
disconnect(own)
print(json.dumps([killed, alive, mine, before, untouched, after]))
"""


def test_stopping_the_student_is_no_error_where_serve_never_ran():
    assert run_code(ENDS_EARLY) == "fine"


def test_the_same_command_again_removes_what_a_killed_one_left_and_nothing_of_a_living_job():
    killed, alive, mine, before, untouched, after = json.loads(run_code(SAME).splitlines()[-1])
    assert len({killed, alive, mine}) == 3
    assert before == untouched == sorted([killed, alive])
    assert after == [alive]
