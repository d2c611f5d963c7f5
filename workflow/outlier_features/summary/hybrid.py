"""Hybrids: models in which some blocks mix tokens by softmax attention, and the others in another way or not at all."""

from collections.abc import Mapping
from typing import Any

from outlier_features.wording import layers


def attention_of_hybrid(model: Mapping[str, Any]) -> list[int]:
    """The blocks of a hybrid that have attention; none of a model where all blocks have it, none has, or nobody knows.

    model   `model` of summary.json
    """
    found: list[int] = model.get("attention_blocks") or []
    return found if len(found) < model["blocks"] else []


def hybrid_sentence(model: Mapping[str, Any]) -> str:
    """Which blocks of a hybrid have attention; nothing of another model."""
    found = attention_of_hybrid(model)
    return f"Of its {model['blocks']:,} layers only {layers(found)} mix tokens by softmax attention." if found else ""
