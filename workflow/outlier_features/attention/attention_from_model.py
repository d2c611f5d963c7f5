"""The attention patterns of one layer of a model, for sequences of token ids."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from outlier_features.attention.attention_patterns import LayerPatterns, find_attention, run_patterns
from outlier_features.errors import InputError
from outlier_features.model.models import load_model

Array = np.ndarray[Any, Any]


def attention_from_model(
    location: Path, sequences: Sequence[Array], layer: int, *, dtype: str, device: str
) -> tuple[list[Array], tuple[int, ...] | None]:
    """Patterns float32 (heads, T, T or T + 1) of each sequence, run by itself, and the KV head of each head."""
    loaded = load_model(location, dtype=dtype, device=device, attention="eager", trust_remote_code=False)
    attention = {at.layer: at for at in find_attention(loaded)}
    if layer not in attention:
        have = ", ".join(map(str, attention)) or "none"
        raise InputError(f"{location}: layer {layer} has no attention patterns, expected one of {have}")
    patterns: list[Array] = []

    def keep(found: LayerPatterns) -> None:
        patterns.append(found.pattern.float().cpu().numpy())

    for ids in sequences:
        if ids.max() >= loaded.vocab_size:
            raise InputError(f"{location}: found token id {ids.max()}, expected ids below {loaded.vocab_size}")
        run_patterns(loaded, [attention[layer]], torch.from_numpy(ids.astype(np.int64)).to(loaded.device), keep)
    return patterns, attention[layer].kv_heads
