"""The driver of a training in a process of its own, which a test can kill: fit on a running cluster.

python -m tests.training.fit_driver ADDRESS MODEL_DIR LOG_PATH METRICS_FILE key=value ...
"""

import sys
import time
from pathlib import Path

import httpx

from jobs.runtime import ClusterConfig, connect
from raydistill.core.config import parse_arguments
from raydistill.training.batches import EncodedRow
from raydistill.training.config import TrainConfig
from raydistill.training.fit import fit

ANSWERS = [[100, 101, 102, 2], [101, 101, 2], [102, 2]]
ROWS = [EncodedRow(f"r{index}", [1, 20 + index, 30, 3 * index], ANSWERS[index % 3]) for index in range(40)]
TRAINED, HELD_OUT = ROWS[8:], ROWS[:8]
STEPS = 120
METRICS_SECONDS = 30


def make_config(model_dir: str, log_path: str, **changes) -> TrainConfig:
    """30 epochs of 4 steps; a checkpoint and an evaluation every 10 steps."""
    values = {
        "data_file": "rows.jsonl",
        "student_model": model_dir,
        "log_path": log_path,
        "learning_rate": 0.003,
        "lora_rank": 4,
        "num_epochs": 30,
        "checkpoint_every": 10,
        "eval_every": 10,
        "max_failures": 3,
        "dtype": "float32",
        "use_gpu": False,
    }
    return TrainConfig.model_validate({**values, **changes})


def main() -> None:
    """Train to the end; what the node's agent exports for Prometheus is left in a file."""
    address, model_dir, log_path, metrics_file, *arguments = sys.argv[1:]
    connect(ClusterConfig.model_validate({"address": address}))
    _, changes = parse_arguments(arguments)
    fit(make_config(model_dir, log_path, **changes), TRAINED, HELD_OUT, model_dir)
    Path(metrics_file).write_text(_read_exported(), encoding="utf-8")


def _read_exported() -> str:
    import ray

    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    deadline = time.monotonic() + METRICS_SECONDS
    text = ""
    while "raydistill_train" not in text and time.monotonic() < deadline:
        time.sleep(0.5)
        text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics").text
    return text


if __name__ == "__main__":
    main()
