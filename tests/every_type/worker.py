"""A process that tries one type after the other, so that a crash harms no other and what is compiled is compiled once.

Run as a script, it reads a type a line and writes its outcomes, JSON, a line each.
"""

import json
import os
import select
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

LIMIT = 600  # seconds for a type; on a busy machine it takes ten


class Worker:
    """The process; it is started again after a crash.

    folder   for the models and their runs, and `logs/`, what the stages said
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._end()

    def try_type(self, name: str) -> list[dict[str, object]]:
        """Outcomes of a type's parts, as `whole_run.Outcome` has them."""
        process = self._process = self._process or self._start()
        assert process.stdin and process.stdout
        process.stdin.write(f"{name}\n")
        process.stdin.flush()
        ready = select.select([process.stdout], [], [], LIMIT)[0]
        line = process.stdout.readline() if ready else ""
        if line:
            found: list[dict[str, object]] = json.loads(line)
            return found
        status = self._end()
        why = f"its process ended with status {status}" if ready else f"it took more than {LIMIT} seconds"
        return [{"type": name, "part": None, "model": "", "result": "crash", "why": why, "missing": {}, "absent": {}}]

    def _start(self) -> "subprocess.Popen[str]":
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        return subprocess.Popen(
            [sys.executable, __file__, str(self.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def _end(self) -> int:
        if self._process is None:
            return 0
        self._process.kill()
        status, self._process = self._process.wait(), None
        return status


def _serve(folder: Path) -> None:
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    answers = os.fdopen(os.dup(1), "w")  # what stages print goes elsewhere
    os.dup2(2, 1)
    from rule_jobs import Plans
    from whole_run import try_type

    jobs = Plans(folder / "plan")
    for line in sys.stdin:
        name = line.strip()
        found = try_type(name, jobs, folder / name, folder / "logs" / f"{name}.txt")
        print(json.dumps([asdict(outcome) for outcome in found]), file=answers, flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
