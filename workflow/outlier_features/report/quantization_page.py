"""What the report's chapter on quantization has beside its figures: linear layers in a table, and files to take."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl

from outlier_features.files.artifacts import read_json
from outlier_features.files.foreign_files import foreign_provenance
from outlier_features.files.quantization_columns import EXACT_DIMS, EXACT_RANDOM, NONE
from outlier_features.files.tensorfile import TensorFile
from outlier_features.quantize.remedy_errors import TOLD, measured, remedy_errors, whole
from outlier_features.report.page_data import packed
from outlier_features.summary.quantization_facts import ALL, first_scheme, quantization_sentence
from outlier_features.summary.quantization_loss_facts import loss_sentence
from outlier_features.summary.report_run import Run

FOLDER = "quantization"


@dataclass(frozen=True)
class FileForQuantizers:
    """A file of a run that some other program reads; `path` is seen from the report's directory.

    what   it holds
    use    the lines that use it, in the directory of the run; nothing where there is nothing to use
    """

    name: str
    what: str
    use: str
    path: str = ""


# Each as docs/quantizers.md explains it.
FILES = (
    FileForQuantizers(
        "smoothquant_scales.safetensors",
        "SmoothQuant: the largest |x| of each input channel, by module.",
        "from safetensors.torch import load_file\n"
        "from smoothquant.smooth import smooth_lm\n"
        'smooth_lm(model, load_file("quantization/smoothquant_scales.safetensors"), 0.5)',
    ),
    FileForQuantizers(
        "imatrix.gguf",
        "llama.cpp: sums of squares of each input channel, by tensor.",
        "llama-quantize --imatrix quantization/imatrix.gguf model-f16.gguf model-q4_k_m.gguf Q4_K_M",
    ),
    FileForQuantizers(
        "llmcompressor_recipe.yaml",
        "llm-compressor and vLLM: which layers are smoothed into which norm, what is quantized, what is left.",
        "from llmcompressor import oneshot\n"
        'recipe = "quantization/llmcompressor_recipe.yaml"\n'
        "oneshot(model=model, processor=tokenizer, recipe=recipe, dataset=dataset)",
    ),
    FileForQuantizers(
        "bitsandbytes.json",
        "transformers with bitsandbytes: modules to skip, and the threshold.",
        "import json\n"
        "from transformers import AutoModelForCausalLM, BitsAndBytesConfig\n"
        'config = BitsAndBytesConfig(**json.load(open("quantization/bitsandbytes.json")))\n'
        "model = AutoModelForCausalLM.from_pretrained(name, quantization_config=config)",
    ),
    FileForQuantizers(
        "prefix.json",
        "PrefixQuant, or any server with a prefix cache: token ids that take the massive activations upon themselves.",
        'prefix = json.load(open("quantization/prefix.json"))["prefixed_tokens"]\n'
        "cache = model(torch.tensor([prefix]), use_cache=True).past_key_values\n"
        "output = model(ids, past_key_values=cache)",
    ),
)


def quantization_part(run: Run, directory: Path, report: Path) -> dict[str, Any] | None:
    """What the templates show of a run's quantization; None where it has none.

    directory   of the run, in which the files for quantizers are looked for

    Raises `InputError` where one of these is damaged or of another run.
    """
    results: Mapping[str, Any] = run.summary.get("quantization") or {}
    sentence = quantization_sentence(results) if results else ""
    whole = run.summary.get("quantization_losses")
    files = [] if "channels" in run.summary["missing"] else [*_files(run, directory, report)]
    if not sentence and not files and not whole:
        return None
    return {
        "sentence": (loss_sentence(whole) if whole else "") or sentence,
        "scheme": first_scheme(results) if sentence else "",
        "of_outputs": bool(sentence) and results["of_outputs"],
        "layers": results["modules"] if sentence else 0,
        "files": files,
        "contents": [
            *([("linear-layers", "Linear layers, one by one")] if sentence else []),
            *([("quantizer-files", "Files to take along")] if files else []),
        ],
    }


def _files(run: Run, directory: Path, report: Path) -> Iterator[FileForQuantizers]:
    has_loss = run.summary["missing"].get("loss", {}).get("cause") != "model"
    for file in FILES:
        path = directory / FOLDER / file.name
        if path.exists():
            facts = _provenance(path)
            run.tokens.files.require(facts, path)
            beside = quote(str(path.relative_to(report.parent)))
            what, use = file.what, file.use
            if facts.get("absent"):
                what, use = f"{what.partition(':')[0]}: none, {facts['absent']}.", ""
            elif not has_loss:
                use = use.replace("AutoModelForCausalLM", "AutoModel")
            yield replace(file, what=what, use=use, path=beside)


def _provenance(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        return TensorFile(path).provenance
    found: Mapping[str, Any] = read_json(path) if path.suffix == ".json" else foreign_provenance(path)
    return found


def packed_layers(quantization: pl.DataFrame, scheme: str) -> str:
    """The rows of `linear_layers`, for the page."""
    return packed(linear_layers(quantization, scheme), _columns(scheme))


def linear_layers(quantization: pl.DataFrame, scheme: str) -> pl.DataFrame:
    """Over all tokens, with as much rounded as can be, a row for each linear layer: `layer`, `site`, `module`, the
    error by each scheme, `best_remedy` under `scheme`, what it leaves of the error (`left`), and what the best draw
    of as many random dims as are selected does (`left_random`)."""
    rows = whole(measured(quantization.filter(population=ALL)))
    wide = rows.filter(remedy=NONE).pivot(
        "scheme", index=["layer", "site", "module"], values="error", maintain_order=True
    )
    left = remedy_errors(rows.filter(scheme=scheme)).drop_nulls("left")
    random = left.filter(told=EXACT_RANDOM).group_by("module").agg(left_random=pl.col("left").min())
    tried = left.filter(~pl.col("told").is_in([NONE, EXACT_RANDOM])).join(random, on="module", how="left")
    # Selected dims count where they leave less than every draw of random ones.
    tried = tried.filter((pl.col("told") != EXACT_DIMS) | (pl.col("left") < pl.col("left_random")))
    best = tried.filter(pl.col("left") < 1).sort("left", maintain_order=True).unique("module", keep="first")
    best = best.select("module", "left", best_remedy=pl.col("told").replace_strict(TOLD, return_dtype=pl.String))
    found = wide.join(best, on="module", how="left", maintain_order="left").join(
        random, on="module", how="left", maintain_order="left"
    )
    return found.select(*wide.columns, "best_remedy", "left", "left_random")


def _columns(scheme: str) -> Mapping[str, Mapping[str, Any]]:
    return {
        "best_remedy": {"title": "best remedy", "meaning": f"of those tried under {scheme} the one that leaves least"},
        "left": {"title": "leaves", "meaning": "of the output error without a remedy", "unit": "share"},
        "left_random": {
            "title": "random dims leave",
            "meaning": "of it, with as many random dims exact as are selected: the least of all draws",
            "unit": "share",
        },
    }
