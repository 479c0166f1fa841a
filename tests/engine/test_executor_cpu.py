"""On CPU an engine of ours has no worker process beside it; where vLLM has threads to bind, it keeps its own way."""

import pytest

pytest.importorskip("vllm")


@pytest.mark.parametrize(
    ("environment", "changes", "backend"),
    [
        ({"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "2"}, {}, "uni"),
        ({"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "2"}, {"tensor_parallel_size": 2}, "mp"),
        ({"VLLM_CPU_OMP_THREADS_BIND": "nobind"}, {}, "mp"),
        ({"VLLM_CPU_OMP_THREADS_BIND": "auto", "OMP_NUM_THREADS": "2"}, {}, "mp"),
    ],
)
def test_where_an_engine_computes(monkeypatch, model_dir, environment, changes, backend):
    from vllm import EngineArgs
    from vllm.platforms import current_platform

    from raydistill.engine import executor_cpu

    if not current_platform.is_cpu():
        pytest.skip("vllm's build here is not the one for CPUs")
    executor_cpu.register()
    for name in ("VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    arguments = {"max_model_len": 128, "enforce_eager": True, "kv_cache_memory_bytes": 2**20}
    # What Ray's LLM deployment asks for on CPU.
    args = EngineArgs(model=model_dir, distributed_executor_backend="mp", **arguments, **changes)
    assert args.create_engine_config().parallel_config.distributed_executor_backend == backend
