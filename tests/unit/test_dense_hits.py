"""Sequences with too many hits are counted instead of listed: every table is the same, for any limit and chunks."""

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from outlier_features.detect.detect_outliers import detect_outliers
from outlier_features.detect.detection import DetectionFiles, DetectionSettings
from outlier_features.detect.hits_schema import COUNTED_PAIRS, COUNTED_POSITIONS, HITS
from outlier_features.detect.summarize_layers import summarize_layers
from outlier_features.dims.dims_schema import PAIRS
from outlier_features.dims.filter_systematic import filter_systematic
from outlier_features.errors import DamagedFile, InputError
from outlier_features.files.tables import provenance_of, read_table, write_table
from outlier_features.files.tensorfile import TensorFile, write_tensors
from outlier_features.rules.configured import counted_at
from outlier_features.scan.counted_at import serving, serving_scales, uncounted
from outlier_features.tokens.texts_schema import TEXTS
from outlier_features.tokens.tokens import tokens_digest

SITES = ("attn_heads", "attn_norm", "mixer_norm", "mlp_norm", "mlp_out", "resid_post")
FLOORS = {"attn_heads": 3.0, "attn_norm": 0.7, "mixer_norm": 0.7, "mlp_norm": 0.5, "mlp_out": 1.5, "resid_post": 2.0}
DETTMERS = {
    "threshold": 4.1, "layer_share": 0.3, "position_share": 0.2, "layer_reading": "blocks", "position_reading": "union",
}  # fmt: skip
MASSIVE = {"threshold": 2.5, "ratio": 3.0}
GRID = {"thresholds": [3.0, 4.1, 6], "layer_shares": [0.0, 0.5], "position_shares": [0.0, 0.3]}


def rules_of(dettmers=DETTMERS, massive=MASSIVE, grid=GRID):
    """The rules as the configuration has them."""
    systematic = {"kind": "systematic", **dettmers, "sensitivity": grid["thresholds"]}
    return {
        "dettmers": {**systematic, "sites": ["attn_norm", "mixer_norm", "mlp_norm"]},
        "dettmers_heads": {**systematic, "sites": ["attn_heads"]},
        "massive": {"kind": "massive", **massive},
    }


FACTS = {
    "model": "m", "corpus": "c", "special_tokens": {}, "model_revision": "r", "dtype": "float32", "attention": "sdpa",
    "sites": list(SITES),
}  # fmt: skip
TABLES = ("pairs", "sensitivity", "massive", "positions", "layers", "distribution", "site_positions")


class Case:
    """Activations of a run: heavy tails of many scales, values that are thresholds, and sites that blocks lack."""

    def __init__(self, folder: Path, seed: int, shape: tuple[int, int, int, int], dtype: str = "float32"):
        self.folder = folder
        self.n, self.layers, self.t, self.h = shape
        rng = np.random.default_rng(seed)
        self.x = {}
        for site in SITES:
            width = self.h + 3 if site == "attn_heads" else self.h
            x = rng.standard_normal((self.n, self.layers, self.t, width))
            x *= np.exp(rng.normal(0, 0.7, (self.n, self.layers, 1, width)) + rng.normal(0, 0.8, (self.n, 1, 1, 1)))
            exact = rng.random(x.shape) < 0.02
            edges = [FLOORS[site], 3.0, 4.1, 6.0, MASSIVE["threshold"]]
            x[exact] = rng.choice(edges, exact.sum()) * rng.choice([-1, 1], exact.sum())
            self.x[site] = x.astype(np.float32).astype(dtype)
        self.blocks = {site: range(self.layers) for site in SITES} | {"mlp_norm": range(1, self.layers)}
        self.blocks |= {"attn_norm": range(0, self.layers, 2), "mixer_norm": range(1, self.layers, 2)}
        special, mask = rng.random((self.n, self.t)) < 0.1, np.ones((self.n, self.t), bool)
        for row in range(1, self.n, 2):
            mask[row, self.t - rng.integers(0, self.t) :] = False
        mask[:, 0] = True
        self.special, self.mask = special & mask, mask
        ids = rng.integers(0, 99, (self.n, self.t)).astype(np.int32)
        offsets = np.stack([np.arange(self.t), np.arange(self.t) + 1], axis=1)[None].repeat(self.n, 0).astype(np.int32)
        digest = tokens_digest(ids, self.special, self.mask)
        self.facts = FACTS | {"tokens_sha256": digest, "sequences": self.n, "blocks": self.layers}
        arrays = {"tokens": ids, "special": self.special, "mask": self.mask, "offsets": offsets}
        write_tensors(folder / "tokens", arrays, self.facts)
        texts = pl.DataFrame({"sequence": range(self.n), "text": ["x" * (self.t + 1)] * self.n})
        write_table(folder / "texts", texts, TEXTS, {"tokens_sha256": digest})

    def chunks(self, size: int) -> list[int]:
        return list(range(0, self.n, size))

    def detect(self, size: int, max_density: float, threads: int = 2, dettmers=DETTMERS, grid=GRID) -> None:
        for start in self.chunks(size):
            stop = min(start + size, self.n)
            tensors = {
                f"{site}.{layer}": np.ascontiguousarray(self.x[site][start:stop, layer])
                for site in SITES
                for layer in self.blocks[site]
            }
            write_tensors(self.folder / f"activations{start}", tensors, {**self.facts, "start": start, "stop": stop})
            detect_outliers(
                self.folder / f"activations{start}", self.folder / "activations0", self.folder / "tokens",
                DetectionFiles(
                    {site: self.folder / f"{site}{start}" for site in SITES}, self.folder / f"scaled{start}",
                    self.folder / f"pairs{start}", self.folder / f"positions{start}",
                    self.folder / f"statistics{start}",
                ),
                DetectionSettings(FLOORS, max_density, counted_at(rules_of(dettmers, MASSIVE, grid))), threads=threads,
            )  # fmt: skip

    def filter(self, size: int, dettmers=DETTMERS, massive=MASSIVE, grid=GRID) -> dict[str, pl.DataFrame]:
        chunks = self.chunks(size)
        summarize_layers(
            [self.folder / f"statistics{start}" for start in chunks],
            *(self.folder / name for name in ("statistics", "layers", "distribution", "site_positions")),
        )  # fmt: skip
        filter_systematic(
            {site: [self.folder / f"{site}{start}" for start in chunks] for site in SITES},
            [self.folder / f"scaled{start}" for start in chunks],
            [self.folder / f"pairs{start}" for start in chunks],
            [self.folder / f"positions{start}" for start in chunks],
            self.folder / "statistics", self.folder / "tokens", self.folder / "texts",
            self.folder / "pairs", self.folder / "sensitivity", self.folder / "massive", self.folder / "positions",
            rules=rules_of(dettmers, massive, grid), grid=grid,
        )  # fmt: skip
        return {name: pl.read_parquet(self.folder / name) for name in TABLES}

    def tables(self, size: int, max_density: float, **options) -> dict[str, pl.DataFrame]:
        self.detect(size, max_density, **options)
        return self.filter(size)

    @property
    def unlisted(self) -> int:
        """Pairs of a sequence and a site whose hits are counted."""
        file = TensorFile(self.folder / "statistics")
        return sum(int((file.array(f"{site}.listed") == 0).sum()) for site in SITES)


