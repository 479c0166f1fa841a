"""What a row costs the driver of create_data: CPU time, memory, storage objects, and what a resume looks at.

    python -m tests.bench.bench_driver [--rows 10000 1000000] [--repeats 1]

Rows are synthetic, and a Serve deployment answers them at once, so everything that is not the driver's is as cheap as
it gets. Each size is a run in a process of its own, with its own Ray, and then the same command again: first with
one row more, which asks only that row, then with nothing to ask.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.bench.machine import describe_machine
from tests.processes import ROOT

CPUS = 8  # logical


def main() -> None:
    """Run every size and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_measure(int(arguments.one))))
        return
    runs = [_run(rows) for _ in range(arguments.repeats) for rows in arguments.rows]
    by_rows = {rows: [run for run in runs if run["rows"] == rows] for rows in arguments.rows}
    peaks = [max(run["peak_mib"] for run in group) for group in by_rows.values()]
    summary = {
        "driver_microseconds_a_row": {
            rows: [run["driver_microseconds_a_row"] for run in group] for rows, group in by_rows.items()
        },
        "peak_memory_of_most_to_fewest_rows": round(peaks[-1] / peaks[0], 3),
    }
    print(json.dumps({"machine": describe_machine(), "summary": summary, "runs": runs}, indent=2))


def _run(num_rows: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.bench_driver", "--one", str(num_rows)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def _measure(num_rows: int) -> dict[str, Any]:
    """Create a dataset of so many rows in this process and return what that took."""
    import ray

    from jobs import create_data
    from jobs.data_config import CreateDataConfig
    from jobs.runtime import ClusterConfig, connect, disconnect
    from tests.bench.instant_teacher import start
    from tests.tiny import make_tiny_model

    with tempfile.TemporaryDirectory(prefix="bench-driver-") as name:
        folder = Path(name)
        model_dir = make_tiny_model(folder / "model")
        _write_queries(folder / "queries.jsonl", num_rows + 1)
        (folder / "prompt.md").write_text("Be brief. " * 50 + "{query}")
        cluster = ClusterConfig.model_validate({"num_cpus": CPUS, "object_store_mib": 300})
        connect(cluster)
        handle = start()
        config = CreateDataConfig.model_validate(
            {
                "output_file": str(folder / "dataset"),
                "teacher_model": model_dir,
                "num_examples": num_rows,
                "queries": str(folder / "queries.jsonl"),
                "prompt": str(folder / "prompt.md"),
                "renderer": "raw",
                "concurrency": 512,
                "rows_per_call": 64,
                "commit_rows": 1024,
                "max_tokens": 8,
            }
        )
        calls = _count_storage_calls()
        first = _time(lambda: create_data.run(config, handle, on_progress=lambda _: None))
        objects = Counter(path.parent.name for path in (folder / "dataset").rglob("*.parquet"))
        calls.clear()
        grown = config.model_copy(update={"num_examples": num_rows + 1})
        grow = _time(lambda: create_data.run(grown, handle, on_progress=lambda _: None))
        grow_calls = dict(calls)
        again = _time(lambda: create_data.run(grown, handle, on_progress=lambda _: None))
        result = {
            "rows": num_rows,
            **first,
            "driver_microseconds_a_row": round(first["driver_seconds"] / num_rows * 1e6, 1),
            "objects": dict(objects),
            "rows_an_object": round(num_rows / sum(objects.values())),
            "one_row_more": {**grow, "storage_calls": grow_calls},
            "nothing_more": again,
        }
        ray_free = disconnect(cluster)
        assert ray_free is None
        assert not ray.is_initialized()
        return result


def _write_queries(path: Path, num_rows: int) -> None:
    with path.open("w") as file:
        for index in range(num_rows):
            file.write(json.dumps({"text": f"Where is parcel {index * 7919 % 10**9}, and when does it come?"}) + "\n")


def _count_storage_calls() -> Counter[str]:
    """Count the calls of the functions of core.storage from now on, by function and kind of place."""
    from raydistill.core import storage

    calls: Counter[str] = Counter()

    def counted(name: str) -> Any:
        function = getattr(storage, name)

        def call(uri: Any, *arguments: Any, **options: Any) -> Any:
            place = Path(str(uri))
            calls[f"{name} {place.parent.name if place.suffix else place.name}"] += 1
            return function(uri, *arguments, **options)

        return call

    for name in ("list_names", "read", "read_bytes", "write_bytes", "filesystem"):
        setattr(storage, name, counted(name))
    return calls


def _time(work: Any) -> dict[str, float]:
    """Return wall and driver CPU seconds of some work, and the memory of this process at its start and at its peak."""
    peak = [_resident_mib()]
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.2):
            peak[0] = max(peak[0], _resident_mib())

    start, before, cpu = time.monotonic(), _resident_mib(), _cpu_seconds()
    thread = threading.Thread(target=sample)
    thread.start()
    try:
        work()
    finally:
        ended.set()
        thread.join()
    return {
        "wall_seconds": round(time.monotonic() - start, 2),
        "driver_seconds": round(_cpu_seconds() - cpu, 2),
        "start_mib": round(before, 1),
        "peak_mib": round(max(peak[0], _resident_mib()), 1),
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
