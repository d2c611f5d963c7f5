"""What a run had before, kept until its successor is whole.

Snakemake removes the outputs of a job before it runs, and again where it fails. So a run first links those that are
there into a hidden directory of the results, which costs no space while both are the same file; what is missing at the
end of the run is put back. What a killed run left there waits for the end of the next one.
"""

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

_FOLDER, _SUFFIX = ".former", ".kept"  # no suffix of an artifact
# Older than any input, so that Snakemake makes the file again; a .zip has no dates before 1980.
FORMER = 315_619_200


def keep_outputs(results: Path, outputs: Iterable[Path]) -> None:
    """Link those of `outputs`, files and directories in `results`, that are there."""
    for path in outputs:
        if not path.exists():
            continue
        kept = results / _FOLDER / (quote(str(path.relative_to(results)), safe="") + _SUFFIX)
        with suppress(OSError):  # where files cannot be linked, they are lost as ever
            kept.parent.mkdir(parents=True, exist_ok=True)
            _remove(kept)
            if path.is_dir():
                shutil.copytree(path, kept, copy_function=os.link)
            else:
                os.link(path, kept)


def put_back(results: Path) -> list[Path]:
    """Put back what is missing, with a time that has Snakemake make it again; returns what it is."""
    missing = []
    for kept in sorted((results / _FOLDER).glob(f"*{_SUFFIX}")):
        path = results / unquote(kept.name.removesuffix(_SUFFIX))
        if path.exists():
            _remove(kept)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(kept, path)
        for place in (*path.rglob("*"), path):
            os.utime(place, (FORMER, FORMER))
        missing.append(path)
    shutil.rmtree(results / _FOLDER, ignore_errors=True)
    return missing


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