def require_equal(found: dict[str, pl.DataFrame], expected: dict[str, pl.DataFrame]) -> None:
    for name, table in expected.items():
        close = name == "layers"  # its moments are sums, in the order of the chunks
        sort = [c for c in table.columns if not table[c].dtype.is_float()] + ["threshold"] * (
            "threshold" in table.columns
        )
        one, other = (frame.sort(sort) if name == "sensitivity" else frame for frame in (found[name], table))
        assert_frame_equal(one, other, check_exact=not close, rel_tol=1e-9)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 5),
    max_density=st.sampled_from([0.0, 0.02, 0.1, 0.2, 0.4]),
    threads=st.integers(1, 3),
    shape=st.tuples(st.integers(1, 5), st.integers(2, 4), st.integers(3, 37), st.integers(4, 40)),
)
def test_counted_hits_make_the_same_tables(tmp_path_factory, seed, size, max_density, threads, shape):
    case = Case(tmp_path_factory.mktemp("dense"), seed, shape)
    expected = case.tables(shape[0], 1.0)
    assert case.unlisted == 0 and len(expected["pairs"])
    require_equal(case.tables(size, max_density, threads=threads), expected)
    if max_density == 0.0:
        assert case.unlisted > 0


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float16"])
def test_a_model_sized_run(tmp_path, dtype):
    """Some sequences and sites are counted, others listed; many tiles of positions, several hundred dims."""
    case = Case(tmp_path, 1, (6, 7, 130, 320), dtype)
    expected = case.tables(6, 1.0)
    listed = sum(len(read_table(tmp_path / f"{site}0", HITS)[0]) for site in SITES)
    require_equal(case.tables(2, 0.15), expected)
    assert 5 < case.unlisted < 6 * 6
    require_equal(case.tables(6, 0.02), expected)
    assert case.unlisted > 20
    dense = sum(len(read_table(tmp_path / f"{site}0", HITS)[0]) for site in SITES)
    massive, rest = len(expected["massive"]), 0.02 * sum(x.size for x in case.x.values())
    assert dense <= massive + rest < listed / 4


