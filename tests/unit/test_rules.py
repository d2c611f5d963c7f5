"""Selection, sensitivity, shapes and layer figures against a brute force over the dense activations."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from outlier_features.detect.detect_outliers import detect_outliers
from outlier_features.detect.detection import DetectionFiles, DetectionSettings
from outlier_features.detect.summarize_layers import summarize_layers
from outlier_features.dims.analyze_emergence import analyze_emergence
from outlier_features.dims.filter_systematic import filter_systematic
from outlier_features.dims.steps import steps
from outlier_features.files.tables import write_table
from outlier_features.files.tensorfile import write_tensors
from outlier_features.populations import position_parts
from outlier_features.rules.configured import counted_at
from outlier_features.tokens.texts_schema import TEXTS
from outlier_features.tokens.tokens import tokens_digest

SITES = ("attn_norm", "mlp_norm", "resid_post")
N, L, T, H = 7, 4, 24, 12
FLOORS = {"attn_norm": 4.0, "mlp_norm": 4.0, "resid_post": 100.0}
DETTMERS = {
    "threshold": 6.0, "layer_share": 0.25, "position_share": 0.06,
    "layer_reading": "blocks", "position_reading": "union",
}  # fmt: skip
MASSIVE = {"threshold": 100.0, "ratio": 1000.0}
GRID = {"thresholds": [4.0, 6.0, 9.0], "layer_shares": [0.0, 0.25, 0.6], "position_shares": [0.0, 0.06, 0.5]}


def rules_of(dettmers=DETTMERS, massive=MASSIVE, grid=GRID):
    """The rules as the configuration has them."""
    systematic = {"kind": "systematic", **dettmers, "sensitivity": grid["thresholds"]}
    return {
        "dettmers": {**systematic, "sites": ["attn_norm", "mixer_norm", "mlp_norm"]},
        "dettmers_heads": {**systematic, "sites": ["attn_heads"]},
        "massive": {"kind": "massive", **massive},
    }


@dataclass
class Run:
    folder: Path
    x: dict  # site -> (N, L, T, H), NaN where a block lacks the site
    parts: np.ndarray


def planted(rng):
    x = {site: rng.standard_normal((N, L, T, H)).astype(np.float32) for site in SITES}
    x["attn_norm"][:, 1:, :, 3] += 8  # persistent, in most blocks
    x["mlp_norm"][:, 2, ::5, 5] -= 9  # one block, some positions
    x["mlp_norm"][2:4, :, 7, 8] = 20  # two sequences, one position
    x["resid_post"] *= 0.1
    x["resid_post"][:, 1:3, 0, 2] = -400  # massive at the first position
    x["resid_post"][3, 2, 9, 6] = 250  # massive elsewhere
    x["resid_post"][5, 1, 4, 7] = 101
    x["mlp_norm"][:, 0] = np.nan  # block 0 lacks mlp_norm
    return x


# Sequences in a chunk, and max_density: all hits are listed, none, or those of a few sequences and sites.
@pytest.fixture(scope="module", params=[(7, 0.5), (3, 0.5), (7, 0.0), (2, 0.0), (3, 0.07)], ids=str)
def run(request, tmp_path_factory):
    """A run in chunks, some of its sequences padded."""
    chunk, max_density = request.param
    rng = np.random.default_rng(0)
    x = planted(rng)
    special, mask = np.zeros((N, T), bool), np.ones((N, T), bool)
    special[1, 5] = special[4, 9] = True
    mask[2, 17:] = mask[6, 20:] = False
    ids = rng.integers(0, 99, (N, T)).astype(np.int32)
    offsets = np.stack([np.arange(T), np.arange(T) + 1], axis=1)[None].repeat(N, 0).astype(np.int32)
    folder = tmp_path_factory.mktemp(f"chunks{chunk}")
    digest = tokens_digest(ids, special, mask)
    provenance = {"model": "m", "corpus": "c", "special_tokens": {}, "tokens_sha256": digest,
                  "sequences": N, "blocks": L, "model_revision": "r", "dtype": "float32", "attention": "sdpa",
                  "sites": sorted(SITES)}  # fmt: skip
    write_tensors(folder / "tokens", {"tokens": ids, "special": special, "mask": mask, "offsets": offsets}, provenance)
    texts = pl.DataFrame({"sequence": range(N), "text": ["abcdefghijklmnopqrstuvwxyz"] * N})
    write_table(folder / "texts", texts, TEXTS, {"tokens_sha256": digest})
    chunks = range(0, N, chunk)
    for start in chunks:
        stop = min(start + chunk, N)
        tensors = {
            f"{site}.{layer}": np.ascontiguousarray(x[site][start:stop, layer])
            for site, layer in itertools.product(SITES, range(L))
            if not np.isnan(x[site][0, layer, 0, 0])
        }
        write_tensors(folder / f"activations{start}", tensors, {**provenance, "start": start, "stop": stop})
        detect_outliers(
            folder / f"activations{start}", folder / "activations0", folder / "tokens",
            DetectionFiles(
                {site: folder / f"{site}{start}" for site in SITES}, folder / f"scaled{start}",
                folder / f"pairs{start}", folder / f"positions{start}", folder / f"statistics{start}",
            ),
            DetectionSettings(FLOORS, max_density, counted_at(rules_of())), threads=2,
        )  # fmt: skip
    summarize_layers(
        [folder / f"statistics{start}" for start in chunks],
        folder / "statistics", folder / "layers", folder / "distribution", folder / "site_positions",
    )  # fmt: skip
    filter_systematic(
        {site: [folder / f"{site}{start}" for start in chunks] for site in SITES},
        [folder / f"scaled{start}" for start in chunks], [folder / f"pairs{start}" for start in chunks],
        [folder / f"positions{start}" for start in chunks],
        folder / "statistics", folder / "tokens", folder / "texts",
        folder / "pairs", folder / "sensitivity", folder / "massive", folder / "positions",
        rules=rules_of(), grid=GRID,
    )  # fmt: skip
    analyze_emergence(folder / "pairs", folder / "statistics", folder / "dims", folder / "emergence")
    return Run(folder, x, position_parts(special, mask))


def chosen(run, population, n):
    """Positions of a population in sequence n."""
    return np.flatnonzero(run.parts[n] == 1) if population == "without_first" else np.flatnonzero(run.parts[n] != 2)


def shares(hit, positions):
    """The readings of one pair, from hits (site tensor, position) and the number of positions."""
    tensors = len(hit)
    at = hit.sum(1)
    return {
        "sites_share": (at > 0).sum() / tensors,
        "union": hit.any(0).sum() / positions,
        "pooled": hit.sum() / (positions * tensors),
        "affected": (at[at > 0] / positions).mean(),
    }


def dettmers_pairs(run, population, threshold):
    """Every pair with a hit, by the definition, from the dense activations."""
    tensors = [(site, layer) for layer in range(L) for site in SITES[:2] if not np.isnan(run.x[site][0, layer, 0, 0])]
    pairs = {}
    for n, h in itertools.product(range(N), range(H)):
        where = chosen(run, population, n)
        values = np.stack([run.x[site][n, layer, where, h] for site, layer in tensors])
        hit = np.abs(values) >= threshold
        if hit.any():
            blocks = {layer for (_, layer), row in zip(tensors, hit, strict=True) if row.any()}
            pairs[n, h] = shares(hit, len(where)) | {
                "blocks": len(blocks) / L, "occurrences": hit.sum(), "locations": hit.any(0).sum(),
                "positive": (values >= threshold).sum(), "max_abs": np.abs(values)[hit].max(),
                "first_layer": min(blocks), "last_layer": max(blocks),
            }  # fmt: skip
    return pairs


def massive_entries(run, population):
    found = {}
    for n, layer in itertools.product(range(N), range(L)):
        where = chosen(run, population, n)
        values = run.x["resid_post"][n, layer, where].astype(np.float64)
        median = np.median(np.abs(values))
        for t, h in np.argwhere((np.abs(values) > 100) & (np.abs(values) >= 1000 * median)):
            found[n, layer, int(where[t]), int(h)] = (values[t, h], median)
    return found


@pytest.mark.parametrize("population", ["all", "without_first"])
def test_pairs(run, population):
    table = pl.read_parquet(run.folder / "pairs").filter(population=population, rule="dettmers")
    expected = dettmers_pairs(run, population, 6.0)
    assert set(table.select("sequence", "dim").rows()) == set(expected)
    for row in table.iter_rows(named=True):
        assert row["sites"] == "attn_norm+mlp_norm"
        for name, value in expected[row["sequence"], row["dim"]].items():
            assert row[name] == pytest.approx(value, rel=1e-12), name
        assert row["passes"] == (row["blocks"] >= 0.25 and row["union"] >= 0.06)
    assert 0 < table["passes"].sum() < len(table)


@pytest.mark.parametrize("population", ["all", "without_first"])
def test_sensitivity(run, population):
    table = pl.read_parquet(run.folder / "sensitivity").filter(population=population)
    assert len(table) == 3 * 3 * 3 * 2 * 3
    for row in table.iter_rows(named=True):
        passing = [
            pair
            for pair, found in dettmers_pairs(run, population, row["threshold"]).items()
            if found[row["layer_reading"]] >= row["layer_share"]
            and found[row["position_reading"]] >= row["position_share"]
        ]
        assert (row["pairs"], row["dims"]) == (len(passing), len({dim for _, dim in passing}))


def test_massive(run):
    table = pl.read_parquet(run.folder / "massive")
    by_population = {name: massive_entries(run, name) for name in ("all", "without_first")}
    for population, expected in by_population.items():
        rows = table.filter(f"massive_{population}")
        assert set(rows.select("sequence", "layer", "token", "dim").rows()) == set(expected)
    for row in table.filter("massive_all").iter_rows(named=True):
        value, median = by_population["all"][row["sequence"], row["layer"], row["token"], row["dim"]]
        assert (row["value"], row["median"]) == (value, median)
        assert row["ratio"] == pytest.approx(abs(value) / median)
        assert row["excluded"] == (run.parts[row["sequence"], row["token"]] == 0)
        assert row["token_text"] == "abcdefghijklmnopqrstuvwxyz"[row["token"]]
    assert any(not row["excluded"] for row in table.iter_rows(named=True))


@pytest.mark.parametrize("population", ["all", "without_first"])
@pytest.mark.parametrize("rule", ["dettmers", "massive"])
def test_dims(run, population, rule):
    pairs = pl.read_parquet(run.folder / "pairs").filter(population=population, rule=rule)
    table = pl.read_parquet(run.folder / "dims").filter(population=population, rule=rule)
    assert set(table["dim"]) == set(pairs["dim"]) and len(table) == pairs["dim"].n_unique()
    profile = np.zeros((L, H))
    for layer, h in itertools.product(range(L), range(H)):
        x = [run.x["resid_post"][n, layer, chosen(run, population, n), h] for n in range(N)]
        profile[layer, h] = max(np.abs(one).max() for one in x)
    for row in table.iter_rows(named=True):
        mine = pairs.filter(dim=row["dim"]).to_dicts()
        passing = [pair for pair in mine if pair["passes"]]
        assert row["occurrences"] == sum(pair["occurrences"] for pair in mine)
        assert row["positive"] + row["negative"] == row["occurrences"]
        assert row["one_sided"] == (max(row["positive"], row["negative"]) >= 0.95 * row["occurrences"])
        assert (row["sequences"], row["sequences_passing"]) == (len(mine), len(passing))
        assert row["selected"] == (len(passing) > 0) and row["selected_majority"] == (len(passing) > N / 2)
        for name in ("blocks", "sites_share", "union", "pooled", "affected"):
            assert row[f"{name}_mean"] == pytest.approx(np.mean([pair[name] for pair in mine]))
            assert row[f"{name}_median"] == pytest.approx(np.median([pair[name] for pair in mine]))
        if not passing:
            assert (row["kind"], row["step_up"], row["step_down"]) == (None, None, None)
            continue
        union = np.mean([pair["union"] for pair in passing])
        assert row["kind"] == ("persistent" if union >= 0.5 else "massive" if union <= 0.05 else "mixed")
        curve = profile[:, row["dim"]]
        up = next(layer for layer in range(L) if curve[layer] >= curve.max() / 2)
        assert row["step_up"] == up
        assert row["step_down"] == next((l for l in range(up, L) if curve[l] < curve.max() / 2), None)  # noqa: E741


@pytest.mark.parametrize("population", ["all", "without_first"])
def test_layers(run, population):
    table = pl.read_parquet(run.folder / "layers").filter(population=population)
    assert len(table.filter(site="mlp_norm")) == L - 1  # block 0 lacks it
    for row in table.iter_rows(named=True):
        x = [run.x[row["site"]][n, row["layer"], chosen(run, population, n)].astype(np.float64) for n in range(N)]
        top = np.array([np.sort(np.abs(one), axis=None)[:-4:-1] for one in x])
        flat = np.concatenate(x)
        assert [row["top1"], row["top2"], row["top3"]] == pytest.approx(top.mean(0), rel=1e-9)
        assert row["median"] == pytest.approx(np.mean([np.median(np.abs(one)) for one in x]), rel=1e-12)
        assert (row["max"], row["positions"]) == (np.abs(flat).max(), len(flat))
        assert row["mean"] == pytest.approx(np.abs(flat).mean(), rel=1e-9)
        assert row["rms"] == pytest.approx(np.sqrt((flat**2).mean()), rel=1e-9)
        hit = np.abs(flat) >= 6
        assert row["occurrences"] == hit.sum()
        assert (row["dims_hit"], row["positions_hit"]) == (hit.any(0).sum(), hit.any(1).sum())
        centred = flat - flat.mean()
        excess = (centred**4).mean() / (centred**2).mean() ** 2 - 3
        assert row["kurtosis_flat_excess"] == pytest.approx(excess, rel=1e-5)


def test_emergence_has_the_extremes_of_every_dim_with_a_hit(run):
    table = pl.read_parquet(run.folder / "emergence").filter(population="all", site="resid_post")
    dims = pl.read_parquet(run.folder / "dims").filter(population="all")["dim"].unique()
    assert set(table["dim"]) == set(dims) and len(table) == len(dims) * L
    for row in table.iter_rows(named=True):
        values = np.concatenate([
            run.x["resid_post"][n, row["layer"], chosen(run, "all", n), row["dim"]] for n in range(N)
        ]).astype(np.float64)  # fmt: skip
        assert (row["low"], row["high"], row["max_abs"]) == (values.min(), values.max(), np.abs(values).max())
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [([1, 5, 10, 10, 4, 9], (1, 4)), ([10, 9, 8], (0, None)), ([0, 0, 0], (0, None)), ([1, 100, 49, 60], (1, 2))],
)
def test_steps(profile, expected):
    assert steps(np.array(profile, float)) == expected


@pytest.mark.parametrize("population", ["all", "without_first"])
def test_bins_of_the_distribution_hold_every_value(run, population):
    table = pl.read_parquet(run.folder / "distribution").filter(population=population)
    for site, layer in itertools.product(SITES, range(L)):
        rows = table.filter(site=site, layer=layer)
        if np.isnan(run.x[site][0, layer, 0, 0]):
            assert rows.is_empty()
            continue
        x = np.abs(np.concatenate([run.x[site][n, layer, chosen(run, population, n)] for n in range(N)]))
        assert rows["values"].sum() == x.size
        for row in rows.iter_rows(named=True):
            assert row["values"] == ((x >= row["low"]) & (x < row["high"])).sum() > 0


@pytest.mark.parametrize("population", ["all", "without_first"])
def test_means_by_position(run, population):
    """Of every site, layer and position that some sequence has, and of no other."""
    table = pl.read_parquet(run.folder / "site_positions").filter(population=population)
    found = {(row["site"], row["layer"], row["token"]): row for row in table.to_dicts()}
    assert len(found) == len(table)
    for site, layer, t in itertools.product(SITES, range(L), range(T)):
        having = [n for n in range(N) if t in chosen(run, population, n)]
        row = found.pop((site, layer, t), None)
        if not having or np.isnan(run.x[site][0, layer, 0, 0]):
            assert row is None
            continue
        values = run.x[site][having, layer, t].astype(np.float64)
        assert row["sequences"] == len(having)
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-12, abs=1e-12 * np.abs(values).max())
        assert row["mean_square"] == pytest.approx((values**2).mean(), rel=1e-12)
    assert not found


def hits_at(run, population, site, n, t):
    """Dims' values of all layers at a position, and which of them the site's rule calls hits."""
    values = run.x[site][n, :, t].astype(np.float64)
    if site != "resid_post":
        return np.abs(values), np.abs(values) >= 6
    where = chosen(run, population, n)
    median = np.median(np.abs(run.x[site][n][:, where].astype(np.float64)), axis=(1, 2))[:, None]
    return np.abs(values), (np.abs(values) > 100) & (np.abs(values) >= 1000 * median)


@pytest.mark.parametrize("population", ["all", "without_first"])
@pytest.mark.parametrize("site", SITES)
def test_positions(run, population, site):
    table = pl.read_parquet(run.folder / "positions").filter(population=population, site=site)
    rule = ("massive", 100.0) if site == "resid_post" else ("dettmers", 6.0)
    assert set(table.select("rule", "threshold").rows()) == {rule}
    found = {row["token"]: row for row in table.to_dicts()}
    for t in range(T):
        members = [n for n in range(N) if t in chosen(run, population, n)]
        if not members:
            assert t not in found
            continue
        at = [hits_at(run, population, site, n, t) for n in members]
        largest = np.nanmax([values for values, _ in at])
        assert found[t]["sequences"] == len(members)
        assert found[t]["sequences_hit"] == sum(hit.any() for _, hit in at)
        assert found[t]["occurrences"] == sum(hit.sum() for _, hit in at)
        assert found[t]["max_abs"] == (largest if largest >= FLOORS[site] else None)
    assert table["sequences_hit"].sum() > 0


def test_positions_add_up_to_the_pairs(run):
    positions, pairs = (pl.read_parquet(run.folder / name) for name in ("positions", "pairs"))
    by_rule = [table.group_by("population", "rule").agg(pl.col("occurrences").sum()) for table in (positions, pairs)]
    assert sorted(by_rule[0].rows()) == sorted(by_rule[1].rows())
