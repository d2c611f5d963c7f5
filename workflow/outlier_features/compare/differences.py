"""In which settings runs differ: what two numbers of one name may come from."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from outlier_features.model_name import AT
from outlier_features.rules.kinds import rules_of
from outlier_features.wording import listing

Part = Mapping[str, Any]

# By what a reader calls it, where summary.json has it.
_FACTS = {
    "model": ("model", "name"),
    "weights": ("model", "origin"),
    "revision": ("model", "revision"),
    "architecture": ("model", "architecture"),
    "parameters": ("model", "parameters"),
    "blocks": ("model", "blocks"),
    "d_model": ("model", "d_model"),
    "vocabulary": ("model", "vocab_size"),
    "corpus": ("corpus", "name"),
    "text": ("corpus", "sha256"),
    "sequences": ("corpus", "sequences"),
    "tokens a sequence": ("corpus", "sample", "tokens"),
    "packing": ("corpus", "sample", "pack"),
    "first token": ("corpus", "sample", "bos"),
    "dtype": ("run", "dtype"),
    "quantized": ("run", "quantized", "format"),
    "attention": ("run", "attention"),
    "device": ("run", "device"),
    "placement": ("run", "placement"),
    "version": ("run", "package_version"),
    "torch": ("run", "torch"),
    "transformers": ("run", "transformers"),
}


def differences(summaries: Sequence[Part]) -> pl.DataFrame:
    """A row for each run, a column of text for each setting that is not the same in all; the first is `run`.

    summaries   summary.json of each
    """
    found = [_settings(summary) for summary in summaries]
    names = dict.fromkeys(name for settings in found for name in settings)
    apart = [name for name in names if len({settings.get(name) for settings in found}) > 1]
    runs = [f"{summary['model']['name']}/{summary['corpus']['name']}" for summary in summaries]
    columns = {"run": runs, **{name: [settings.get(name) for settings in found] for name in apart}}
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


def _settings(summary: Part) -> dict[str, str | None]:
    found = {name: _text(_at(summary, path)) for name, path in _FACTS.items()}
    found["corpus"] = str(found["corpus"]).partition(AT)[
        0
    ]  # what its label says beside the name stands in settings of its own
    found["sites"] = listing(summary["sites"]["present"])
    return found | {f"rule {name}": rule.criteria() for name, rule in rules_of(summary["rules"]).items()}


def _at(summary: Part, path: Sequence[str]) -> Any:
    value: Any = summary
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None if value is None else str(value)
