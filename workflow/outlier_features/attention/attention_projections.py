"""Attention patterns from the input of the Q and K projections and their weights, without the model."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from outlier_features.errors import InputError

Array = np.ndarray[Any, Any]
HeadGroups = Literal["consecutive", "interleaved"]


def kv_heads_of(n_heads: int, n_kv_heads: int, head_groups: HeadGroups | None) -> tuple[int, ...] | None:
    """The KV head that each head reads, or None where each has its own.

    head_groups   `consecutive`: head h reads KV head h // (n_heads / n_kv_heads), as in Llama and its kin;
                  `interleaved`: h % n_kv_heads. Both are in use, and no weight tells which

    Raises `InputError` where the numbers do not fit, and where there are several, but fewer KV heads, and no
    `head_groups`.
    """
    if n_heads % n_kv_heads:
        raise InputError(f"found {n_heads} heads and {n_kv_heads} KV heads, expected a multiple of them")
    if n_heads == n_kv_heads:
        return None
    if head_groups is None and n_kv_heads > 1:
        raise InputError(
            f"found {n_heads} heads and {n_kv_heads} KV heads, expected --head-groups: consecutive (head h reads KV "
            f"head h // {n_heads // n_kv_heads}) or interleaved (h % {n_kv_heads})"
        )
    if head_groups == "interleaved":
        return tuple(head % n_kv_heads for head in range(n_heads))
    return tuple(head // (n_heads // n_kv_heads) for head in range(n_heads))


@dataclass(frozen=True)
class Projections:
    """The part of an attention layer that makes its pattern. Nothing is guessed from the weights.

    q, k            [out, in] as in torch's Linear: (n_heads * width, d), (n_kv_heads * width, d)
    q_bias, k_bias  (out,), or None
    q_norm, k_norm  RMSNorm over each head's dims before the rotation: the factor (width,) that multiplies (a gain
                    stored as its difference from 1 needs 1 added), or None; `norm_eps` is its epsilon
    scale           factor of q . k, such as 1 / sqrt(width)
    head_groups     which head reads which KV head, see `kv_heads_of`; None where each has its own
    causal          a query sees keys up to its own position; else all
    rotary_base     of the rotary embedding, on all dims of a head in two halves, as in Llama: dim i is rotated with dim
                    i + width / 2 by the angle position * base ** (-2 i / width); None: no rotation
    sinks           (n_heads,), a learned logit beside those of the keys, which `scale` does not multiply; or None
    """

    q: Array
    k: Array
    n_heads: int
    n_kv_heads: int
    scale: float
    causal: bool
    rotary_base: float | None
    q_bias: Array | None = None
    k_bias: Array | None = None
    q_norm: Array | None = None
    k_norm: Array | None = None
    norm_eps: float = 0.0
    head_groups: HeadGroups | None = None
    sinks: Array | None = None

    def __post_init__(self) -> None:
        kv_heads_of(self.n_heads, self.n_kv_heads, self.head_groups)
        if self.q.shape[0] % self.n_heads or self.k.shape[0] * self.n_heads != self.q.shape[0] * self.n_kv_heads:
            raise InputError(
                f"found Q weights of shape {list(self.q.shape)} and K weights of shape {list(self.k.shape)}, expected "
                f"[out, in] with {self.n_heads} and {self.n_kv_heads} heads of one width in `out`"
            )
        if self.rotary_base is not None and self.width % 2:
            raise InputError(f"found heads of {self.width} dims, expected an even number for a rotary embedding")
        for name, vector, size in (
            ("Q bias", self.q_bias, self.q.shape[0]), ("K bias", self.k_bias, self.k.shape[0]),
            ("Q norm", self.q_norm, self.width), ("K norm", self.k_norm, self.width),
            ("learned sink", self.sinks, self.n_heads),
        ):  # fmt: skip
            if vector is not None and vector.shape != (size,):
                raise InputError(f"found a {name} of shape {list(vector.shape)}, expected [{size}]")

    @property
    def kv_heads(self) -> tuple[int, ...] | None:
        """The KV head that each head reads, or None where each has its own."""
        return kv_heads_of(self.n_heads, self.n_kv_heads, self.head_groups)

    @property
    def width(self) -> int:
        """Dims of a head."""
        return int(self.q.shape[0]) // self.n_heads

    def pattern(self, x: Array) -> Array:
        """Probabilities float32 (n_heads, T, T), queries in rows, of one sequence `x` (T, d) from position 0 on.

        With learned sinks, (n_heads, T, T + 1): theirs is the last column.
        """
        if not x.shape[1] == self.q.shape[1] == self.k.shape[1]:
            raise InputError(
                f"found {x.shape[1]} dims in the projections' input, Q weights of shape {list(self.q.shape)} and K "
                f"weights of shape {list(self.k.shape)}, expected [out, in] with as many dims in `in`"
            )
        x = x.astype(np.float64)
        queries = self._heads(x, self.q, self.q_bias, self.q_norm)
        keys = self._heads(x, self.k, self.k_bias, self.k_norm)
        length, read = len(x), self.kv_heads or range(self.n_heads)
        hidden = np.triu(np.ones((length, length), bool), 1) if self.causal else np.zeros((length, length), bool)
        pattern = np.empty((self.n_heads, length, length + (self.sinks is not None)), np.float32)
        for head, query in enumerate(queries):
            scores = np.where(hidden, -np.inf, query @ keys[read[head]].T * self.scale)
            if self.sinks is not None:
                scores = np.column_stack([scores, np.full(length, self.sinks[head])])
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            pattern[head] = weights / weights.sum(axis=1, keepdims=True)
        return pattern

    def _heads(self, x: Array, weight: Array, bias: Array | None, gain: Array | None) -> Array:
        """Projected, normed and rotated, float64 (heads, T, width)."""
        projected = x @ weight.astype(np.float64).T + (0 if bias is None else bias)
        heads = projected.reshape(len(x), -1, self.width).swapaxes(0, 1)
        if gain is not None:
            heads = heads / np.sqrt((heads**2).mean(axis=-1, keepdims=True) + self.norm_eps) * gain
        return heads if self.rotary_base is None else _rotated(heads, self.rotary_base)


def _rotated(heads: Array, base: float) -> Array:
    _, length, width = heads.shape
    angles = np.outer(np.arange(length), base ** (-np.arange(0, width, 2) / width))
    first, second = heads[..., : width // 2], heads[..., width // 2 :]
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=-1
    )
