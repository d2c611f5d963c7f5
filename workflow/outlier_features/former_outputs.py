"""What a run had before, kept until its successor is whole, and taken again where what it was made from is as it was.

Snakemake removes the outputs of a job before it runs, and again where it fails; and once a job is to run, all that
comes after it is, whatever bytes it makes. So a run first links the outputs that are there into a hidden directory of
the results, which costs no space while both are the same file. A job whose inputs are as they were takes its own from
there instead of making them; what is missing at the end of the run is put back.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

_FOLDER = ".former"
_KEPT, _COPY, _JOB, _TAKEN = ".kept", ".copy", ".job", ".taken"  # no suffixes of artifacts
# Older than any input, so that Snakemake makes the file again; a .zip has no dates before 1980.
FORMER = 315_619_200


@dataclass(frozen=True)
class FormerJob:
    """A job that is to run, all of whose paths lie in the results but for inputs.

    outputs     files and directories that it is to make
    checksums   by path of each input its SHA-256 when the job ran before, None where it is not known; None as a whole
                where its parameters or code have changed since
    is_kept     whether its outputs are worth their space if it cannot take them again
    """

    log: Path
    benchmark: Path
    outputs: Sequence[Path]
    checksums: Mapping[str, str | None] | None
    is_kept: bool


def keep_outputs(results: Path, jobs: Iterable[FormerJob]) -> None:
    """Link the outputs of jobs that are there, and note from what they were made."""
    for note in [path for suffix in (_JOB, _TAKEN) for path in (results / _FOLDER).glob(f"*{suffix}")]:
        note.unlink()  # of a run that was killed, whose parameters may have been others
    for job in jobs:
        same = job.checksums is not None and all(path.exists() for path in (*job.outputs, job.benchmark))
        if not same and not job.is_kept:
            continue
        with suppress(OSError):  # where files cannot be linked, they are lost as ever
            (results / _FOLDER).mkdir(parents=True, exist_ok=True)
            for path in job.outputs:
                if path.exists():
                    _link(path, _place(results, path, _KEPT))
            if same:
                shutil.copy2(job.benchmark, _place(results, job.benchmark, _COPY))  # which is written in its place
                oldest = min(path.stat().st_mtime_ns for path in job.outputs)
                content = {
                    "inputs": {
                        path: [sha256, _file_before(Path(path), oldest)]
                        for path, sha256 in (job.checksums or {}).items()
                    },
                    "outputs": [str(path) for path in job.outputs],
                    "benchmark": str(job.benchmark),
                    "is_kept": job.is_kept,
                }
                _place(results, job.log, _JOB).write_text(json.dumps(content), encoding="utf-8")


def take_outputs(results: Path | None, log: Path) -> bool:
    """Whether the job with this log has its former outputs in place again, since its inputs are as they were.

    Where they are not, large outputs are let go.
    """
    if results is None or not (note := _place(results, log, _JOB)).is_file():
        return False
    job = json.loads(note.read_text(encoding="utf-8"))
    kept = {Path(path): _place(results, Path(path), _KEPT) for path in job["outputs"]}
    if not all(place.exists() for place in kept.values()):
        return False
    if not all(_is_same(Path(path), sha256, file) for path, (sha256, file) in job["inputs"].items()):
        note.unlink()
        for place in () if job["is_kept"] else kept.values():
            _remove(place)
        return False
    for path, place in kept.items():
        _remove(path)
        _link(place, path)
    note.rename(note.with_suffix(_TAKEN))
    return True


def put_back(results: Path) -> list[Path]:
    """Put back what is missing, with a time that has Snakemake make it again; returns what it is.

    Of jobs that took their outputs the benchmark is, too: what they took when they ran.
    """
    for note in (results / _FOLDER).glob(f"*{_TAKEN}"):
        benchmark = Path(json.loads(note.read_text(encoding="utf-8"))["benchmark"])
        with suppress(OSError):
            os.replace(_place(results, benchmark, _COPY), benchmark)
    missing = []
    for kept in sorted((results / _FOLDER).glob(f"*{_KEPT}")):
        path = results / unquote(kept.name.removesuffix(_KEPT))
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(kept, path)
        for place in (*path.rglob("*"), path):
            os.utime(place, (FORMER, FORMER))
        missing.append(path)
    shutil.rmtree(results / _FOLDER, ignore_errors=True)
    return missing


def _place(results: Path, path: Path, suffix: str) -> Path:
    name = quote(str(path.absolute().relative_to(results.absolute())), safe="")
    return results / _FOLDER / f"{name}{suffix}"


def _is_same(path: Path, sha256: str | None, file: list[int] | None) -> bool:
    """Whether a file is the very one that it was, or has the same bytes."""
    if not path.is_file():
        return False
    if file is not None and _file(path) == file:
        return True
    if sha256 is None:
        return False
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == sha256


def _file(path: Path) -> list[int]:
    """What tells a file from one that was written in its place, to which a file system may give the same inode."""
    found = path.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns]


def _file_before(path: Path, time: int) -> list[int] | None:
    """Of a file that is there and is not newer, so that it is the one that was read."""
    return _file(path) if path.is_file() and path.stat().st_mtime_ns <= time else None


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove(target)
    if path.is_dir():
        shutil.copytree(path, target, copy_function=os.link)
    else:
        os.link(path, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
