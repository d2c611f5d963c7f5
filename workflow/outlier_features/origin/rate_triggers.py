"""Rule rate_triggers: how often tokens of each class have a massive activation."""

from collections import Counter
from pathlib import Path

import polars as pl

from outlier_features.dims.dims_schema import MASSIVE
from outlier_features.files.tables import write_table
from outlier_features.origin.token_classes import CLASSES, classes_of
from outlier_features.origin.trigger_schema import TRIGGERS
from outlier_features.rules.kinds import listing_rules
from outlier_features.tokens.token_text import read_texts
from outlier_features.tokens.tokens import Tokens


def rate_triggers(tokens: Path, texts: Path, massive: Path, triggers: Path) -> None:
    """Write `triggers` from the run's table of massive activations, of the rules that are followed.

    Raises `InputError` where a file is of another run.
    """
    run = Tokens.read(tokens)
    spelled = read_texts(texts, run)
    rows, provenance = run.files.table(massive, MASSIVE)
    followed = rows.filter(pl.col("massive_all"), pl.col("rule").is_in(listing_rules(provenance["rules"])))
    classes = [classes_of(spelled, run, sequence) for sequence in range(len(run.tokens))]
    write_table(triggers, trigger_rows(followed, classes), TRIGGERS, provenance)


def trigger_rows(massive: pl.DataFrame, classes: list[list[str | None]]) -> pl.DataFrame:
    """The rows of `TRIGGERS`: the dims with the most massive tokens first, of each all classes that the run has.

    classes   of each sequence and position, None of padding
    """
    sizes = Counter(one for sequence in classes for one in sequence if one)
    places = massive.group_by("dim", "sequence", "token").agg(max_abs=pl.col("value").abs().max())
    found: dict[int, dict[str, list[float]]] = {}
    for dim, sequence, token, value in places.select("dim", "sequence", "token", "max_abs").iter_rows():
        name = classes[sequence][token]
        if name:
            found.setdefault(dim, {}).setdefault(name, []).append(value)
    order = sorted(found, key=lambda dim: (-sum(map(len, found[dim].values())), dim))
    rows = [
        {
            "dim": dim,
            "token_class": name,
            "tokens": sizes[name],
            "massive": len(values),
            "rate": len(values) / sizes[name],
            "max_abs": max(values, default=None),
        }
        for dim in order
        for name in CLASSES
        if sizes[name]
        for values in [found[dim].get(name, [])]
    ]
    return pl.DataFrame(rows, schema=TRIGGERS.schema)
