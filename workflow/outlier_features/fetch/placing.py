"""A model's directory under the resources: its files are replaced only once all new ones are ready."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from outlier_features.files.artifacts import scratch_directory
from outlier_features.model.model_files import SUFFIXES


@contextmanager
def placing(directory: Path) -> Iterator[Path]:
    """Yield an empty directory; what the block has put there takes the place of the model in `directory`."""
    with scratch_directory(directory) as made:
        yield made
        for old in directory.iterdir():
            # A tokenizer or shard of an earlier model would be read along with this one.
            if old.is_file() and old.suffix in {".py", ".safetensors", *SUFFIXES}:
                old.unlink()
        for name in files_below(made):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(made / name, directory / name)


def files_below(folder: Path) -> list[str]:
    """Paths of all files in a directory, relative to it, with `/`."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
