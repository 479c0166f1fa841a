"""create_data killed with all its processes and run again, on clusters of its own: nothing is lost or doubled.

Its store answers 503, is slow or cuts the connection at every fifth request, before, after or while it does its work.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raydistill.core import storage
from raydistill.core.answers import row_seed
from raydistill.core.errors import DatasetError
from raydistill.core.prompts import load_prompt
from raydistill.core.records import TokenRequest
from raydistill.dataset.read import read_examples, read_manifest
from raydistill.renderers import get_renderer, load_tokenizer
from raydistill.teacher.rows import render_messages
from tests.jobs.create_data_desk import Desk, num_asked
from tests.moto_bucket import open_bucket
from tests.processes import ROOT
from tests.stuttering_store import FAULTS, open_stutter
from tests.teacher.hash_teacher import hash_answer

KILLED_RUN = """
import sys
import ray
from jobs import create_data
from jobs.data_config import CreateDataConfig
from tests.teacher import hash_teacher
config = CreateDataConfig.model_validate_json(sys.argv[1])
ray.init(num_cpus=8, object_store_memory=100 * 2**20, include_dashboard=False,
         runtime_env={"env_vars": {"PYTHONPATH": sys.argv[3]}})
handle = hash_teacher.start(config.teacher_model, sys.argv[2], delay_seconds=1.0)
create_data.run(config, handle, on_progress=lambda now: print("done", now.counts["answered"], flush=True))
"""


def store_port() -> int:
    return int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])


def test_create_data_killed_in_the_middle_loses_and_doubles_nothing(tmp_path: Path, model_dir: str) -> None:
    num_rows, commit_rows, kill_at = 120, 10, 20
    desk = Desk(tmp_path, model_dir, [f"Killed {index} ü" for index in range(num_rows)])
    log = tmp_path / "asked"
    with open_bucket("killed") as bucket, open_stutter(store_port(), share=0.2, seed=1) as (store_url, stutter):
        output = f"{bucket}/data/out.jsonl"
        config = desk.config(num_examples=num_rows, commit_rows=commit_rows, concurrency=8, output_file=output)

        def start() -> subprocess.Popen[str]:
            command = [sys.executable, "-c", KILLED_RUN, config.model_dump_json(), str(log), str(ROOT)]
            quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            store = {**os.environ, "AWS_ENDPOINT_URL": store_url}
            return subprocess.Popen(command, cwd=ROOT, env=store, start_new_session=True, **quiet)

        process = start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("done") and int(line.split()[1]) >= kill_at:
                    break
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=30)
        time.sleep(2)  # its workers notice that it is gone
        assert kill_at <= num_asked(log) < num_rows, "it was killed in the middle"
        assert not read_manifest(output).finished
        assert not storage.exists(output)
        with pytest.raises(DatasetError, match="not finished"):
            read_examples(output)

        second = start()
        second.communicate(timeout=300)
        assert second.returncode == 0, "no fault of the store ends the job"
        examples, manifest = read_examples(output)
        names = storage.list_names(f"{output}.d")
        lines = [json.loads(line)["messages"] for line in storage.read_bytes(output).splitlines()]
    assert manifest is not None
    assert len({example.id for example in examples}) == num_rows == len(examples)
    assert sum(shard.rows for shard in manifest.answers) == num_rows, "every id is in the ledger once"
    assert {name for name in names if name.endswith(".parquet")} == {shard.uri for shard in manifest.shards}
    assert {fault for fault, _ in stutter.struck} == set(FAULTS)
    assert {"GET", "PUT"} <= {method for _, method in stutter.struck}
    renderer, prompt = get_renderer("chat", load_tokenizer(model_dir)), load_prompt(str(desk.prompt))
    for example in examples:  # the undisturbed answer
        tokens = render_messages(example.messages, prompt, renderer)
        assert example.response == hash_answer(TokenRequest(tokens, seed=row_seed(example.id)))
    assert lines == [[*item.messages, {"role": "assistant", "content": item.response}] for item in examples]
    # What each of the two actors had asked and not committed when it was killed.
    assert num_rows <= num_asked(log) <= num_rows + 2 * commit_rows
