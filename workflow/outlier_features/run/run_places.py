"""Where the runs of a configuration lie: two that differ in what their activations depend on never share a directory.

A directory of a run says in `run.json` which settings it is of, and which files belong to it. So a second sample, dtype
or source has a directory of its own, `<results>/<model>/<corpus>@<what differs>`, and that label is the name of its
corpus in all files. Rules and analyses are no such settings: they are applied to the same run again.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from outlier_features import __version__
from outlier_features.errors import InputError
from outlier_features.files.artifacts import read_json, write_json
from outlier_features.model_name import split_name
from outlier_features.run.config import source_alone

RECORD = "run.json"
_AT = "@"
Run = tuple[str, str]  # a model and its corpus, or the label of that
Settings = Mapping[str, Any]


def with_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved configuration with the label of each run, and in its catalog a corpus of each label.

    Of the same settings and the same results it is the same, whether or not the run is done. Raises `InputError` where
    the run that `run` names has other settings.
    """
    corpora, labels = {**config["catalog"]["corpora"]}, {}
    for model in config["models"]:
        for corpus in () if "dump" in config["catalog"]["models"][model] else config["corpora"]:
            settings = settings_of(config, model, corpus)
            label = _label(Path(config["results"]) / model, corpus, settings)
            labels[f"{model}/{corpus}"] = label
            corpora[label] = corpora[corpus]
    return {**config, "labels": labels, "catalog": {**config["catalog"], "corpora": corpora}}


def corpus_of(label: str) -> str:
    """The name in the catalog of the corpus that a run of this label is on, which has no `@`."""
    return label.partition(_AT)[0]


def settings_of(config: Mapping[str, Any], model: str, corpus: str) -> dict[str, Any]:
    """What the activations of a run depend on, and the name that the configuration gives it."""
    source, text = config["catalog"]["models"][model], config["catalog"]["corpora"].get(corpus_of(corpus), {})
    return {
        "run": config["run"],
        "model": source_alone(source),
        "part": source.get("part"),
        "dtype": source.get("dtype", config["extract"]["dtype"]),
        "corpus": {key: value for key, value in text.items() if key != "sample"},
        "sample": text.get("sample"),
    }


def write_record(config: Mapping[str, Any], run: Run, files: Mapping[str, str], record: str) -> None:
    """Say in the directory of a run which settings it is of.

    files    that belong to it, by name, as paths below the directory of results
    record   of the fetch of its model
    """
    results = Path(config["results"])
    content = {
        "settings": settings_of(config, *run),
        "files": {name: str(Path(path).relative_to(results)) for name, path in files.items()},
        "model_source": record,
        "package_version": __version__,
    }
    path = results.joinpath(*run, RECORD)
    if _read(path) != content:
        write_json(path, content)


def earlier_runs(results: Path, but_for: frozenset[Run]) -> dict[Run, dict[str, Any]]:
    """Other runs that lie whole in a directory of results: the files of each by name, and its model's `model_source`.

    Those of another version of this program are left out: it may not read their tables.
    """
    found = {}
    for path in sorted(results.glob(f"*/*/{RECORD}")):
        run = (path.parent.parent.name, path.parent.name)
        if run not in but_for and (record := _read(path)) and record["package_version"] == __version__:
            files = {name: str(results / file) for name, file in record["files"].items()}
            source = [record["model_source"]] if split_name(run[0])[1] else []  # which a comparison of revisions reads
            if all(Path(file).exists() for file in (*files.values(), *source)):
                found[run] = {"files": files, "model_source": record["model_source"]}
    return found


def _label(folder: Path, corpus: str, settings: Settings) -> str:
    """The label of a run whose model's runs lie in `folder`."""
    if settings["run"]:
        label = f"{corpus}{_AT}{settings['run']}"
        if _is_held(folder / label, settings):
            words = ", ".join(_difference(_read(folder / label / RECORD)["settings"], settings))
            raise InputError(
                f"config: run is {settings['run']!r}, but the run in {folder / label} has other settings ({words}), "
                "expected another name"
            )
        return label
    for place in sorted(folder.glob(f"{corpus}{_AT}*/{RECORD}")):
        if _read(place).get("settings") == settings:
            return place.parent.name
    plain = folder / corpus
    if not _is_held(plain, settings):
        return corpus
    words = "-".join(_difference(settings, _read(plain / RECORD)["settings"]))
    labels = (f"{corpus}{_AT}{words}", f"{corpus}{_AT}{words}-{_digest(settings)}")
    return next(label for label in labels if not _is_held(folder / label, settings))


def _is_held(place: Path, settings: Settings) -> bool:
    """Whether something of a run of other settings lies in a directory."""
    record = _read(place / RECORD)
    return bool(record) and record["settings"] != settings and any(_made(place))


def _made(place: Path) -> Iterator[Path]:
    return (path for path in place.iterdir() if path.is_file() and path.name[0] != "." and path.name != RECORD)


def _read(path: Path) -> dict[str, Any]:
    """A record; empty where there is none."""
    return dict(read_json(path, "settings", "files", "package_version")) if path.is_file() else {}


def _difference(one: Settings, other: Settings) -> list[str]:
    """What of `one` differs from `other`, in short words."""
    sample, before = one["sample"], other["sample"]
    words = []
    if (sample["sequences"], sample["tokens"]) != (before["sequences"], before["tokens"]):
        words.append(f"{sample['sequences']}x{sample['tokens']}")
    words += [sample["pack"]] if sample["pack"] != before["pack"] else []
    words += [f"bos-{sample['bos']}"] if sample["bos"] != before["bos"] else []
    words += [one["dtype"]] if one["dtype"] != other["dtype"] else []
    same = all(one[key] == other[key] for key in ("model", "part", "corpus"))
    return words if same and words else [*words, _digest(one)]


def _digest(settings: Settings) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
