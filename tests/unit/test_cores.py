"""How many cores a job may use, and that its threads do not spin."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from outlier_features.cores import usable_cores, wait_without_spinning
from rule_jobs import CONFIG, ROOT

CORES = len(os.sched_getaffinity(0))


def machine(tmp_path: Path, group: str, **limits: str) -> Path:
    """A root directory in which this process is in `group`, with the files of limits."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(group)
    for name, text in limits.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("group", "limits", "expected"),
    [
        ("0::/job/step\n", {}, 8),
        ("0::/job/step\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/job/step\n", {"job/cpu.max": "300000 100000\n", "job/step/cpu.max": "max 100000\n"}, 3),
        ("0::/job\n", {"job/cpu.max": "150000 100000\n"}, 2),
        ("0::/job\n", {"job/cpu.max": "10000 100000\n"}, 1),
        ("0::/elsewhere\n", {"cpu.max": "200000 100000\n"}, 2),  # a container sees its own group at the top
        ("4:memory:/\n2:cpu,cpuacct:/job\n", {"cpu,cpuacct/job/cpu.cfs_quota_us": "400000",
                                              "cpu,cpuacct/job/cpu.cfs_period_us": "100000"}, 4),
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)  # fmt: skip
def test_quotas_of_groups_bound_the_cores(tmp_path, monkeypatch, group, limits, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    assert usable_cores(8, machine(tmp_path, group, **limits)) == expected


def test_affinity_and_allotment_bound_the_cores(tmp_path, monkeypatch):
    assert usable_cores(1000, machine(tmp_path, "0::/\n")) == CORES
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert usable_cores(1000, tmp_path) == 1


def test_a_job_is_bound_to_its_affinity():
    code = "from outlier_features.cores import usable_cores; print(usable_cores(64))"
    done = subprocess.run(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}}); {code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "1\n"


def test_a_choice_of_the_user_stands():
    environment = {"GOMP_SPINCOUNT": "100"}
    wait_without_spinning(environment)
    assert environment == {"GOMP_SPINCOUNT": "100"}


def test_jobs_of_the_workflow_inherit_it(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "text.txt").touch()
    catalog = {"models": {"tiny": {"path": "model"}}, "corpora": {"text": {"files": ["text.txt"]}}}
    (tmp_path / CONFIG).write_text(yaml.safe_dump({"models": ["tiny"], "corpora": ["text"], "catalog": catalog}))
    code = "import os, rule_jobs; rule_jobs._planned(rule_jobs.Path('.'), []); print(os.environ['OMP_WAIT_POLICY'])"
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    own["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), own.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=own, capture_output=True, text=True)
    assert done.stdout.split()[-1:] == ["passive"], done.stderr
