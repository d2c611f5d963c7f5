"""A model from the hub, in the hub library's ordinary cache or in a directory of its own."""

import glob
import shutil
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, get_cached_repo_tree, hf_hub_download, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError, LocalEntryNotFoundError

from outlier_features.errors import InputError
from outlier_features.fetch.card import README, terms_among
from outlier_features.fetch.hub import ANSWER_SECONDS, Repo, Unreachable, resolve, talking_to_hub, within
from outlier_features.model.model_files import Format, model_files, require_inside


def fetch_snapshot(
    repo: Repo, trust_remote_code: bool = False, weights: Format = "safetensors", own: Path | None = None
) -> tuple[Path, str, list[str]]:
    """The snapshot's directory, its commit, and the names of the model's files in it.

    own   where the files are put, in a directory named by the commit, if they are not in the cache; None: in the cache

    A full commit whose files are all in the cache is taken from there with no request. Files that an interrupted
    fetch had completed are not fetched again. Raises `InputError`.
    """
    cached = _cached(repo, trust_remote_code, weights, need_listing=True)
    if cached:
        return cached
    try:
        commit, names = _listing(repo)
    except Unreachable:
        cached = _cached(repo, trust_remote_code, weights, need_listing=False)
        if cached:
            return cached
        raise
    if own and (cached := _cached(replace(repo, revision=commit), trust_remote_code, weights, need_listing=True)):
        return cached
    place = own and _only(own, commit)
    with talking_to_hub(repo):

        def read_text(name: str) -> str:
            file = hf_hub_download(repo.name, name, revision=commit, local_dir=place)
            return Path(file).read_text(encoding="utf-8")

        files = model_files(names, read_text, _where(repo), trust_remote_code, weights)
        wanted = [glob.escape(name) for name in (*files, README, *terms_among(names))]
        folder = snapshot_download(repo.name, revision=commit, allow_patterns=wanted, local_dir=place, max_workers=1)
    return place or Path(folder), commit, files


def fetch_files(repo: Repo, wanted: Sequence[str], own: Path | None = None) -> tuple[list[Path], Path, str]:
    """Files of a repository, the directory that they lie in with its card and terms, and the commit.

    own   as for `fetch_snapshot`

    A full commit's files that are in the cache are taken from there with no request. Raises `InputError`.
    """
    if repo.is_pinned:
        try:
            files = [hf_hub_download(repo.name, name, revision=repo.revision, local_files_only=True) for name in wanted]
            return [Path(file) for file in files], _snapshot_of(files[0], wanted[0]), repo.revision
        except (LocalEntryNotFoundError, HFValidationError):
            pass
    commit, names = _listing(repo)
    for name in wanted:
        if name not in names:
            alike = [other for other in names if PurePosixPath(other).suffix == PurePosixPath(name).suffix]
            found = ", ".join(alike[:20]) or "none of its kind"
            raise InputError(f"path: {name!r} was not found, {_where(repo)} has {found}")
    place = own and _only(own, commit)
    with talking_to_hub(repo):
        for name in {README, *terms_among(names)} & {*names}:
            hf_hub_download(repo.name, name, revision=commit, local_dir=place)
        files = [hf_hub_download(repo.name, name, revision=commit, local_dir=place) for name in wanted]
    folder = place or _snapshot_of(files[0], wanted[0])
    return [folder / name for name in wanted], folder, commit


def _only(own: Path, commit: str) -> Path:
    """The directory of a commit, after those of others are removed."""
    for other in own.glob("*"):
        if other.name != commit:
            shutil.rmtree(other)
    return own / commit


def _snapshot_of(file: str, name: str) -> Path:
    return Path(file.removesuffix(name))


def fetch_matching(repo: Repo, patterns: Sequence[str]) -> tuple[Path, str, list[str]]:
    """The snapshot's directory, its commit, and the names of the files at its top that match one of `patterns`.

    Raises `InputError`.
    """
    commit, names = _listing(repo)
    wanted = [name for name in names if "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)]
    require_inside(wanted, _where(repo))
    with talking_to_hub(repo):
        patterns = [glob.escape(name) for name in wanted]
        folder = snapshot_download(repo.name, revision=commit, allow_patterns=patterns, max_workers=1)
    return Path(folder), commit, wanted


def _listing(repo: Repo) -> tuple[str, list[str]]:
    """The commit and all names in it; the names that come with the commit are cut short for a large repository."""
    commit, _ = resolve(repo)
    with talking_to_hub(repo):
        return commit, within(ANSWER_SECONDS, lambda: HfApi().list_repo_files(repo.name, revision=commit))


def _cached(
    repo: Repo, trust_remote_code: bool, weights: Format, need_listing: bool
) -> tuple[Path, str, list[str]] | None:
    """What the cache has of a full commit, if that is the whole model.

    Older versions of the hub library keep no listing of the repository; then nobody can tell whether, say, the
    tokenizer is missing, and what is there is good enough only where the hub is out of reach.
    """
    if not repo.is_pinned:
        return None
    try:
        folder = Path(
            snapshot_download(repo.name, revision=repo.revision, allow_patterns="config.json", local_files_only=True)
        )
        names = [file.path for file in get_cached_repo_tree(repo.name, revision=repo.revision)]
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    except CachedRepoTreeNotFoundError:
        if need_listing:
            return None
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        files = model_files(
            names, lambda name: (folder / name).read_text(encoding="utf-8"), _where(repo), trust_remote_code, weights
        )
    except FileNotFoundError:
        return None
    except InputError:
        if need_listing:
            raise
        return None  # not what the model lacks, but what the cache does
    return (folder, repo.revision, files) if all((folder / name).is_file() for name in files) else None


def _where(repo: Repo) -> str:
    return f"hub: model {repo.name!r} at revision {repo.revision!r}"
