"""How many neurons a model has, from the shapes of its weights: before it is run, and without torch.

A block's MLP is two matrices or three: from the stream's width d to its m neurons, perhaps to 2m where gate and values
are one, and back. Which those are is told by the shapes, a matrix of experts counting as many times as it has experts.
Matrices of attention can have such shapes too, and are left out by name; those of another mixer may be counted, and
weights that are packed have other shapes. Recording goes by what a model does, not by this.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

_BLOCK = re.compile(r"(.*?\.\d+)\.")
_ATTENTION = re.compile(r"att(n|ention)", re.IGNORECASE)


def block_of(name: str) -> str | None:
    """The block of a weight: what has the same first number in its name; None if it has none."""
    match = _BLOCK.match(name)
    return match[1] if match else None


def neurons_of_blocks(shapes: Mapping[str, Sequence[int]], width: int) -> list[int]:
    """Of each block, or each half of an encoder-decoder's, that has any; from the shapes of all weights by name."""
    matrices: dict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
    for name, shape in shapes.items():
        block = block_of(name)
        if block and len(shape) in (2, 3) and width in shape[-2:] and not _ATTENTION.search(name[len(block) :]):
            matrices[block][shape[-2], shape[-1]] += shape[0] if len(shape) == 3 else 1
    found = [
        sum(m * _mlps(counts, m, width) for m in {side for shape in counts for side in shape})
        for counts in matrices.values()
    ]
    return [count for count in found if count]


def _mlps(counts: Counter[tuple[int, int]], m: int, width: int) -> int:
    """MLPs, or experts, of m neurons; weights lie as (out, in), or as (in, out) where the type has it so."""
    if m == width:  # two or three of one shape, but for what goes to two halves at once
        halves = max(counts[m, m // 2], counts[m // 2, m]) if m % 2 == 0 else 0
        square = counts[m, m] - min(counts[m, m], halves)
        fused = min(square, counts[2 * m, m] + counts[m, 2 * m])
        return fused + (square - fused) // 2
    as_out_in = _pairs(counts[width, m], counts[m, width], counts[2 * m, width])
    return max(as_out_in, _pairs(counts[m, width], counts[width, m], counts[width, 2 * m]))


def _pairs(back: int, to: int, to_both: int) -> int:
    fused = min(back, to_both)
    return fused + min(back - fused, to)
