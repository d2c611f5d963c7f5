"""Rule export_quantization: what a run knows of its model's linear layers, in the files that quantizers read."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from transformers import AutoConfig

from outlier_features import __version__
from outlier_features.channels.merge_channels import PREFIX
from outlier_features.channels.prefix_schema import PREFIX_TOKENS
from outlier_features.files.artifacts import write_json
from outlier_features.files.foreign_files import write_yaml
from outlier_features.files.missing import MISSING, Missing
from outlier_features.files.run_files import RunFiles
from outlier_features.norms.norms_schema import NORMS
from outlier_features.quantize.bitsandbytes_config import write_bitsandbytes
from outlier_features.quantize.gguf_names import gguf_names
from outlier_features.quantize.imatrix import write_imatrix
from outlier_features.quantize.kept_modules import kept_modules
from outlier_features.quantize.llmcompressor_recipe import recipe
from outlier_features.quantize.measured_layers import MeasuredLayers
from outlier_features.quantize.smoothquant_scales import write_scales
from outlier_features.stage_log import say
from outlier_features.tokens.tokens import Tokens

_FACTS = ("model", "model_revision", "corpus", "corpus_sha256", "tokens_sha256", "sample", "dtype")


def export_quantization(
    source: Path,
    tokens: Path,
    channel_stats: Path,
    tables: Mapping[str, Path],
    *,
    scales: Path,
    imatrix: Path,
    llmcompressor: Path,
    bitsandbytes: Path,
    prefix: Path,
    scheme: str,
) -> None:
    """Write the five files, each with the run that it comes from.

    tables   by name those that the run has of `norms`, `prefix_tokens`, `quantization`, `quantization_sensitivity`
    scheme   by which errors and losses tell which layers to leave in 16 bits

    Raises `InputError` where the files are of another run, or it has no statistics of linear layers.
    """
    run = Tokens.read(tokens)
    measured = MeasuredLayers(run.files.tensors(channel_stats))
    record = run.files.model(source, weights=False)
    config = AutoConfig.from_pretrained(record["location"], trust_remote_code=record["trust_remote_code"])
    facts = {key: measured.provenance[key] for key in _FACTS}
    facts |= {"rule": "export_quantization", "package_version": __version__}

    write_scales(scales, measured, facts)
    tied = bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
    names = gguf_names(measured.layers, config.to_dict(), tied=tied)
    left_out = _by_reason({**measured.absent, **names.left_out})
    for reason, layers in left_out.items():
        say(f"{imatrix.name} has nothing of {', '.join(layers)}: {reason}")
    write_imatrix(imatrix, measured, names, run.tokens.shape[1], {**facts, "left_out": left_out})

    kept = kept_modules(run.files, tables.get("quantization_sensitivity"), tables.get("quantization"), scheme)
    facts_of_kept = {**facts, "scheme": scheme, "kept": kept.modules, "kept_why": kept.why}
    content, said = recipe(measured, _rows(run.files, tables.get("norms")), kept.modules, scheme)
    said.append(kept.why)
    for sentence in said:
        say(f"{llmcompressor.name}: {sentence}")
    write_yaml(llmcompressor, content, said, facts_of_kept)
    write_bitsandbytes(bitsandbytes, [*measured.head, *kept.modules], facts_of_kept)
    write_json(prefix, {**_prefix(run.files, tables.get("prefix_tokens")), **facts})


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        found[reason].append(name)
    return dict(found)


def _rows(files: RunFiles, norms: Path | None) -> pl.DataFrame | None:
    rows, provenance = files.table(norms, NORMS) if norms else (None, {})
    return None if MISSING in provenance else rows


def _prefix(files: RunFiles, table: Path | None) -> dict[str, Any]:
    """Token ids that hold the massive activations where they stand first, by the key of PrefixQuant's configuration.

    `prefixed_tokens` in prefixequant_config.json, main.py of https://github.com/ChenMnZ/PrefixQuant.
    """
    rows, provenance = files.table(table, PREFIX_TOKENS) if table else (pl.DataFrame(), {})
    absent = provenance.get(PREFIX, {}).get(
        "absent", "the run has no table of prefix tokens" if table is None else None
    )
    if MISSING in provenance:
        absent = Missing(**provenance[MISSING]).sentence
    if absent is not None:
        return {"prefixed_tokens": None, "texts": None, "absent": absent}
    chosen = rows.filter("chosen").sort("prefix_position")
    found = {"prefixed_tokens": chosen["token_id"].to_list(), "texts": chosen["text"].to_list()}
    return found if len(chosen) else {**found, "absent": "behind first positions no token is an outlier token"}
