"""A model in TransformerLens' own format from the hub: its checkpoint, and its tokenizer from another repository."""

import json
import re
import shutil
from pathlib import Path

from outlier_features.errors import InputError
from outlier_features.fetch.hub import Repo
from outlier_features.fetch.hub_model import fetch_matching

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def fetch_transformer_lens(name: str, folder: Path) -> tuple[str, str, list[str]]:
    """Put config.json, the final checkpoint and the tokenizer's files into `folder`.

    `name` is an id on the hub, or gelu-1l to gelu-4l. Returns the id, its commit, and the names of the files. Raises
    `InputError`.
    """
    repo = Repo("model", _hub_id(name), "main")
    where, commit, files = fetch_matching(repo, ("config.json", "*final.pth"))
    checkpoints = [file for file in files if file.endswith("final.pth")]
    if "config.json" not in files or len(checkpoints) != 1:
        raise InputError(
            f"transformer_lens: {repo.name} has {', '.join(files) or 'neither of them'}, expected config.json and one "
            "*final.pth"
        )
    tokenizer = _tokenizer_of(where / "config.json", repo)
    beside, _, names = fetch_matching(Repo("model", tokenizer, "main"), _TOKENIZER)
    if _TOKENIZER[0] not in names:
        raise InputError(f"transformer_lens: {tokenizer}, the tokenizer of {repo.name}, has no {_TOKENIZER[0]}")
    folder.mkdir()
    for file in files:
        shutil.copyfile(where / file, folder / Path(file).name)
    for file in names:
        shutil.copyfile(beside / file, folder / file)
    return repo.name, commit, [*(Path(file).name for file in files), *names]


def _hub_id(name: str) -> str:
    if short := re.fullmatch(r"gelu-([1-4])l", name):
        return f"NeelNanda/GELU_{short[1]}L512W_C4_Code"
    if "/" not in name:
        raise InputError(f"transformer_lens: found {name!r}, expected gelu-1l to gelu-4l or an id on the hub")
    return name


def _tokenizer_of(config: Path, repo: Repo) -> str:
    try:
        tokenizer = json.loads(config.read_text(encoding="utf-8"))["tokenizer_name"]
    except (ValueError, KeyError, TypeError):
        tokenizer = None
    if not isinstance(tokenizer, str) or not tokenizer:
        raise InputError(f"transformer_lens: config.json of {repo.name} names no tokenizer, expected tokenizer_name")
    return tokenizer
