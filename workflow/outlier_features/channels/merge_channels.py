"""Rule merge_channels: what linear layers read, channel by channel, and which tokens a prefix should hold."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from outlier_features.channels.kept_channels import ABSENT, INPUTS, RECORDED, TOKEN_ABSMAX, KeptChannels, merged
from outlier_features.channels.prefix_schema import PREFIX_TOKENS
from outlier_features.channels.prefix_tokens import THRESHOLD, Prefix
from outlier_features.errors import DamagedFile
from outlier_features.files.artifacts import holds_sequences
from outlier_features.files.missing import require_had
from outlier_features.files.model_source import source_of
from outlier_features.files.run_files import require_whole
from outlier_features.files.tables import write_table
from outlier_features.files.tensorfile import TensorFile, TensorFileWriter
from outlier_features.populations import POPULATIONS, populations_of
from outlier_features.tokens.tokenize_corpus import special_id
from outlier_features.tokens.tokens import Tokens
from outlier_features.tokens.vocabulary import Vocabulary

Array = np.ndarray[Any, Any]
LAYERS = (
    "linear_layers"  # in a provenance: of each its name, block, site, shape, experts and what it shares its input with
)
PREFIX = "prefix"
_FORMATS = {
    "absmax": "F32",
    "min": "F32",
    "max": "F32",
    "mean": "F64",
    "mean_square": "F64",
    "count": "I64",
}
_SUFFIXES = {"all": "", "without_first": ".without_first"}
_NOT_FINITE = "it reads values that are NaN or infinite"


def merge_channels(
    chunks: Sequence[Path], tokens: Path, source: Path, channel_stats: Path, prefix_tokens: Path
) -> None:
    """Merge what the run's chunks left of the inputs of linear layers.

    chunks   files of the extraction, see `kept_channels`
    source   the model's source.json, whose tokenizer says what tokens are

    Writes `channel_stats`, tensors `{layer}.{statistic}` of `absmax`, `min`, `max` float32, `mean`, `mean_square`
    float64 (W,) and `count` int64 (1,), of population `without_first` with that suffix; of experts in one tensor
    (E, W) and (E,), NaN where an expert read nothing. Layers that read the same input have equal tensors. And
    `prefix_tokens`, see `prefix_tokens.Prefix`.

    Memory grows with an input's channels, not with layers, sequences or chunks. Raises `InputError` where the files are
    damaged or of another run, and where the channels could not be recorded.
    """
    run = Tokens.read(tokens)
    files = [file for file in map(run.files.tensors, chunks) if holds_sequences(file.provenance)]
    require_whole([(file.path, file.provenance) for file in files])
    inputs, absent = _inputs(files)
    populations = populations_of(run.parts)
    facts = {
        **files[-1].provenance, "start": 0, "populations": populations, LAYERS: list(_layers(inputs)), ABSENT: absent
    }  # fmt: skip
    del facts[INPUTS]
    _write_statistics(channel_stats, files, inputs, populations, facts)
    _write_prefix(prefix_tokens, files, inputs, run, source, facts)


def _inputs(files: Sequence[TensorFile]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The inputs of which something is known, and by name of each other layer why nothing is."""
    absent: dict[str, str] = {}
    for file in files:
        require_had(file.provenance)
        if not file.provenance[RECORDED]:
            raise DamagedFile(file.path, "records no channels, expected those of the model")
        if file.provenance[INPUTS] != files[0].provenance[INPUTS]:
            raise DamagedFile(file.path, f"names other linear layers than {files[0].path}, expected the same model's")
        absent |= file.provenance[ABSENT]
    known = []
    for one in files[0].provenance[INPUTS]:
        names = [layer["name"] for layer in one["layers"]]
        kept = merged(files, names[0], POPULATIONS["all"])
        if kept and not kept.is_finite:
            absent |= dict.fromkeys(names, _NOT_FINITE)
        if names[0] not in absent:
            known.append(one)
    return known, absent