def test_what_is_listed_does_not_depend_on_chunks_and_the_share_is_the_data_s(tmp_path):
    case = Case(tmp_path, 3, (5, 3, 20, 16))
    found = []
    for size in (5, 2):
        case.tables(size, 0.15)
        found.append(pl.concat([read_table(tmp_path / f"mlp_norm{start}", HITS)[0] for start in case.chunks(size)]))
        dense = provenance_of(tmp_path / "pairs", PAIRS)["dense"]
        for site in SITES:
            x = np.abs(case.x[site][:, case.blocks[site]].swapaxes(1, 2)) >= np.float32(FLOORS[site])
            sequences = sum(x[n, case.mask[n]].mean() > 0.15 for n in range(5))
            share = pytest.approx(x[case.mask].mean())
            facts = {"floor": FLOORS[site], "share": share, "sequences": sequences}
            assert dense.get(site) == (facts if sequences else None)
    assert_frame_equal(*found)


def test_rules_that_were_counted_apply_again_and_others_are_refused(tmp_path):
    case = Case(tmp_path, 4, (3, 3, 20, 16))
    case.detect(3, 0.0)
    grid = GRID | {"thresholds": [3.0, 6]}
    others = {"dettmers": DETTMERS | {"threshold": 6, "layer_reading": "sites_share"}, "grid": grid}
    massive = {"threshold": 3.5, "ratio": 4.0}
    again = case.filter(3, massive=massive, **others)
    case.detect(3, 1.0)
    require_equal(again, case.filter(3, massive=massive, **others))
    case.detect(3, 0.0)
    for rule, words in (
        ({"dettmers": DETTMERS | {"threshold": 5.0}}, "lacks hits of attn_heads at the threshold 5"),
        ({"grid": GRID | {"thresholds": [3.5, 4.1]}}, "threshold 3.5"),
        ({"massive": MASSIVE | {"ratio": 2.0}}, "lacks values of resid_post by the ratio 2"),
        ({"massive": MASSIVE | {"threshold": 2.2}}, "lacks values of resid_post by the threshold 2.2"),
    ):
        with pytest.raises(InputError, match=words):
            case.filter(3, **rule)


@pytest.mark.parametrize(
    ("name", "table"), [("resid_post2", HITS), ("pairs2", COUNTED_PAIRS), ("positions2", COUNTED_POSITIONS)]
)
def test_a_chunk_of_another_run_is_refused(name, table, tmp_path):
    case = Case(tmp_path, 6, (4, 3, 20, 16))
    case.detect(2, 0.15)
    rows, facts = read_table(tmp_path / name, table)
    write_table(tmp_path / name, rows, table, facts | {"model": "another"})
    with pytest.raises(DamagedFile, match=rf"{name}: its model is 'another', expected 'm' as in .*tokens; one of them"):
        case.filter(2)


def test_a_chunk_is_counted_again_only_where_what_was_counted_does_not_serve(tmp_path):
    wanted = counted_at(rules_of())
    other = counted_at(rules_of(DETTMERS | {"threshold": 5.0}, MASSIVE, GRID))
    fewer = counted_at(rules_of(DETTMERS, MASSIVE | {"ratio": 7}, GRID | {"thresholds": [6.0]}))
    assert serving(wanted, tmp_path / "statistics0") == wanted  # nothing is there yet
    case = Case(tmp_path, 5, (2, 3, 20, 16))
    case.detect(2, 1.0)
    for rule in (wanted, other, fewer):
        assert serving(rule, tmp_path / "statistics0") == wanted  # listed hits serve every rule
    case.detect(2, 0.0)
    assert [serving(rule, tmp_path / "statistics0") for rule in (wanted, other, fewer)] == [wanted, other, wanted]
    (tmp_path / "statistics0").write_bytes(b"damaged")
    assert serving(other, tmp_path / "statistics0") == other


def test_scaled_values_are_listed_again_only_from_a_smaller_multiple_on(tmp_path):
    path = tmp_path / "statistics.safetensors"
    was = {"resid_post": {"token_rms": 3.0, "layer_rms": 4.0}, "attn_norm": {"gain": 5.0}}
    assert serving_scales(was, path) == was  # nothing is there yet
    write_tensors(path, {"x": np.zeros(1)}, {"scaled_at": was})
    for serves in (was, {"resid_post": {"token_rms": 6.0}}, {"attn_norm": {"gain": 5.5}}, {}):
        assert serving_scales(serves, path) == was
    for more in ({"resid_post": {"token_rms": 2.9}}, {"mlp_norm": {"gain": 9.0}}, {"attn_norm": {"token_rms": 9.0}}):
        assert serving_scales(more, path) == more
    write_tensors(path, {"x": np.zeros(1)}, {})
    assert serving_scales(was, path) == was


@pytest.mark.parametrize("dense", [s for k in range(3) for s in itertools.combinations(SITES, k)])
def test_only_what_a_dense_site_is_asked_for_can_be_lacking(dense):
    found, wanted = (
        counted_at(rules_of()),
        counted_at(rules_of(DETTMERS | {"threshold": 9.0}, MASSIVE, GRID)),
    )
    assert (uncounted(found, wanted, dense) is None) == (not {*SITES[:4]} & set(dense))
    assert uncounted(found, counted_at(rules_of(DETTMERS, {"threshold": 2.5, "ratio": 1}, GRID)), dense) is None or (
        "resid_post" in dense
    )
