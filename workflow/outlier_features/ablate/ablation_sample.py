"""How much of the sample the ablations run, so that they and the search cost at most so many times its passes."""

from collections.abc import Iterable, Sequence

from outlier_features.ablate.subject import Subject
from outlier_features.ablate.super_weights import passes_of_search
from outlier_features.model.models import LoadedModel

# Multiply-adds that search and ablations may take in any case: some 15 seconds of one CPU core.
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


def search_cost(subject: Subject, found: Sequence[int]) -> float:
    """Multiply-adds of a token in a search for super weights, which found one in each of these blocks in turn."""
    price = PassCost(subject.loaded)
    return sum(price.token(blocks.start, blocks.stop) for blocks in passes_of_search(subject, found))


def affordable_length(
    length: int, sequences: int, tokens: Iterable[float], run: float, cost: float, spent: float = 0.0
) -> int:
    """Tokens of each of the `sequences`, of the `length` that are there, that cost at most `cost` times `run`.

    tokens   cost of a token in each pass
    run      cost of the run's own passes
    spent    what other passes took of it
    """
    one = sequences * sum(tokens)
    return min(length, max(FEWEST, int((max(cost * run, ALWAYS) - spent) / one)))
