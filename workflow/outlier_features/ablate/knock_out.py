"""Rule knock_out: what sublayers, heads, massive tokens and super weights do to massive activations and to the loss."""

from pathlib import Path
from typing import Unpack

import polars as pl

from outlier_features.ablate.knock_out_run import KnockOutRun
from outlier_features.ablate.knock_out_schema import KNOCK_OUT_DIMS, KNOCK_OUTS, SPIKES
from outlier_features.ablate.knock_out_targets import BASELINE, KnockOut, head_targets, massive_dims
from outlier_features.ablate.spikes import spikes_of
from outlier_features.ablate.super_weights_schema import SUPER_WEIGHTS
from outlier_features.dims.dims_schema import DIMS
from outlier_features.dims.dims_schema import MASSIVE as MASSIVE_TABLE
from outlier_features.errors import InputError
from outlier_features.files.missing import MISSING
from outlier_features.files.tables import write_table
from outlier_features.model.loading import Loading
from outlier_features.model.models import load_model
from outlier_features.rules.kinds import listing_rules
from outlier_features.tokens.tokens import Tokens


def knock_out(
    source: Path,
    tokens: Path,
    dims: Path,
    massive: Path,
    super_weights: Path,
    knock_outs: Path,
    knock_out_dims: Path,
    spikes: Path,
    *,
    sequences: int,
    length: int,
    batch_size: int,
    cost: float,
    **loading: Unpack[Loading],
) -> None:
    """Write `knock_outs`, a row for each variant of the model; `knock_out_dims`, what is left of massive activations in
    it; and `spikes`, both sides of each MLP's last linear layer in the unchanged model.

    The sample is that of the ablations, by the same `sequences`, `length` and `cost`; heads, which are many, have one
    of their own.

    The provenance has `knock_out`: sequences and tokens of both samples, the dims that are followed, and by target the
    blocks that it was not tried in, with the reason.

    Raises `InputError` where the files are of another run, or the model does not predict the next token.
    """
    run = Tokens.read(tokens)
    dim_rows, provenance = run.files.table(dims, DIMS)
    massive_rows = run.files.rows(massive, MASSIVE_TABLE)
    weight_rows, found = run.files.table(super_weights, SUPER_WEIGHTS)
    if provenance["no_loss"]:
        raise InputError(provenance["no_loss"])
    rules = listing_rules(provenance["rules"])
    loaded = load_model(Path(run.files.model(source)["location"]), **loading)
    passes = KnockOutRun(loaded, run.head(sequences, length), batch_size)

    def variants(number: int, heads: bool) -> list[KnockOut]:
        """Those on the first so many tokens of each sequence, which are the sample from now on."""
        sample = run.head(sequences, number)
        passes.take(sample, massive_dims(dim_rows, massive_rows, rules, sample.tokens.shape))
        return [BASELINE, *(head_targets(passes.heads) if heads else passes.targets(weight_rows))]

    frames: list[tuple[pl.DataFrame, pl.DataFrame]] = []
    lengths = []
    for heads in (False, True) if passes.heads else (False,):
        lengths.append(passes.affordable(variants(length, heads), run.tokens.size, cost))
        frames.append(passes.measured(variants(lengths[-1], heads), first=sum(len(rows) for rows, _ in frames)))
    both_sides = pl.DataFrame(schema=SPIKES.schema)
    if MISSING not in found:
        both_sides = spikes_of(loaded, passes.blocks, run.head(1, length), weight_rows, found["super_weight"])
    provenance |= {
        "knock_out": {
            "sequences": min(sequences, len(run.tokens)),
            "tokens": lengths[0],
            "head_tokens": lengths[1] if passes.heads else None,
            "dims": passes.followed,
            "not_tried": passes.not_tried,
        }
    }
    write_table(knock_outs, pl.concat([rows for rows, _ in frames]), KNOCK_OUTS, provenance)
    write_table(knock_out_dims, pl.concat([rows for _, rows in frames]), KNOCK_OUT_DIMS, provenance)
    write_table(spikes, both_sides, SPIKES, provenance)
