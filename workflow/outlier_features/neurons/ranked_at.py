"""Whether the neurons that a chunk's pass ranked serve what is wanted now: a pass is not run again for less."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outlier_features.errors import InputError
from outlier_features.files.tensorfile import TensorFile

RANKING = "ranking"  # in a provenance: what was asked for, None where the pass was to rank nothing

Ranking = Mapping[str, Any]  # `examples`, the length of lists, and `high_norm`


def serving_ranking(wanted: Ranking | None, store: Path) -> Ranking | None:
    """What a chunk's pass is to rank: `wanted`, or what its store says that it ranked, where that serves.

    Longer lists serve shorter ones; and whatever was ranked serves where nothing is wanted.
    """
    try:
        found = TensorFile(store).provenance[RANKING]
        if wanted is None:
            return found  # type: ignore[no-any-return]
        serves = found["high_norm"] == wanted["high_norm"] and found["examples"] >= wanted["examples"]
        return found if serves else wanted
    except (OSError, InputError, LookupError, TypeError):
        return wanted
