"""Arguments of `transformers.BitsAndBytesConfig`: LLM.int8() with its threshold, and the modules that it leaves.

The class takes what it does not know as keys to pass over, so the file says there where it comes from.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outlier_features.files.artifacts import write_json
from outlier_features.quantize.schemes import LLM_INT8_THRESHOLD


def write_bitsandbytes(path: Path, skipped: Sequence[str], provenance: Mapping[str, Any]) -> None:
    """Write the arguments; with none to skip null, for which transformers leaves the head and what is tied to it."""
    arguments = {
        "load_in_8bit": True,
        "llm_int8_threshold": LLM_INT8_THRESHOLD,
        "llm_int8_skip_modules": [*skipped] or None,
    }
    write_json(path, {**arguments, **provenance})