def _layers(inputs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in inputs:
        first = one["layers"][0]["name"]
        for layer in one["layers"]:
            yield {**layer, "layer": one["layer"], "site": one["site"], "reads": first}


def _write_statistics(
    path: Path,
    files: Sequence[TensorFile],
    inputs: Sequence[Mapping[str, Any]],
    populations: Sequence[str],
    provenance: Mapping[str, Any],
) -> None:
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for one in inputs:
        for layer in one["layers"]:
            experts = (layer["experts"],) if layer["experts"] else ()
            for population in populations:
                for name, kind in _FORMATS.items():
                    shape = (experts or (1,)) if name == "count" else (*experts, layer["width"])
                    tensors[f"{layer['name']}.{name}{_SUFFIXES[population]}"] = kind, shape
    with TensorFileWriter(path, tensors, provenance) as writer:
        for one in inputs:
            first = one["layers"][0]
            for population in populations:
                kept = merged(files, first["name"], POPULATIONS[population])
                kept = kept or KeptChannels.nothing(first["experts"], first["width"])
                for name, values in _statistics(kept).items():
                    own = values if first["experts"] or name == "count" else values[0]
                    for layer in one["layers"]:
                        writer.write(f"{layer['name']}.{name}{_SUFFIXES[population]}", 0, own)


def _statistics(kept: KeptChannels) -> dict[str, Array]:
    """(E, W) each, NaN where nothing was read; of `count` (E,)."""
    count = kept.count[:, None].astype(np.float64)
    low, high = (np.where(count > 0, extreme, np.float32(np.nan)) for extreme in (kept.low, kept.high))
    with np.errstate(invalid="ignore"):
        mean, mean_square = kept.total / count, kept.squares / count
    return {
        "absmax": np.maximum(np.abs(low), np.abs(high)),
        "min": low,
        "max": high,
        "mean": mean,
        "mean_square": mean_square,
        "count": kept.count,
    }


def _write_prefix(
    path: Path,
    files: Sequence[TensorFile],
    inputs: Sequence[Mapping[str, Any]],
    run: Tokens,
    source: Path,
    provenance: Mapping[str, Any],
) -> None:
    names = {one["layer"]: f"{one['layers'][0]['name']}.{TOKEN_ABSMAX}" for one in inputs if one["site"] == "mlp_act"}
    why = (
        "the model is not causal: a prefix is what all later tokens see"
        if not provenance["causal"]
        else "no block has a dense MLP whose last linear layer is known"
        if not names
        else None
    )
    facts = {key: value for key, value in provenance.items() if key != LAYERS}
    if why:
        write_table(path, pl.DataFrame(schema=PREFIX_TOKENS.schema), PREFIX_TOKENS, facts | {PREFIX: {"absent": why}})
        return
    prefix = Prefix.of({layer: _pieces(files, name, run) for layer, name in names.items()})
    location = Path(source_of(source, weights=False)["location"])
    vocabulary = Vocabulary.read(location)
    assert vocabulary.tokenizer is not None
    found = (special_id(location, vocabulary.tokenizer, kind) for kind in ("bos", "eos"))
    frame = prefix.frame(next((one for one in found if one is not None), None))
    texts = [(vocabulary.bytes_of(one) or b"").decode(errors="replace") for one in frame["token_id"]]
    facts[PREFIX] = {
        "threshold": THRESHOLD,
        "length": prefix.length,
        "mean_counts": {str(layer): mean for layer, mean in prefix.mean_counts.items()},
        "ids": frame.filter("chosen").sort("prefix_position")["token_id"].to_list(),
    }
    write_table(path, frame.with_columns(text=pl.Series(texts, dtype=pl.String)), PREFIX_TOKENS, facts)


def _pieces(files: Sequence[TensorFile], name: str, run: Tokens) -> Iterator[tuple[Array, Array, Array]]:
    for file in files:
        rows = slice(file.provenance["start"], file.provenance["stop"])
        yield file.array(name), run.tokens[rows], run.mask[rows]
