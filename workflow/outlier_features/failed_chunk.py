"""Chunks of a run fail alike, each after the model was loaded: once one has failed, the others are not tried.

Snakemake, told to go on with other models, would try them all. A later run tries them again.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from outlier_features.stage_log import last_word

SINCE = "OUTLIER_FEATURES_SINCE"  # when Snakemake began, in seconds from the epoch, where a job has one attempt
_PARTS = 4  # of the path of a chunk's log below `logs`: rule, model, corpus, chunk


def failed_chunk(log: Path, environment: Mapping[str, str] = os.environ) -> Path | None:
    """The log of another chunk of the same run and rule that failed since Snakemake began."""
    since, parts = environment.get(SINCE), log.absolute().parts
    if since is None or len(parts) <= _PARTS or parts[-_PARTS - 1] != "logs":
        return None
    for other in sorted(log.parent.glob("*.log")):
        try:
            if other.name != log.name and other.stat().st_mtime >= float(since):
                word = last_word(other)
                if word is not None and word.is_failure:
                    return other
        except OSError:
            continue
    return None
