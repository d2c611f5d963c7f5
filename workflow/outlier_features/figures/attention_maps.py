"""The figure of the attention patterns that a run kept: in each layer the average, and its two most different heads."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from outlier_features.attention.kept_patterns import AttentionMaps, cropped
from outlier_features.figures.attention_heatmaps import Panel, attention_grid, average, head_name
from outlier_features.figures.style import Drawing
from outlier_features.populations import population_title
from outlier_features.wording import percent

MOST_POSITIONS = 64
MOST_LAYERS = 4


def attention_maps(maps: AttentionMaps, sinks: pl.DataFrame, tokens: Sequence[str]) -> Drawing:
    """Of the first sequence that was kept, up to 64 positions in up to 4 layers.

    tokens   the text of each of its positions
    """
    layers = sorted(maps.patterns)[:MOST_LAYERS]
    size = min(len(tokens), MOST_POSITIONS)
    drawing = Drawing(
        "attention-maps",
        "Attention patterns",
        "pattern",
        "none, every probability is drawn",
        f"{population_title('all')}, positions 0 to {size - 1} "
        f"of sequence {maps.sequences[0] if maps.sequences else 0}",
        "Probability that each query (row) gives each key (column); colours go by its square root. White is exactly 0: "
        "the query cannot see the key. For each layer: the average over its heads, and the heads that give the key at "
        "position 0 the most and the least (by alpha over all sequences)."
        + "".join(f" Layer {layer}: {maps.why[layer]}." for layer in layers)
        + (f" Left out: layers {sorted(maps.patterns)[MOST_LAYERS:]}." if len(maps.patterns) > MOST_LAYERS else ""),
        min_width=980,
    )
    if not layers:
        return drawing.empty("Nothing is drawn: this run kept no attention pattern.")
    panels = [panel for layer in layers for panel in _panels(maps, layer, sinks, size)]
    figure = attention_grid(panels, tokens[:size], columns=3, size=280, every=max(1, size // 8))
    views = {"all": figure.update_layout(width=None)}
    return replace(drawing, views=views, data=_drawn(panels), finding=_finding(maps, layers, size))


def _finding(maps: AttentionMaps, layers: Sequence[int], size: int) -> str:
    """How much of the drawn attention goes to position 0, in the layer where it is most and where it is least."""
    # The first query may have nothing else to see.
    to_first = {layer: float(cropped(maps.patterns[layer][0], size)[:, 1:, 0].mean()) for layer in layers}
    if size < 2:
        return ""
    most, least = max(layers, key=to_first.__getitem__), min(layers, key=to_first.__getitem__)
    text = f"The later positions of sequence {maps.sequences[0]} give position 0 {percent(to_first[most])} of their "
    text += f"attention in layer {most}"
    return f"{text}." if most == least else f"{text}, and {percent(to_first[least])} in layer {least}."


def _drawn(panels: Sequence[Panel]) -> pl.DataFrame:
    """A row for each panel, query and key that the query can see."""
    seen = [(panel, np.nonzero(panel.pattern)) for panel in panels]
    return pl.concat(
        pl.DataFrame(
            {"panel": panel.title, "query": at[0], "key": at[1], "probability": panel.pattern[at].astype(float)}
        )
        for panel, at in seen
    )


def _panels(maps: AttentionMaps, layer: int, sinks: pl.DataFrame, size: int) -> list[Panel]:
    pattern = cropped(maps.patterns[layer][0], size)
    order = sinks.filter(layer=layer, token=0).sort(["alpha", "head"], descending=[True, False])["head"].to_list()
    most_and_least = [Panel(head_name(head, maps.kv_heads[layer]), pattern[head]) for head in (order[0], order[-1])]
    return [replace(panel, title=f"layer {layer}, {panel.title}") for panel in (average(pattern), *most_and_least)]
