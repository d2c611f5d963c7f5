"""The cores that a job may use, and how the threads of a model's pass wait for one another.

Without torch: what is set here counts only if it is set before torch is imported.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

# Where none of these is set, torch's threads spin at every barrier of a pass, and beside other work starve each other.
# A thousand turns (libgomp; others sleep at once) are as quick on an idle machine as many: benchmarks/waiting.py.
_WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}


def wait_without_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have OpenMP threads that wait sleep soon, here and in processes that it starts; a user's own choice stands."""
    if not {*_WAITING, "KMP_BLOCKTIME"} & environment.keys():
        environment.update(_WAITING)


def usable_cores(scheduled: int, root: Path = Path("/")) -> int:
    """How many of `scheduled` cores this process may really use, 1 at least.

    It counts its affinity, the limits of its cgroup and those above (cpu.max; of version 1 cpu.cfs_quota_us) and what
    SLURM gave the job, which not every cluster enforces.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or scheduled
    allotted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    limits = [scheduled, affinity, *_quotas(root)] + ([int(allotted)] if allotted.isdecimal() else [])
    return max(1, min(limits))


def _quotas(root: Path) -> list[int]:
    """Whole cores that each cgroup which limits this process grants; a part of a core counts as one."""
    quotas = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        here = top / group.lstrip("/")
        for folder in [here, *here.parents]:
            quota = _lines(folder / "cpu.max") or _lines(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
            words = " ".join(quota).split()
            if len(words) == 2 and all(word.isdecimal() for word in words):
                quotas.append(-(-int(words[0]) // int(words[1])))
            if folder == top:
                break
    return quotas


def _lines(*paths: Path) -> list[str]:
    try:
        return [line for path in paths for line in path.read_text().splitlines()]
    except OSError:
        return []
