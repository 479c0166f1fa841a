"""vLLM's teacher as it is, which also writes down each row that its engine is asked, and whose engine can be killed."""

import os
import signal
from pathlib import Path

from ray.serve.handle import DeploymentHandle

from raydistill.core.records import TokenRequest, TokenResult
from raydistill.engine.config import EngineConfig
from tests.processes import command_of, descendants

SETTINGS = {"dtype": "float32", "max_model_len": 512, "kv_cache_gib": 0.1, "max_num_seqs": 8, "omp_threads": 1}


def start(model_dir: str, log_path: str, name: str) -> DeploymentHandle:
    """Start it and return the handle of its engine; its log has a line for each row, with the replica's process."""
    from raydistill.engine.app import build_application, run_application
    from raydistill.engine.args import make_llm_config
    from raydistill.engine.server import TokenServer

    class CountedServer(TokenServer):
        async def generate(self, rows: list[TokenRequest], after: str | None = None) -> list[TokenResult]:
            if not self._client.errored:  # else nobody is asked
                with Path(log_path).open("a") as log:
                    log.write(f"{os.getpid()}\n" * len(rows))
            return await super().generate(rows, after)

    config = EngineConfig.model_validate(SETTINGS)
    llm_config = make_llm_config(model_dir, model_dir, config, CountedServer, lora=False)
    app = build_application(llm_config, config)
    return run_application(app, name, f"/{name}", config.start_timeout_seconds)


def kill_engine(log_path: str) -> None:
    """Kill the process in which vLLM computes, below the replica that was asked last; the replica lives."""
    replica = int(Path(log_path).read_text().split()[-1])
    (engine,) = [pid for pid in descendants(replica) if "EngineCore" in command_of(pid)]
    os.kill(engine, signal.SIGKILL)
