"""Keys over real Serve: refused on an open address, and where there is one it reaches the replica and no log."""

import json
import os
import subprocess
import sys

from tests.loopback import free_port
from tests.processes import ROOT

KEY = "tml-must-appear-nowhere"
# In a process of its own, since Serve's address cannot change once it is up. The key comes after Ray has started, so
# that no worker inherits it: it has to travel with the application.
SCRIPT = """
import json, os, sys
from pathlib import Path
import httpx, ray
from ray import serve
from raydistill.core.errors import ConfigError, ServiceError
from raydistill.core.keys import read_key
from raydistill.engine.app import run_application, stop_application
from raydistill.engine.config import EngineConfig
from raydistill.engine.ingress import make_ingress

key, port = sys.stdin.read(), int(sys.argv[1])  # Ray logs command lines

@serve.deployment(name="engine", num_replicas=2, ray_actor_options={"num_cpus": 1})
class Engine:
    async def status(self):
        return {"replica": serve.get_replica_context().replica_id.unique_id, "models": ["m"]}

def start(has_key):
    found = read_key() if has_key else None
    run_application(make_ingress(Engine.bind(), found, EngineConfig.model_validate({})), "front", "/", 100)

ray.init(address="local", num_cpus=4, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
logs = Path(ray._private.worker._global_node.get_logs_dir_path())
serve.start(http_options={"host": "0.0.0.0", "port": port})
told = {}
try:
    start(has_key=False)
except ConfigError as error:
    told["job"] = str(error)
os.environ["RAYDISTILL_API_KEY"] = key
try:
    start(has_key=False)  # the job has a key, the application has none: as built elsewhere, from a Serve config file
except ServiceError as error:
    told["replica"] = str(error)
stop_application("front")
start(has_key=True)
url = f"http://127.0.0.1:{port}/status"
sent = [{}, {"X-API-Key": "tml-wrong"}, {"X-API-Key": key}, {"Authorization": f"Bearer {key}"}]
answers = [httpx.get(url, headers=headers, timeout=30) for headers in sent]
told["statuses"] = [answer.status_code for answer in answers]
told["replicas"] = [replica["replica"] for replica in answers[-1].json()["replicas"]]
stop_application("front")
ray.shutdown()
files = [file for file in logs.rglob("*") if file.is_file()]
told["files"] = len(files)
told["leaks"] = [str(file) for file in files if key.encode() in file.read_bytes()]
print(json.dumps(told))
"""


def test_open_front_is_refused_without_a_key_and_the_key_reaches_the_replica_and_no_log():
    removed = ("RAYDISTILL_API_KEY", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(free_port())],
        cwd=ROOT,
        input=KEY,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    for refusal in (told["job"], told["replica"]):
        assert "Serve listens on 0.0.0.0" in refusal and "RAYDISTILL_API_KEY" in refusal
    assert told["statuses"] == [401, 401, 200, 200]
    assert len(set(told["replicas"])) == 2, "the front asks every replica for its status"
    assert told["files"] > 5 and told["leaks"] == []
    assert KEY not in done.stdout + done.stderr
