"""The file origin.txt: what rule trace_origin found, for reading, in the order of the computation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from outlier_features.origin.origin_findings import (
    STEPS,
    activation_rows,
    explosion_sentence,
    ladders,
    lifecycle_sentences,
    neuron_sentence,
    place,
    selection,
    signed,
    whole_blocks,
)
from outlier_features.rules.kinds import listing_rules
from outlier_features.tokens.token_text import token_text
from outlier_features.tokens.tokens import Tokens
from outlier_features.visible_text import quoted, visible
from outlier_features.wording import count, listing, number, percent

Row = dict[str, Any]
NEURONS = 10
BY_WEIGHT = 5
_WIDTH = 100
FACTORS = ("act_gate", "mlp_up")
OF_NEURONS = ("mlp_pre", *FACTORS, "mlp_act")
_NAMES = {
    "resid_mid": "the residual stream, which the MLP reads",
    "mlp_norm": "MLP input, after the norm",
    "mlp_pre": "after the first linear, or the gate",
    "act_gate": "activation function of the gate",
    "mlp_up": "the up projection",
    "mlp_act": "neurons, the input of the last linear",
    "mlp_down": "after the last linear",
    "mlp_out": "MLP output",
}


def origin_text(
    tables: Mapping[str, pl.DataFrame], provenance: Mapping[str, Any], texts: list[bytes], run: Tokens
) -> str:
    """The text, from the rows of the tables that rule trace_origin writes, by name."""
    life = tables["lifecycle"]
    lines = [
        *_title(f"WHERE MASSIVE ACTIVATIONS COME FROM: {provenance['model']} on {provenance['corpus']}"),
        f"Model revision {provenance['model_revision']}, {provenance['dtype']} on {provenance['device']}, attention "
        f"{provenance['attention']}; tokens {provenance['tokens_sha256'][:16]}; outlier-features "
        f"{provenance['package_version']}",
        "",
        selection(life, provenance["trace_origin"], listing_rules(provenance["rules"]), provenance["sites"]),
        "Each is followed at the token of its largest massive activation, or of its largest |x| on resid_post where",
        "it has none. Maxima, medians and ratios are of |x| over all positions of that token's sequence (padding left",
        "out) and all dims; lines marked `at the token` are of that token alone. Sites are named as in the tables.",
        "Layers, dims, neurons and positions count from 0.",
    ]
    for dim in life["target_dim"].unique(maintain_order=True):
        lines += _dim(tables, int(dim), texts, run)
    if len(life):
        lines += ["", *_title("HOW TO READ IT"), *_NOTES]
    return "\n".join(visible_lines(lines)) + "\n"


_NOTES = (
    "Weights: a neuron feeds a dim through W_down[neuron -> dim], times its activation at the token. In a Conv1D",
    "weight, kept as inputs x outputs, the row that has the dim's number holds what the neuron of that number writes:",
    "another question, with other neurons. The published reading ranks that row, and by |weight| alone, which knows no",
    "activation.",
    "Activation function: its effect is shown on the maximum and on the median. By the maximum alone, the published",
    "reading, a function that keeps large values and presses small ones seems to have no effect.",
)


def visible_lines(lines: Sequence[str]) -> Iterator[str]:
    """Text from models and corpora cannot break a line or turn it around."""
    return (visible(line) for line in lines)


def _title(text: str) -> list[str]:
    return ["=" * _WIDTH, text, "=" * _WIDTH]


def _heading(text: str) -> list[str]:
    return ["", "-" * _WIDTH, text, "-" * _WIDTH]


def _dim(tables: Mapping[str, pl.DataFrame], dim: int, texts: list[bytes], run: Tokens) -> Iterator[str]:
    life = tables["lifecycle"].filter(target_dim=dim)
    yield from ("", *_title(f"DIM {dim} at {place(life)}"))
    yield from lifecycle_sentences(life)
    yield from _heading(f"Lifecycle of dim {dim} at the token, signed: what was there, what is added, what is left")
    yield from _lifecycle(life)
    if whole := whole_blocks(life):
        yield whole
    for layer, step, ladder in ladders(tables["origin"], dim):
        where = {"target_dim": dim, "layer": layer}
        neurons, weights = (tables[name].filter(**where) for name in ("origin_neurons", "origin_weights"))
        yield from ("", *_title(f"DIM {dim}, MLP OF LAYER {layer} ({STEPS[step]})"))
        explosion = next((row["checkpoint"] for row in ladder if row["explosion"]), "none")
        yield f"EXPLOSION POINT: {explosion}"
        yield explosion_sentence(layer, ladder)
        for position, row in enumerate(ladder, start=1):
            yield from _checkpoint(position, row, texts, run)
        yield from _activation(ladder)
        yield from _weights(weights, dim)
        yield from _neurons(neurons, dim)


def _lifecycle(life: pl.DataFrame) -> Iterator[str]:
    parts = life["part"].unique(maintain_order=True).to_list()
    parts = [*(part for part in parts if part != "resid_post"), "resid_post"]
    yield "layer" + "".join(f"{part:>18}" for part in parts)
    for (layer,), rows in life.group_by("layer", maintain_order=True):
        values = {row["part"]: row["value"] for row in rows.iter_rows(named=True)}
        cells = (f"{values[part]:>18,.3f}" if part in values else f"{'':>18}" for part in parts)
        yield f"{layer!s:>5}" + "".join(cells)


def _checkpoint(position: int, row: Row, texts: list[bytes], run: Tokens) -> Iterator[str]:
    yield from _heading(f"Checkpoint {position}: {_NAMES[row['checkpoint']]} (site {row['checkpoint']})")
    if row["absent"]:
        yield f"  absent: {row['absent']}"
        return
    token = quoted(token_text(texts, run, row["sequence"], row["token"]) or "")
    what = "neuron" if row["checkpoint"] in OF_NEURONS else "dim"
    yield f"  Dimensions:       {row['dims']:,}"
    yield f"  Max |x|:          {row['max_abs']:,.4f} in {what} {row['dim']} at {token} (position {row['token']})"
    yield f"  Median |x|:       {row['median_abs']:,.4f}"
    yield f"  Max / median:     {number(row['ratio'])}"
    if row["change"] is not None:
        percents = "" if row["growth"] is None else f" ({100 * (row['growth'] - 1):+,.1f} %, x {number(row['growth'])})"
        beside = ", beside the way through" if row["checkpoint"] in FACTORS else ""
        yield f"  Change of max:    {row['change']:+,.4f}{percents} from {row['previous']}{beside}"
    yield (
        f"  At the token:     max |x| {row['traced_max_abs']:,.4f} in {what} {row['traced_dim']}, median |x| "
        f"{row['traced_median_abs']:,.4f}"
    )
    if row["value"] is not None:
        share = "" if row["share"] is None else f", {percent(row['share'])} of what the layer changes the dim by"
        yield f"  Dim {row['target_dim']} there:    {row['value']:,.4f}{share}"


def _activation(ladder: Sequence[Row]) -> Iterator[str]:
    rows = activation_rows(ladder)
    if not rows:
        return
    yield from _heading("What the activation function does")
    before, after = rows
    yield f"  From {before['checkpoint']} to {after['checkpoint']}:"
    for name, key in (("max |x|", "max_abs"), ("median |x|", "median_abs")):
        change = f" ({100 * (after[key] / before[key] - 1):+,.1f} %)" if before[key] else ""
        yield f"  {name + ':':<12} {before[key]:,.4f} -> {after[key]:,.4f}{change}"


def _weights(weights: pl.DataFrame, dim: int) -> Iterator[str]:
    if weights.is_empty():
        return
    yield from _heading("Weights")
    for row in weights.iter_rows(named=True):
        yield (
            f"  {row['weight']} ({row['inputs']:,} -> {row['outputs']:,}): max |w| {row['max_abs']:.4f} (input "
            f"{row['max_input']} -> output {row['max_output']}), mean |w| {row['mean_abs']:.4f}"
        )
        if row["singular_values"]:
            yield f"  W_down's largest singular values: {', '.join(map(number, row['singular_values']))}"
            shares = ", ".join(map(percent, row["dim_shares"]))
            yield f"  dim {dim}'s shares of their output directions: {shares}"
        if row["projection"] is not None:
            yield (
                f"  mlp_act on the first right singular vector: {number(row['projection'])} at the token, which writes "
                f"{percent(row['projection_share'])} of mlp_down there; over the sequence R^2 {number(row['r2'])}, "
                f"slope {number(row['slope'])}"
            )


def _neurons(neurons: pl.DataFrame, dim: int) -> Iterator[str]:
    if neurons.is_empty():
        return
    yield from _heading(f"Neurons that feed dim {dim} at the token: activation x W_down[neuron -> {dim}]")
    yield neuron_sentence(neurons)
    yield "   rank    neuron      activation      weight    contribution     share  by |weight| alone"
    ranked = neurons.drop_nulls("neuron").sort("rank")
    for row in ranked.head(NEURONS).iter_rows(named=True):
        yield (
            f"  {row['rank']:>5}{row['neuron']:>10}{row['activation']:>16,.4f}{row['weight']:>12.4f}"
            f"{row['contribution']:>16,.4f}{percent(row['share']):>10}  {row['weights_only_rank']}"
        )
    rest = ranked.slice(NEURONS)
    bias = neurons.filter(pl.col("neuron").is_null())
    for name, rows in ((f"{count(len(rest), 'other neuron')}", rest), ("bias", bias), ("sum = mlp_down", neurons)):
        yield f"  {name:<43}{rows['contribution'].sum():>16,.4f}{percent(float(rows['share'].sum())):>10}"
    alone = ranked.sort("weights_only_rank").head(BY_WEIGHT).iter_rows(named=True)
    named = listing(f"{row['neuron']} ({signed(row['weight'])}, rank {row['rank']} above)" for row in alone)
    yield f"  By |weight| alone, for the record: {named}."
