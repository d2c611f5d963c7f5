"""Rule attribute_logits: which heads and neurons push the logits of the tokens that come next."""

import sys
from pathlib import Path
from typing import Unpack

import polars as pl
import torch
import transformers
from tqdm import tqdm

from outlier_features import __version__
from outlier_features.dims.dims_schema import DIMS
from outlier_features.files.table_writer import TableWriter
from outlier_features.files.tables import write_table
from outlier_features.gallery.attributed_logits import AttributedLogits
from outlier_features.gallery.attribution_schema import LOGIT_ATTRIBUTION, LOGIT_ATTRIBUTION_TOKENS
from outlier_features.gallery.attribution_sums import AttributionSums
from outlier_features.model.loading import Loading
from outlier_features.model.models import load_model
from outlier_features.tokens.tokens import Tokens


def attribute_logits(
    source: Path,
    tokens: Path,
    dims: Path,
    attribution: Path,
    attribution_tokens: Path,
    *,
    sequences: int,
    **loading: Unpack[Loading],
) -> None:
    """Write the direct contributions of each part of the model to the centred logits of the tokens that come next.

    source, tokens, dims   of the run
    sequences              first ones that are run

    Writes the tables `logit_attribution` and `logit_attribution_tokens`; memory holds one sequence, whatever their
    number.

    Raises `InputError` where a file is of another run, or the contributions are not known to sum to the model's logits.
    """
    run = Tokens.read(tokens)
    _, about = run.files.table(dims, DIMS)
    record = run.files.model(source)
    loaded = load_model(Path(record["location"]), **loading)
    model, sums = AttributedLogits(loaded), AttributionSums()
    some = run.head(sequences, run.tokens.shape[1])
    provenance = {
        **about,
        "attribution": {"sequences": len(some.tokens)},
        "one_part": model.one_part,
        "device": loaded.device.type,
        "attention": loaded.attention,
        "threads": [torch.get_num_threads()],
        "package_version": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    with TableWriter(attribution_tokens, LOGIT_ATTRIBUTION_TOKENS, provenance) as writer:
        for sequence in tqdm(range(len(some.tokens)), desc="attribute logits", unit="sequence", file=sys.stderr):
            ids = torch.from_numpy(some.tokens[sequence].astype("int64"))
            sums.begin()
            positions, logits = model.run(ids, torch.from_numpy(some.mask[sequence].copy()), sums.take)
            writer.write(sums.end(sequence, positions, ids[positions + 1], logits))
        write_table(attribution, pl.concat(sums.rows()), LOGIT_ATTRIBUTION, provenance)
