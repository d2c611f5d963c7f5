"""The command `outlier-features dim`: what a run says of one dim, in the terminal and as a page."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from outlier_features.command.gallery import add_run_and_page, folder_of, read_run, show_page
from outlier_features.command.output import make_table, print_parts
from outlier_features.dims.dims_schema import DIMS, MASSIVE
from outlier_features.errors import InputError
from outlier_features.files.tables import provenance_of
from outlier_features.gallery.dim_page import dim_page
from outlier_features.gallery.gallery_run import GalleryRun
from outlier_features.gallery.page_on_request import page_of_dim
from outlier_features.tokens.token_context import massive_spans
from outlier_features.visible_text import shortened
from outlier_features.wording import DASH, number, percent

MOST = 20


def add_dim(dim: argparse.ArgumentParser) -> None:
    dim.description = (
        "Print what a run says of a dimension of the residual stream: which rules select it, its curve over the "
        "layers, where its massive activations are, what writes and removes it, and what its ablation does; and open "
        "its page. Everything comes from the run's tables; no model is loaded."
    )
    dim.set_defaults(run=_dim)
    add_run_and_page(dim)
    dim.add_argument("dim", type=int, metavar="507", help="the dimension, from 0")


def _dim(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    run = read_run(options)
    width = provenance_of(run.path(DIMS), DIMS)["d_model"]
    if not 0 <= options.dim < width:
        raise InputError(f"dim: found {options.dim}, expected one from 0 to {width - 1}")
    print_parts(_parts(run, options.dim), sys.stdout)
    show_page(page_of_dim(run, options.dim, folder_of(options)), opened=not options.no_open)


def _parts(run: GalleryRun, dim: int) -> Iterator[Any]:
    data = dim_page(run, dim)
    yield f"Dimension {dim} of {run.name}"
    if not data["selected"]:
        yield "No rule selects it."
    else:
        yield make_table(
            "Selected",
            ("Rule", "Population", "Kind", "Max |x|", "Layers", "Steps"),
            [
                (row["rule"], row["population"], row["kind"] or DASH, number(row["max_abs"]),
                 f"{row['first_layer']} to {row['last_layer']}",
                 DASH if row["step_up"] is None else f"{row['step_up']}, {number(row['step_down'])}")
                for row in data["selected"]
            ],
            "steps: max |x| on resid_post rises to half its maximum, falls below",
        )  # fmt: skip
    curves = {(one["site"], one["population"]): one for one in data["curves"]}
    if curves:
        layers = next(iter(curves.values()))["layer"]
        yield make_table(
            "Max |x| by layer",
            ("Layer", *(f"{site}, {population}" for site, population in curves)),
            [
                (str(layer), *(number(one["max_abs"][place]) for one in curves.values()))
                for place, layer in enumerate(layers)
            ],
        )
    spans, in_all = massive_spans(run.rows(MASSIVE).filter(dim=dim), run.texts, run.tokens, MOST)
    if spans:
        yield make_table(
            f"Massive activations, {len(spans)} of {in_all} positions",
            ("Sequence", "Position", "Layers", "Largest x", "Ratio", "Token in its context"),
            [
                (str(one.sequence), str(one.position), one.layers, number(one.value), number(one.ratio),
                 f"{one.before}[{shortened(one.token or one.nameless)}]{one.after}")
                for one in spans
            ],
        )  # fmt: skip
    yield from data["sentences"]
    if data["writers"]:
        yield make_table(
            "Neurons that write to it",
            ("Neuron", "Contribution", "Weight"),
            [(name, number(written), number(weight)) for name, written, weight in data["writers"][:MOST]],
            "contribution: the activation at the dim's extreme token x the weight",
        )
    if data["feeders"]:
        yield make_table(
            "Neurons at the traced token",
            ("Neuron", "Activation", "Weight", "Contribution", "Share"),
            [(name, number(activation), number(weight), number(written), percent(share))
             for name, _, activation, weight, written, share in data["feeders"][:MOST]],
            "share: of what the block's MLP writes to the dim there",
        )  # fmt: skip
    if data["gains"]:
        yield make_table(
            "Gains of the norms",
            ("Norm", "Gain", "Rank of |gain|", "x median"),
            [(module, number(gain), f"{rank} of {size}", number(ratio))
             for module, _, gain, rank, size, ratio in data["gains"]],
        )  # fmt: skip
    if data["ablations"]:
        yield make_table(
            "Without it",
            ("Rule", "Dims", "At", "To", "Perplexity", "x unchanged"),
            [(row["rule"] or DASH, str(row["number"]), row["positions"], row["value"], number(row["perplexity"]),
              number(row["times"])) for row in data["ablations"]],
        )  # fmt: skip
