"""Where a model's config is, before the model is fetched."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outlier_features.errors import InputError
from outlier_features.files.model_source import SOURCE_FILE, record_of
from outlier_features.run.config import fetched_name

CONFIG = "config.json"


@dataclass(frozen=True)
class FoundConfig:
    """The directory with a model's config.json, what it was taken from, and bytes of its weights' files, if known."""

    folder: Path
    origin: str
    bytes_of_files: int | None


def find_config(name: str, source: Mapping[str, Any], resources: Path) -> FoundConfig:
    """Of a model that is fetched, lies on this machine, or is on the hub, of which no other file is fetched.

    Raises `InputError` with the reason where it is not known before the model is fetched.
    """
    record = resources / "models" / fetched_name(name, source) / SOURCE_FILE
    if record.is_file():
        content = record_of(record, "location", "files")
        folder = (record.parent / content["location"]).resolve()
        if (folder / CONFIG).is_file():
            sizes = [file["bytes"] for name, file in content["files"].items() if name.endswith(".safetensors")]
            return FoundConfig(folder, "fetched", sum(sizes) if sizes else None)
    if "pypi" in source:
        raise InputError("not known before it is fetched: its config is in a wheel")
    if str(source.get("path", "")).endswith(".gguf"):
        raise InputError("not known before it is fetched: its config is made from the GGUF file")
    if "hub" in source:
        return _on_hub(source)
    folder = Path(source["path"])
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} has no {CONFIG}")
    files = [*folder.glob("*.safetensors")] or [*folder.glob("*.bin")]
    return FoundConfig(folder, "directory", sum(file.stat().st_size for file in files) or None)


def _on_hub(source: Mapping[str, Any]) -> FoundConfig:
    from huggingface_hub import HfApi, hf_hub_download

    from outlier_features.fetch.hub import ANSWER_SECONDS, Repo, resolve, talking_to_hub, within

    repo = Repo("model", source["hub"], source.get("revision", "main"))
    commit, _ = resolve(repo)
    with talking_to_hub(repo):
        listed = within(ANSWER_SECONDS, lambda: list(HfApi().list_repo_tree(repo.name, revision=commit)))
        file = Path(hf_hub_download(repo.name, CONFIG, revision=commit))
    suffix = ".bin" if source.get("weights") == "bin" else ".safetensors"
    sizes = [int(getattr(one, "size", 0)) for one in listed if one.path.endswith(suffix)]
    if "auto_map" in json.loads(file.read_text(encoding="utf-8")) and source.get("trust_remote_code"):
        raise InputError("not known before it is fetched: it is made by Python code of its own")
    return FoundConfig(file.parent, "hub", sum(sizes) or None)
