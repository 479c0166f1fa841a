"""create_data on a store that answers 503, is slow or cuts the connection at every fifth request.

It cuts before, after or while it does its work; no single fault is more than transient.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from raydistill.core import storage
from raydistill.core.answers import row_seed
from raydistill.core.prompts import load_prompt
from raydistill.core.records import TokenRequest
from raydistill.dataset.read import read_examples
from raydistill.renderers import get_renderer, load_tokenizer
from raydistill.teacher.rows import render_messages
from tests.jobs.create_data_desk import Desk, num_asked
from tests.moto_bucket import open_bucket
from tests.processes import ROOT
from tests.stuttering_store import FAULTS, open_stutter
from tests.teacher.hash_teacher import hash_answer

RUN = """
import sys
import ray
from jobs import create_data
from jobs.data_config import CreateDataConfig
from raydistill.dataset import ledger
from tests.teacher import hash_teacher
ledger.COMPACT_ROWS = 40  # so that objects are joined while rows are asked
config = CreateDataConfig.model_validate_json(sys.argv[1])
ray.init(address="local", num_cpus=8, object_store_memory=100 * 2**20, include_dashboard=False,
         runtime_env={"env_vars": {"PYTHONPATH": sys.argv[3]}})
handle = hash_teacher.start(config.teacher_model, sys.argv[2], delay_seconds=0.2)
create_data.run(config, handle, on_progress=lambda _: None)
"""


def test_a_dataset_on_a_store_that_stutters_is_that_of_an_undisturbed_run(tmp_path: Path, model_dir: str) -> None:
    num_rows, log = 120, tmp_path / "asked"
    desk = Desk(tmp_path, model_dir, [f"Stutter {index} ü" for index in range(num_rows)])
    with open_bucket("stutter") as bucket:
        output = f"{bucket}/data/out.jsonl"
        config = desk.config(num_examples=num_rows, output_file=output)
        port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
        with open_stutter(port, share=0.2, seed=1) as (url, stutter):
            done = subprocess.run(
                [sys.executable, "-c", RUN, config.model_dump_json(), str(log), str(ROOT)],
                cwd=ROOT,
                env={**os.environ, "AWS_ENDPOINT_URL": url},
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
        assert done.returncode == 0, done.stderr[-3000:]
        examples, manifest = read_examples(output)
        names = storage.list_names(f"{output}.d")
        lines = [json.loads(line)["messages"] for line in storage.read_bytes(output).splitlines()]
    assert {fault for fault, _ in stutter.struck} == set(FAULTS)
    assert {"GET", "PUT"} <= {method for _, method in stutter.struck}
    assert manifest is not None
    assert len({example.id for example in examples}) == num_rows == len(examples) == num_asked(log)
    assert sum(shard.rows for shard in manifest.answers) == num_rows, "every id is in the ledger once"
    assert {name for name in names if name.endswith(".parquet")} == {shard.uri for shard in manifest.shards}
    renderer, prompt = get_renderer("chat", load_tokenizer(model_dir)), load_prompt(str(desk.prompt))
    for example in examples:
        tokens = render_messages(example.messages, prompt, renderer)
        assert example.response == hash_answer(TokenRequest(tokens, seed=row_seed(example.id)))
    assert lines == [[*item.messages, {"role": "assistant", "content": item.response}] for item in examples]
