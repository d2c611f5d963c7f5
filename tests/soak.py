"""Kill a run at random moments and have `make resume` go on, until it is done, again and again.

What it leaves must be what an undisturbed run leaves, bit for bit, but for the identifiers of jobs. `make soak` does
this to the default run; the moments follow from the seed and from how quick the machine is.
"""

import argparse
import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from outlier_features.command.main import main as command
from outlier_features.files.artifacts import unfinished
from outlier_features.run.orphans import processes_in
from same_artifacts import differing

ROOT = Path(__file__).parents[1]
PROJECT = (
    "Makefile",
    "Snakefile",
    "config.yaml",
    "docs",
    "profiles",
    "pyproject.toml",
    "requirements.lock",
    "rules",
    "scripts",
    "workflow",
)
WAYS = ("a job -9", "Snakemake -9", "Ctrl-C", "Snakemake SIGTERM", "a job SIGTERM", "all of it -9")
GO_ON = "`make resume` goes on"


def copy_project(folder: Path) -> None:
    """The workflow, and in place of its virtual environment this one."""
    for name in PROJECT:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / name)  # with times: numba's cache
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(Path(sys.executable).parent)
    (folder / ".venv/installed").touch()


@dataclass
class Soak:
    """A copy of the project in `folder`, whose `undisturbed` directory is what a run with `overlay` leaves."""

    folder: Path
    undisturbed: Path
    seconds: float  # that a whole run takes
    overlay: str = "soak.yaml"
    seed: int = 0
    completed: int = 0
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def kill(self, ways: Iterable[str]) -> None:
        """Kill once in each of these ways, then let it end; raises `AssertionError` on any difference."""
        begun = False
        for number, way in enumerate(ways, start=1):
            while True:
                process = self._start("resume" if begun else "run")
                if self._wait(process, self._random.uniform(0, self.seconds)):
                    break
                self._require_complete(process)
                self._wipe()
                begun = False
            at_work = [str(one) for one in processes_in(self.folder) if one.script]
            hit = self._hit(process, way)
            status = process.wait(600)
            left = [str(one) for one in processes_in(self.folder) if one.script]
            lock = "a lock" if (self.folder / ".snakemake/locks").exists() else "no lock"
            self._say(
                f"{number}: {way} at {_names(at_work)}: hit {_names(hit)}; make ended with {status}, "
                f"left {lock}, at work {_names(left)}"
            )
            begun = True
            if self._random.random() < 0.3:
                self._plain_run()
        process = self._start("resume")
        process.wait()
        self._require_complete(process)

    def _start(self, target: str) -> "subprocess.Popen[bytes]":
        with (self.folder / "make.log").open("wb") as log:
            return subprocess.Popen(
                ["make", target, "CORES=2", f"ARGS=--configfile {self.overlay}"],
                cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(self.folder / "workflow")},
            )  # fmt: skip

    def _output(self) -> str:
        return (self.folder / "make.log").read_text(errors="replace")

    def _wait(self, process: "subprocess.Popen[bytes]", seconds: float) -> bool:
        """Wait so long; whether it is at work still."""
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def _hit(self, process: "subprocess.Popen[bytes]", way: str) -> list[str]:
        """Send the signal to whom it is meant for; returns them, of those that are Snakemake or its jobs."""
        number = {"-9": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}[way.split()[-1]]
        whom, all_of_it = way.rpartition(" ")[0], way in ("Ctrl-C", "all of it -9")
        while True:
            found = processes_in(self.folder)
            meant = [one for one in found if (one.script if whom == "a job" else one.is_snakemake or all_of_it)]
            if meant or process.poll() is not None:
                break
            time.sleep(0.02)
        if all_of_it and process.poll() is None:
            os.killpg(process.pid, number)
        else:
            meant = meant[:1]
            for one in meant:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.number, number)
        return [str(one) for one in meant if one.script or one.is_snakemake]

    def _plain_run(self) -> None:
        """`make run` goes on by itself, or says in a sentence what does."""
        process = self._start("run")
        status = process.wait()
        lock = (self.folder / ".snakemake/locks").exists()
        assert (status == 0) != lock, self._output()
        assert (GO_ON in self._output().splitlines()[-2]) == lock, self._output()
        self._say(f"   make run: {'refused, with the sentence' if lock else 'complete'}")

    def _require_complete(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.returncode == 0, self._output()
        results = self.folder / "results"
        assert (found := differing(results, self.undisturbed)) == [], found
        places = [str(results), str(self.folder / "resources")]
        assert command(["verify", *places]) == 0
        assert (left := [one.path for place in places for one in unfinished(Path(place).rglob(".*"))]) == [], left
        self.completed += 1
        self._say(f"   complete, and the same as the undisturbed run: {self.completed}")

    def _wipe(self) -> None:
        """Begin anew; now and then with nothing fetched."""
        shutil.rmtree(self.folder / "results")
        if self.completed % 4 == 1:
            shutil.rmtree(self.folder / "resources")

    def _say(self, line: str) -> None:
        self.said.append(line)
        print(line, flush=True)


def _names(processes: list[str]) -> str:
    return ", ".join(processes) or "no job"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--overlay", type=Path, help="a config in place of the default one")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        folder = Path(directory)
        copy_project(folder)
        overlay = yaml.safe_load(options.overlay.read_text()) if options.overlay else {}
        (folder / "soak.yaml").write_text(yaml.safe_dump(overlay))
        (folder / "undisturbed.yaml").write_text(yaml.safe_dump({**overlay, "results": "undisturbed"}))
        for name in ("undisturbed", "again"):  # once to fetch and compile, once to take the time
            begun = time.monotonic()
            first = Soak(folder, folder / "undisturbed", 0.0, f"{name}.yaml")
            process = first._start("run")
            assert process.wait() == 0, first._output()
            seconds = time.monotonic() - begun
            (folder / "again.yaml").write_text(yaml.safe_dump({**overlay, "results": "again"}))
        assert differing(folder / "undisturbed", folder / "again") == [], "two undisturbed runs differ"
        print(f"an undisturbed run takes {seconds:.0f} s", flush=True)
        soak = Soak(folder, folder / "undisturbed", seconds, seed=options.seed)
        ways = list(itertools.islice(itertools.cycle(WAYS), options.kills))
        random.Random(options.seed).shuffle(ways)
        soak.kill(ways)
        print(f"{len(ways)} kills, {soak.completed} complete runs, no difference")


if __name__ == "__main__":
    main()
