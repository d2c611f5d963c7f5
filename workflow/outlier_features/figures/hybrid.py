"""Marks under an axis of layers: which of a hybrid model's blocks have softmax attention."""

from collections.abc import Sequence
from dataclasses import replace

import plotly.graph_objects as go

from outlier_features.dim_marks import marked_of
from outlier_features.figures.style import INK, LAYER_AXIS, Drawing
from outlier_features.wording import layers

_THICK = 5  # pixels, as long as a tick


def with_attention_marked(drawing: Drawing, attention: Sequence[int]) -> Drawing:
    """A drawing with a bar under each layer with attention, wherever it has an axis of layers."""
    marked = [_mark(view, attention) for view in drawing.views.values()]
    if not any(marked):
        return drawing
    text = f"{marked_of(drawing.text)} Black under the axis: {layers(attention)}, which alone have softmax attention."
    return replace(drawing, text=text.strip())


def _mark(figure: go.Figure, attention: Sequence[int]) -> bool:
    """Whether the figure has an axis of layers."""
    plot = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    axes = [axis for axis in figure.select_xaxes() if axis.title.text == LAYER_AXIS]
    for axis in axes:
        beside = figure.layout[axis.anchor.replace("y", "yaxis", 1)]
        high = beside.domain[1] - beside.domain[0]
        name = axis.plotly_name.replace("axis", "", 1)
        for layer in attention:
            figure.add_shape(
                type="rect", x0=layer - 0.4, x1=layer + 0.4, xref=name, y0=0, y1=-_THICK / (plot * high),
                yref=f"{axis.anchor} domain", fillcolor=INK, line_width=0,
            )  # fmt: skip
        axis.title.text = f"{LAYER_AXIS}; black: with attention"
    return bool(axes)
