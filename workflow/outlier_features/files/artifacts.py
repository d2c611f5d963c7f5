"""Files that a stage leaves: written whole or not at all, carrying their provenance."""

import glob
import json
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlier_features.errors import DamagedFile
from outlier_features.files.seal import BLANK, MARK, require_seal, sealed

PROVENANCE = "provenance"
SAME_RUN = ("model", "model_revision", "corpus", "corpus_sha256", "tokens_sha256", "dtype", "sites", "floors",
            "rules")  # fmt: skip
HOST = re.sub("[^A-Za-z0-9_-]", "_", platform.node().split(".")[0]) or "host"
_UNFINISHED = re.compile(r"\.(?P<name>.+)\.(?P<host>[A-Za-z0-9_-]+)-(?P<process>\d+)-[0-9a-f]{8}\.tmp")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it is renamed to `path`, on failure it is removed.

    Snakemake writes outputs in place and an orphaned job goes on writing, so a half-written file must never bear the
    final name. What killed processes left of the same file is removed first.
    """
    path = Path(path)
    temporary = _temporary_name(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty directory beside `path` for what is not ready yet; it is removed at the end."""
    temporary = _temporary_name(Path(path))
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary)


@contextmanager
def replacing_directory(path: str | Path) -> Iterator[Path]:
    """`replacing` for a directory: yield an empty one beside `path`, which on success takes the place of `path`."""
    with scratch_directory(path) as temporary:
        made = temporary / "made"
        made.mkdir()
        yield made
        if Path(path).exists():
            os.replace(path, temporary / "former")
        os.replace(made, path)


def _temporary_name(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in unfinished(path.parent.glob(f".{glob.escape(path.name)}.*.tmp")):
        if left.is_abandoned:
            left.remove()
    return path.with_name(f".{path.name}.{HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")


@dataclass(frozen=True)
class Unfinished:
    """A temporary file or directory of `replacing` or `scratch_directory`, and the process that made it."""

    path: Path
    host: str
    process: int

    @property
    def is_abandoned(self) -> bool:
        """Whether its process is gone for certain; of another host's nothing is known here."""
        if self.host != HOST:
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    @property
    def size(self) -> int:
        files = [self.path, *self.path.rglob("*")] if self.path.is_dir() else [self.path]
        return sum(file.stat().st_size for file in files if file.is_file())

    def remove(self) -> None:
        if self.path.is_dir():
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            self.path.unlink(missing_ok=True)


def unfinished(paths: Iterator[Path]) -> list[Unfinished]:
    """Those of `paths` whose names are temporary ones."""
    found = [(path, _UNFINISHED.fullmatch(path.name)) for path in paths]
    return [Unfinished(path, match["host"], int(match["process"])) for path, match in found if match]


def write_json(path: str | Path, content: Any) -> None:
    """Write `content`; if it has keys, with a seal over it and the file's name, by which `read_json` knows damage."""
    has_keys = isinstance(content, Mapping)
    text = json.dumps({**content, MARK: BLANK} if has_keys else content, indent=2, ensure_ascii=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_bytes(sealed(text.encode(), _sealed_name(path)) if has_keys else text.encode())


def read_json(path: str | Path, *keys: str) -> Any:
    """The content of a JSON file; of one that `write_json` wrote, checked against its seal and without it.

    Raises `InputError` where the file is damaged or lacks one of `keys`.
    """
    try:
        text = Path(path).read_bytes()
        content = json.loads(text)
        if isinstance(content, dict) and MARK in content:
            require_seal(text, _sealed_name(path))
            del content[MARK]
    except (OSError, ValueError) as error:
        raise DamagedFile(path, f"expected a JSON file, found {type(error).__name__}: {error}") from error
    if keys and not (isinstance(content, dict) and set(keys) <= content.keys()):
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise DamagedFile(path, f"expected the keys {', '.join(keys)}, found {found}")
    return content


def _sealed_name(path: str | Path) -> str:
    """The last three names of the path, as in `models/mine/source.json`."""
    return "/".join(Path(path).absolute().parts[-3:])


def write_page(path: str | Path, html: str) -> None:
    """Write an HTML page, with a seal over it in a comment at its end."""
    with replacing(path) as temporary:
        temporary.write_bytes(sealed_page(html))


def sealed_page(html: str) -> bytes:
    return sealed(f"{html}<!-- {MARK} {BLANK} -->\n".encode())


def sealed_script(script: str) -> bytes:
    """A script, with a seal over it in a comment at its end."""
    return sealed(f"{script}// {MARK} {BLANK}\n".encode())


def require_page(path: str | Path) -> None:
    """Raise `InputError` where a page or script is not as it was sealed."""
    try:
        require_seal(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedFile(path, f"expected a page, found {error}") from error


class Provenance(dict[str, Any]):
    """What the file `path` says of its origin; a key that is asked for and is not there is that file's fault."""

    def __init__(self, path: str | Path, text: str):
        super().__init__(json.loads(text))
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise DamagedFile(self.path, f"its {PROVENANCE} names no {key}, it is not the file that was expected")


def require_equal(
    expected: Mapping[str, Any], found: Mapping[str, Any], keys: tuple[str, ...], path: str | Path
) -> None:
    """Raise `InputError` where the provenance `found` in the file `path` contradicts `expected` in one of `keys`.

    Where that is another file's provenance, the two are named: either may be the one that does not belong.
    """
    for key in keys:
        if expected.get(key) != found.get(key):
            where, which = (
                (f" as in {expected.path}", "one of them") if isinstance(expected, Provenance) else ("", "it")
            )
            wanted = f"expected {expected.get(key)!r}{where}"
            raise DamagedFile(path, f"its {key} is {found.get(key)!r}, {wanted}; {which} belongs to another run")


def require_sequences(found: Mapping[str, Any], path: str | Path) -> None:
    """Raise `InputError` where a chunk's file, which is named `first-last` sequence, holds others.

    Of a run with fewer sequences than were asked for, the last chunk has only some of those, and those after it none.
    """
    match = re.fullmatch(r"(\d+)-(\d+)", Path(path).stem)
    if match:
        first, last = int(match[1]), int(match[2])
        sequences = found.get("sequences", last + 1)
        expected = {"start": min(first, sequences), "stop": min(last + 1, sequences)}
        require_equal(expected, found, ("start", "stop"), path)


def holds_sequences(found: Mapping[str, Any]) -> bool:
    """Whether a chunk has any; a file of one that has none names no facts of the model."""
    return bool(found["start"] < found["stop"])
