"""Weights that were evicted, fetched again: `python -m outlier_features.fetch.restore_weights source.json`."""

import fcntl
import os
import shutil
import sys
from pathlib import Path

from outlier_features.errors import InputError
from outlier_features.fetch.fetch_model import fetch_model
from outlier_features.files.artifacts import read_json
from outlier_features.files.model_source import (
    EVICTED_FILE,
    SOURCE_FILE,
    evicted_files,
    location_of,
    locked,
    record_of,
)
from outlier_features.stage_log import say

_AGAIN = "again"  # the folder for what is not whole yet; it is kept where a fetch breaks off, for the next to go on


def restore_weights(source_json: Path) -> None:
    """Fetch the weights of a model again that `evict_weights` removed; with no request where they are there.

    They must be those that the record describes, byte by byte. Raises `InputError`.
    """
    with locked(source_json, fcntl.LOCK_EX):
        names = evicted_files(source_json)
        if not names:
            return  # another job was quicker
        note, again = source_json.with_name(EVICTED_FILE), source_json.parent / _AGAIN
        say(f"the weights of {source_json.parent} were evicted, and are fetched again")
        fetch_model(read_json(note, "source")["source"], again, evict=True)
        expected = record_of(source_json, "files")["files"]
        found = record_of(again / SOURCE_FILE, "files")["files"]
        for name in names:
            if found.get(name) != expected[name]:
                raise InputError(
                    f"{source_json}: found {name} with SHA-256 {found.get(name, {}).get('sha256')} when it was fetched "
                    f"again, expected {expected[name]['sha256']}; delete this file to take what there is now"
                )
        place, fetched = location_of(source_json), location_of(again / SOURCE_FILE)
        for name in names:
            if fetched.is_relative_to(again.resolve()):
                os.replace(fetched / name, place / name)
            else:
                (place / name).symlink_to(fetched / name)  # of the cache, which has it by now
        note.unlink()
        shutil.rmtree(again)


def _main() -> int:
    try:
        restore_weights(Path(sys.argv[1]))
    except InputError as error:
        print(error)  # for the job that waits
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
