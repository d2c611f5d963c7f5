"""The command `outlier-features attention`: heatmaps of one layer's attention, from a model, a run or a dump."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outlier_features.errors import InputError
from outlier_features.files.artifacts import replacing
from outlier_features.files.model_source import SOURCE_FILE, source_of
from outlier_features.files.numpy_archive import open_tensors

if TYPE_CHECKING:
    from outlier_features.attention.attention_sources import Array, KvHeads, Shown
    from outlier_features.figures.attention_heatmaps import Panel

DESCRIPTION = """\
Draw one layer's attention as heatmaps, the average over heads and single heads, from one of
  --model M --text "..."   a model, run with eager attention on texts of your own
  --model M --run DIR      a model, run on the tokens of a run (DIR is <results>/<model>/<corpus>)
  --run DIR                the patterns that the run kept
  --input F --patterns K   a dump that holds patterns: K (N, L, heads, T, T) or K.0, K.1, ... (N, heads, T, T);
                           one key more than there are queries is a learned sink
  --input F --attn-norm K  a dump that holds the input of the Q and K projections: K (N, L, T, H) or K.0, K.1, ...
                           (N, T, H), with the weights, and with everything that the weights do not say
"""
_CAPTION = (
    "Probability that each query (row) gives each key (column); colours go by its square root. White is exactly 0."
)
_PROJECTION = "with --attn-norm"
_REQUIRED = ("q", "k", "n_heads", "n_kv_heads", "scale")
_OPTIONAL = ("weights", "q_bias", "k_bias", "q_norm", "k_norm", "norm_eps", "head_groups", "sinks")


def add_attention(attention: argparse.ArgumentParser) -> None:
    attention.description, attention.formatter_class = DESCRIPTION, argparse.RawDescriptionHelpFormatter
    attention.set_defaults(run=_attention)
    _add_sources(attention)
    _add_projections(attention.add_argument_group(f"{_PROJECTION}: what makes the pattern; nothing is guessed"))
    add = attention.add_argument
    add("--layer", type=_index, required=True, metavar="L", help="the layer (block), from 0")
    chosen = attention.add_mutually_exclusive_group()
    chosen.add_argument("--n-sequences", type=_number, default=2, metavar="N", help="first N sequences (default: 2)")
    chosen.add_argument("--sequences", type=_indices, metavar="0,5", help="these sequences, from 0")
    add("--heads", type=_indices, metavar="0,4", help="these heads, from 0, beside the average (default: none)")
    add("--no-avg", action="store_true", help="no average; without --heads, every head")
    add("--positions", type=_number, default=64, metavar="T", help="draw the first T positions (default: 64)")
    add("--labels", metavar="KEY|FILE", help="with --input: names of the positions, a tensor of integers in F (N, T) "
        "or (T,), a .json list (of lists), or a text file with a label a line (default: their indices)")  # fmt: skip
    add("--output-dir", type=Path, default=Path("attention"), metavar="DIR", help="(default: attention)")
    add("--format", choices=("html", "png", "svg"), default="html", help="html: one page; png, svg: an image for each "
        "sequence, drawn by the package kaleido and a Chrome (default: html)")  # fmt: skip


def _add_sources(attention: argparse.ArgumentParser) -> None:
    add = attention.add_argument
    add("--model", metavar="NAME|DIR", help="a directory with config.json, or the name of a fetched model")
    add("--resources", type=Path, default=Path("resources"), metavar="DIR", help="where NAME lies (default: resources)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="(default: float32)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="of the model (default: auto)")
    add("--text", action="append", metavar="T", help="a sequence for the model; may be given several times")
    add("--run", dest="run_directory", type=Path, metavar="DIR", help="a run's directory")
    add("--input", type=Path, metavar="F", help="safetensors file")
    add("--patterns", metavar="KEY", help="attention probabilities in F")
    add("--attn-norm", metavar="KEY", help="input of the Q and K projections in F")


def _add_projections(group: Any) -> None:
    add = group.add_argument
    add("--weights", type=Path, metavar="F", help="safetensors file with the weights (default: that of --input)")
    add("--q", metavar="KEY", help="weight of the Q projection, [out, in] as in torch's Linear, or [layers, out, in]; "
        "{layer} in a key stands for the layer")  # fmt: skip
    add("--k", metavar="KEY", help="weight of the K projection, likewise")
    add("--q-bias", metavar="KEY")
    add("--k-bias", metavar="KEY")
    add("--q-norm", metavar="KEY", help="factor of the RMSNorm over each head's queries, as it multiplies")
    add("--k-norm", metavar="KEY", help="the same for keys")
    add("--norm-eps", type=_positive, metavar="X", help="epsilon of those norms")
    add("--n-heads", type=_number, metavar="N", help="heads of the queries")
    add("--n-kv-heads", type=_number, metavar="N", help="heads of the keys (with --patterns: to name them)")
    add("--head-groups", choices=("consecutive", "interleaved"), help="which KV head query head h reads, where there "
        "are fewer of them: consecutive: h // (heads / KV heads), as in Llama; interleaved: h %% KV heads")  # fmt: skip
    add("--sinks", metavar="KEY", help="learned sinks: a logit for each head beside those of the keys, [heads] or "
        "[layers, heads]; drawn as a column of its own")  # fmt: skip
    add("--scale", type=_positive, metavar="X", help="factor of q . k, such as 0.125 for heads of 64 dims")
    direction = group.add_mutually_exclusive_group()
    direction.add_argument("--causal", action="store_true", default=None, help="a query sees no later key")
    direction.add_argument("--bidirectional", dest="causal", action="store_false", default=None, help="it sees all")
    rotary = group.add_mutually_exclusive_group()
    rotary.add_argument("--rotary-base", type=_positive, metavar="B", help="base of the rotary embedding, over all "
                        "dims of a head in two halves, as in Llama; position 0 is the dump's first")  # fmt: skip
    rotary.add_argument("--no-rotary", action="store_true", default=None, help="no rotary embedding")


def _index(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} found, expected an index from 0")
    return value


def _number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} found, expected a number from 1")
    return value


def _indices(text: str) -> list[int]:
    return list(dict.fromkeys(_index(part) for part in text.split(",")))


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} found, expected a number above 0")
    return value


# argparse names the type in its message, where int() or float() fails.
_index.__name__, _number.__name__, _indices.__name__, _positive.__name__ = "index", "number", "indices", "number"


def _attention(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    _require_source(options, parser)
    shown, kv_heads = _read(options)
    least = min(float(one.pattern.sum(axis=-1).min()) for one in shown)
    if least < 0.98:
        print(f"a row of a pattern sums to {least:.3g}: the rest may be the mass of a learned sink", file=sys.stderr)
    _draw(shown, kv_heads, options)


def _require_source(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """A usage mistake where the options do not name one source, and it whole."""
    model, run, dump = options.model is not None, options.run_directory is not None, options.input is not None
    if model + dump > 1 or (run and dump) or not (model or run or dump):
        parser.error("expected one source: --model, --run or --input")
    if model and (options.text is None) != run:
        parser.error("argument --model: expected --text or --run, and not both")
    if options.text is not None and not model:
        parser.error("argument --text: expected with --model")
    if dump and (options.patterns is None) == (options.attn_norm is None):
        parser.error("argument --input: expected --patterns or --attn-norm, and not both")
    for name in ("patterns", "attn_norm", "labels"):
        if getattr(options, name) is not None and not dump:
            parser.error(f"argument {_flag(name)}: expected with --input")
    _require_projections(options, parser)


def _require_projections(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if options.attn_norm is None:
        allowed = {"n_kv_heads", "head_groups"} if options.patterns is not None else set()
        for name in {*_REQUIRED, *_OPTIONAL, "rotary_base", "no_rotary", "causal"} - allowed:
            if getattr(options, name) is not None:
                flag = _flag(name) if name != "causal" or options.causal else "--bidirectional"
                parser.error(f"argument {flag}: expected {_PROJECTION}")
        return
    missing = [_flag(name) for name in _REQUIRED if getattr(options, name) is None]
    missing += ["--causal or --bidirectional"] * (options.causal is None)
    grouped = None not in (options.n_heads, options.n_kv_heads) and 1 < options.n_kv_heads < options.n_heads
    missing += ["--head-groups"] * (grouped and options.head_groups is None)
    missing += ["--rotary-base or --no-rotary"] * (options.rotary_base is None and options.no_rotary is None)
    has_norm = options.q_norm is not None or options.k_norm is not None
    missing += ["--norm-eps"] * (has_norm and options.norm_eps is None)
    if missing:
        parser.error(f"the following arguments are required {_PROJECTION}: {', '.join(missing)}")
    if options.norm_eps is not None and not has_norm:
        parser.error("argument --norm-eps: expected with --q-norm or --k-norm")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _read(options: argparse.Namespace) -> tuple[list["Shown"], "KvHeads"]:
    """The patterns from the one source that the options name, and which KV head each head reads."""
    from outlier_features.attention import attention_sources as sources

    wanted = sources.Wanted(options.layer, options.sequences, options.n_sequences, options.positions)
    if options.model is not None:
        model = sources.Model(_location(options), options.dtype, options.device)
        if options.text is not None:
            return sources.from_texts(model, options.text, wanted)
        return sources.from_tokens(model, options.run_directory, wanted)
    if options.run_directory is not None:
        return sources.from_run(options.run_directory, wanted)
    file = open_tensors(options.input)
    if options.patterns is not None:
        groups = options.n_kv_heads, options.head_groups
        return sources.from_patterns(file, options.patterns, *groups, options.labels, wanted)
    weights = file if options.weights is None else open_tensors(options.weights)
    named = {name: getattr(options, name) for name in ("q", "k", "q_bias", "k_bias", "q_norm", "k_norm", "sinks")}
    stated = ("n_heads", "n_kv_heads", "head_groups", "scale", "causal", "rotary_base")
    facts = {name: getattr(options, name) for name in stated}
    facts["norm_eps"] = options.norm_eps or 0.0
    return sources.from_projections(file, options.attn_norm, weights, named, facts, options.labels, wanted)


def _location(options: argparse.Namespace) -> Path:
    directory, record = Path(options.model), options.resources / "models" / options.model / SOURCE_FILE
    if directory.is_dir():
        return directory
    if not record.is_file():
        raise InputError(f"model: {options.model} is neither a directory nor a fetched model ({record} is not there)")
    return Path(source_of(record)["location"])


def _draw(shown: Sequence["Shown"], kv_heads: "KvHeads", options: argparse.Namespace) -> None:
    from outlier_features.attention.kept_patterns import cropped
    from outlier_features.figures.attention_heatmaps import attention_grid
    from outlier_features.figures.images import titled, write_images
    from outlier_features.figures.style import Drawing
    from outlier_features.report.draw_figures import write_figures

    figures = []
    for one in shown:
        size = min(len(one.labels), options.positions)
        panels = _panels(cropped(one.pattern, size), kv_heads, options)
        pixels = max(280, min(900, 11 * size))
        columns = max(1, min(len(panels), 1600 // pixels))
        cut = f", first {size} of {len(one.labels)} positions" if size < len(one.labels) else ""
        figure = attention_grid(panels, one.labels[:size], columns=columns, size=pixels, every=max(1, size // 64))
        figures.append((one.sequence, f"Layer {options.layer}, sequence {one.sequence}{cut}", figure))
    stem = f"layer-{options.layer}"
    try:
        if options.format == "html":
            path = options.output_dir / f"{stem}.html"
            with replacing(path) as temporary:
                drawings = [
                    Drawing(
                        f"{stem}-sequence-{sequence}", title, "pattern", "none", "all", _CAPTION, {"all": figure},
                        min_width=figure.layout.width,
                    )
                    for sequence, title, figure in figures
                ]  # fmt: skip
                write_figures(temporary, "Attention patterns", drawings)
            print(path)
            return
        source = " on ".join(str(one) for one in (options.model, options.run_directory or options.input) if one)
        images = [
            (
                options.output_dir / f"{stem}-sequence-{sequence}.{options.format}",
                titled(figure, f"Attention patterns: {title[0].lower()}{title[1:]}", source, figure.layout.width),
            )
            for sequence, title, figure in figures
        ]
        write_images([(path, figure, figure.layout.width) for path, figure in images], "--format")
        print(*(path for path, _ in images), sep="\n")
    except OSError as error:
        raise InputError(f"{options.output_dir}: cannot be written, {error.strerror or error}") from error


def _panels(pattern: "Array", kv_heads: "KvHeads", options: argparse.Namespace) -> "list[Panel]":
    from outlier_features.figures.attention_heatmaps import Panel, average, head_name

    count = len(pattern)
    heads = options.heads if options.heads is not None else range(count) if options.no_avg else []
    missing = [head for head in heads if head >= count]
    if missing:
        raise InputError(f"heads: found {missing[0]}, but layer {options.layer} has {count}, expected 0 to {count - 1}")
    panels = [Panel(head_name(head, kv_heads), pattern[head]) for head in heads]
    return panels if options.no_avg else [average(pattern), *panels]
