"""Rule record_surface: |x| over (token, dim) of the sequence and layer that hold a run's largest |x|."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from outlier_features import __version__
from outlier_features.dims.dims_schema import DIMS
from outlier_features.dump.dumps import DumpRange
from outlier_features.errors import DamagedFile, InputError
from outlier_features.extract.activations import Activations
from outlier_features.files.missing import require_had
from outlier_features.files.tables import write_table
from outlier_features.largest import largest_of_each
from outlier_features.model.bases import basis_of
from outlier_features.populations import EXCLUDED, PADDING, REST
from outlier_features.rules.kinds import followed
from outlier_features.surface.largest import Largest, find_largest
from outlier_features.surface.pooling import largest_indices, pooled_ranges
from outlier_features.surface.surface_schema import SURFACE
from outlier_features.tokens.token_text import read_texts, token_text
from outlier_features.tokens.tokens import Tokens

Array = np.ndarray[Any, Any]

ROWS, COLUMNS = 256, 512  # of the surface, at most
SELECTED = 64  # selected dims that have columns of their own, at most
LARGEST_DIMS = 16  # in each part of the positions, that have columns of their own
LARGEST_TOKENS = 32  # in each part of the positions, that have rows of their own
# What the largest |x| of a sequence that was run again may differ by, relative to what was recorded.
AGAIN = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}


def record_surface(
    activations: Sequence[Path | DumpRange],
    statistics: Path,
    tokens: Path,
    texts: Path,
    dims: Path,
    surface: Path,
) -> None:
    """Write the table `surface`, of at most 256 rows of tokens times 512 columns of dims.

    activations   the run's files of activations, sequences of a dump, or the file that rule rerun_largest left
    statistics, tokens, texts, dims   of the run

    Raises `InputError` where a file is of another run, none holds the sequence, it could not be run again, or the
    sequence's largest `abs(x)` is not the one that the statistics have (run again, up to 0.1 % in float32; 16-bit
    products differ by more).
    """
    run = Tokens.read(tokens)
    file = run.files.tensors(statistics)
    spelled = read_texts(texts, run)
    dim_rows, provenance = run.files.table(dims, DIMS)
    largest = find_largest(file)
    frame, rerun = pl.DataFrame(schema=SURFACE.schema), False
    if largest is not None:
        path, chunk = _holding(largest.sequence, activations, run)
        rerun = bool(chunk.provenance.get("rerun"))
        tensors = chunk.sites[largest.site]
        values = tensors.sequence(tensors.layers.index(largest.layer), largest.sequence - chunk.provenance["start"])
        parts = run.parts[largest.sequence]
        _require_largest(values[parts != PADDING], largest, path, AGAIN[file.provenance["dtype"]] if rerun else None)
        frame = pool_surface(values, parts, selected_dims(dim_rows, provenance, largest.site)).with_columns(
            pl.lit(largest.site).alias("site"),
            pl.lit(largest.layer).alias("layer"),
            pl.lit(largest.sequence).alias("sequence"),
            pl.when(pl.col("token_first") == pl.col("token_last"))
            .then(
                pl.col("token_first").map_elements(
                    lambda token: token_text(spelled, run, largest.sequence, token), return_dtype=pl.String
                )
            )
            .alias("token_text"),
        )
    facts = {"largest": largest and asdict(largest), "rerun": rerun, "package_version": __version__}
    write_table(surface, frame, SURFACE, {**provenance, **facts})


def _holding(
    sequence: int, activations: Sequence[Path | DumpRange], run: Tokens
) -> tuple[Path | DumpRange, Activations]:
    """The file, or the part of a dump, that has a sequence."""
    for where in activations:
        chunk = Activations.open(where, run)
        require_had(chunk.provenance)
        if chunk.provenance["start"] <= sequence < chunk.provenance["stop"]:
            return where, chunk
    raise DamagedFile(str(activations[-1]), f"expected sequence {sequence} in it or in a file before it")


def _require_largest(values: Array, largest: Largest, where: Path | DumpRange, tolerance: float | None) -> None:
    """`tolerance` is for a sequence that was run again: there it is the model that differs, not the file."""
    found = float(np.abs(values).max())
    if not abs(found - largest.max_abs) <= (tolerance or 0.0) * largest.max_abs:
        text = (
            f"the largest |x| of {largest.site} in layer {largest.layer}, sequence {largest.sequence}, is {found:.6g}, "
            f"expected {largest.max_abs:.6g} as in the run's statistics"
        )
        raise DamagedFile(str(where), text) if tolerance is None else InputError(f"{text}, though it was run again")


def selected_dims(dims: pl.DataFrame, provenance: Mapping[str, Any], site: str) -> list[int]:
    """Dims of the table `dims` that a rule with `follow_up` selects on the site's basis in any population, the largest
    first."""
    rules = followed(provenance["rules"], basis_of(site))
    chosen = dims.filter(pl.col("selected"), pl.col("rule").is_in([*rules]))
    return largest_of_each(chosen, "max_abs", "dim")["dim"].to_list()


def pool_surface(values: Array, parts: Array, selected: Sequence[int]) -> pl.DataFrame:
    """The cells of a surface: where and what the largest `abs(x)` of neighbouring tokens and dims is.

    values     float32 (T, H)
    parts      of the positions, uint8 (T,), see `populations`; padding is left out
    selected   dims, the largest first; those after the first 64 may be pooled

    Excluded positions and the rest never share a cell. Cells are ordered by token, then by dim; of equal values in a
    cell it is the one of the first token, then of the first dim. Columns as in the table `surface`.
    """
    sizes = np.abs(values)
    wanted = np.array(selected[:SELECTED], int)
    columns = pooled_ranges(_mask(sizes.shape[1], wanted, *_largest(sizes, parts, 0, LARGEST_DIMS)), COLUMNS)
    rows = _rows(parts, _mask(len(parts), *_largest(sizes, parts, 1, LARGEST_TOKENS)))
    places = np.stack([first + sizes[:, first : last + 1].argmax(axis=1) for first, last in columns], axis=1)
    found = np.take_along_axis(sizes, places, axis=1)
    frames = []
    for first, last, part in rows:
        members = first + np.flatnonzero(parts[first : last + 1] == part)
        token = members[found[members].argmax(axis=0)]
        dim = places[token, np.arange(len(columns))]
        frames.append(
            pl.DataFrame(
                {
                    "token_first": first, "token_last": last, "excluded": part == EXCLUDED,
                    "dim_first": columns[:, 0], "dim_last": columns[:, 1],
                    "selected": np.isin(dim, selected) & (columns[:, 0] == columns[:, 1]),
                    "max_abs": sizes[token, dim], "value": values[token, dim], "token": token, "dim": dim,
                }
            )
        )  # fmt: skip
    return pl.concat(frames)


def _largest(sizes: Array, parts: Array, axis: int, most: int) -> list[Array]:
    """Of each part of the positions, the dims (axis 0) or tokens (axis 1) with the largest values."""
    found = []
    for part in (EXCLUDED, REST):
        masked = np.where((parts == part)[:, None], sizes, -np.inf)
        found.append(largest_indices(masked.max(axis=axis), most))
    return found


def _mask(size: int, *indices: Array) -> Array:
    mask = np.zeros(size, bool)
    mask[np.concatenate(indices)] = True
    return mask


def _rows(parts: Array, own: Array) -> list[tuple[int, int, int]]:
    """First and last position and part of each row, at most 256: a range that has both parts makes two rows."""
    real = np.flatnonzero(parts != PADDING)
    most = ROWS
    while True:
        ranges = real[pooled_ranges(own[real], most)]
        rows = [
            (int(first), int(last), part)
            for first, last in ranges
            for part in (EXCLUDED, REST)
            if (parts[first : last + 1] == part).any()
        ]
        if len(rows) <= ROWS:
            return rows
        most -= -(-(len(rows) - ROWS) // 2)  # a range less is two rows less at most
