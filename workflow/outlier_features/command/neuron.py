"""The command `outlier-features neuron`: what a run says of one neuron, in the terminal and as a page."""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from outlier_features.command.gallery import add_run_and_page, folder_of, read_run, show_page
from outlier_features.command.output import make_table, print_parts
from outlier_features.errors import InputError
from outlier_features.gallery.gallery_run import GalleryRun
from outlier_features.gallery.names import Neuron
from outlier_features.gallery.neuron_page import STATISTICS, NeuronRows, token_name
from outlier_features.gallery.page_on_request import page_of_neuron
from outlier_features.tokens.token_context import context
from outlier_features.wording import number

POPULATIONS = ("all", "without_first", "without_high_norm")
TITLES = {"max": "Largest activations", "min": "Smallest activations"}


def add_neuron(neuron: argparse.ArgumentParser) -> None:
    neuron.description = (
        "Print what a run says of a neuron: its statistics, its examples with the token in its context, and its "
        "effects; and open its page. Everything comes from the run's tables; no model is loaded."
    )
    neuron.set_defaults(run=_neuron)
    add_run_and_page(neuron)
    neuron.add_argument("neuron", metavar="L0N424", help="block and neuron, from 0; of an expert L0E3N424")
    neuron.add_argument("--population", choices=POPULATIONS, default="all", help="whose examples (default: all)")


def _neuron(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    neuron = Neuron.parse(options.neuron)
    run = read_run(options)
    run.require_ranking()
    require_neuron(run, neuron)
    rows = NeuronRows.of(run, [neuron])[0]
    print_parts(_parts(run, rows, options.population), sys.stdout)
    page = page_of_neuron(run, rows, folder_of(options))
    show_page(page, opened=not options.no_open)


def require_neuron(run: GalleryRun, neuron: Neuron) -> None:
    """Raise `InputError` where the run ranked no such neuron, with what it has."""
    of_block = run.statistics.filter(layer=neuron.layer)
    if of_block.is_empty():
        raise InputError(f"neuron: found {neuron}, but there are {_span('block', run.statistics['layer'])}")
    experts = of_block["expert"].drop_nulls()
    if neuron.expert not in of_block["expert"].unique().to_list():
        raise InputError(f"neuron: found {neuron}, but block {neuron.layer} has {_span('expert', experts)}")
    of_one = of_block.filter(pl.col("expert").eq_missing(neuron.expert))
    if neuron.neuron not in of_one["neuron"]:
        raise InputError(f"neuron: found {neuron}, expected one of {_span('neuron', of_one['neuron'])}")


def _span(noun: str, indices: pl.Series) -> str:
    """`blocks 0 to 29`, where `indices` has those between too."""
    known = sorted({*indices.to_list()})
    return f"{noun}s {known[0]} to {known[-1]}" if known else f"no {noun}"


def _parts(run: GalleryRun, rows: NeuronRows, population: str) -> Iterator[Any]:
    yield f"Neuron {rows.neuron} of {run.name}"
    if rows.page:
        yield f"It has a page: {', '.join(rows.page['reasons'])}"
    yield make_table(
        "Activation (mlp_act)",
        ("Population", "Positions", "Active", "Mean", "Std", "Kurtosis", "Min", "Max"),
        [(row["population"], *(number(row[name]) for name in STATISTICS)) for row in rows.statistics],
        "active: share above 0",
    )
    for side, title in TITLES.items():
        chosen = [row for row in rows.ranked if row["population"] == population and row["side"] == side]
        yield make_table(
            f"{title}, population {population}",
            ("", "Value", "Sequence", "Position", "Token in its context"),
            _examples(run, sorted(chosen, key=lambda row: int(row["rank"]))),
        )
    if not rows.page:
        yield "Logit effects, the dims that it writes and near neurons are recorded of the gallery's neurons alone."
        return
    page = rows.page
    if page["writes_dims"]:
        written = zip(page["writes_dims"], page["writes"], page["writes_weights"], strict=True)
        yield make_table(
            "Dims that it writes",
            ("Dim", "Contribution", "Weight"),
            [(str(dim), number(value), number(weight)) for dim, value, weight in written],
            "contribution: its activation at the dim's extreme token x the weight",
        )
    for end, title in (("top", "Raises most"), ("bottom", "Lowers most")):
        if page[f"{end}_tokens"]:
            yield make_table(
                f"{title}, logit per unit of activation",
                ("Token", "Logit"),
                [
                    (token_name(run, token), number(logit))
                    for token, logit in zip(page[f"{end}_tokens"], page[f"{end}_logits"], strict=True)
                ],
            )
    if page["nearest"]:
        near = [(name, number(cosine)) for name, cosine in zip(page["nearest"], page["cosines"], strict=True)]
        yield make_table("Nearest neurons", ("Neuron", "Cosine"), near)


def _examples(run: GalleryRun, rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for row in rows:
        before, token, after = context(run.texts, run.tokens, row["sequence"], row["token"])
        where = (str(row["sequence"]), str(row["token"]))
        found.append((str(row["rank"]), number(row["value"]), *where, f"{before}[{token}]{after}"))
    return found
