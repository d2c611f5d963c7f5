"""How large what is kept of the inputs of linear layers is, before a model has run: in bytes, for the plan.

Without torch and numpy, which planning of a run has no need of; a test holds it to the files themselves.
"""

_CHANNEL = 2 * 4 + 2 * 8  # of a chunk and part of the positions: two extremes and two sums
_STATISTICS = 3 * 4 + 2 * 8  # of a run and population
_PARTS = _POPULATIONS = 2


def of_chunk(channels: int, values: int) -> int:
    """At most: where layers read the same input, it is kept once.

    channels   of all linear layers, of experts of each
    values     tokens of the chunk x blocks, since of a dense MLP each token's largest neuron is kept
    """
    return channels * _PARTS * _CHANNEL + 4 * values


def of_run(channels: int) -> int:
    """`channel_stats.safetensors`, where each layer has its own tensors."""
    return channels * _POPULATIONS * _STATISTICS
