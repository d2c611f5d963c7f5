"""How much of the sample the ablations run, so that they cost no more than so many times the run's own passes."""

from collections.abc import Iterable

from outlier_features.model.models import LoadedModel

# Multiply-adds that the ablations may take in any case: half a minute of one CPU core, as long as a small model's load.
ALWAYS = 1e12
FEWEST = 16  # tokens of a sequence


class PassCost:
    """Multiply-adds with the model's weights of one token in a pass; those of all experts are counted."""

    def __init__(self, loaded: LoadedModel):
        head = loaded.model.get_output_embeddings()
        self._head = sum(parameter.numel() for parameter in head.parameters()) if head is not None else 0
        self._blocks = [sum(p.numel() for p in block.module.parameters()) for block in loaded.stack.blocks]

    def token(self, start: int = 0, stop: int | None = None) -> float:
        """From block `start` on to the head, or to before block `stop`."""
        return float(sum(self._blocks[start:stop]) + (self._head if stop is None else 0))


def affordable_length(length: int, sequences: int, tokens: Iterable[float], run: float, cost: float) -> int:
    """Tokens of each of the `sequences`, of the `length` that are there, that cost at most `cost` times `run`.

    tokens   cost of a token in each pass
    run      cost of the run's own passes
    """
    one = sequences * sum(tokens)
    return min(length, max(FEWEST, int(max(cost * run, ALWAYS) / one)))
