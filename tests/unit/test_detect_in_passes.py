"""Activations that are counted as they leave the model give, bit by bit, what those give that were written first."""

from itertools import pairwise

import numpy as np
import pytest

from outlier_features.detect.detect_in_passes import detect_in_passes
from outlier_features.detect.detect_outliers import detect_outliers
from outlier_features.detect.detection import DetectionFiles, DetectionSettings
from outlier_features.detect.hits_schema import COUNTED_PAIRS, COUNTED_POSITIONS, HITS, SCALED_HITS
from outlier_features.detect.layers_schema import SITE_POSITIONS
from outlier_features.detect.summarize_layers import summarize_layers
from outlier_features.extract.extract_activations import extract_activations
from outlier_features.files.tables import read_table
from outlier_features.files.tensorfile import TensorFile
from test_extract_activations import SETTINGS, Run, resid_post

SITES = SETTINGS["sites"]
COUNTED = {
    "pairs": {"dettmers": {"sites": ["attn_norm", "mlp_norm"], "thresholds": [1.0, 2.0]}},
    "listed": {"resid_post": {"threshold": 0.5, "ratio": 3.0}},
}
SCALED = {"resid_post": {"token_rms": 1.5, "layer_rms": 1.5}, "attn_norm": {"gain": 1.2}}
# Some sequences of attn_norm are dense, all of resid_post are, few of mlp_norm.
LOOKED_FOR = DetectionSettings({"attn_norm": 1.8, "mlp_norm": 2.2, "resid_post": 0.01}, 0.05, COUNTED, SCALED)
TABLES = {"scaled_hits": SCALED_HITS, "counted_pairs": COUNTED_PAIRS, "counted_positions": COUNTED_POSITIONS}
CHUNKS = [(0, 2), (2, 4), (4, 7), (7, 9)]  # the last begins after the last sequence


def files_of(folder, start):
    names = ("scaled_hits", "counted_pairs", "counted_positions")
    return DetectionFiles(
        {site: folder / f"{site}{start}" for site in SITES},
        *(folder / f"{name}{start}" for name in names),
        folder / f"statistics{start}",
    )


def found(folder, start):
    """All that a chunk's files hold: rows and provenances, tensors as bytes."""
    files = files_of(folder, start)
    tables = {**dict.fromkeys(SITES, HITS), **TABLES}
    paths = {**files.hits, **{name: getattr(files, name) for name in TABLES}}
    rows = {name: read_table(paths[name], tables[name]) for name in paths}
    tensors = {name: TensorFile(path) for name, path in (("s", files.statistics), ("l", folder / f"losses{start}"))}
    return (
        {name: frame for name, (frame, _) in rows.items()},
        {name: file.array(one).tobytes() for name, file in tensors.items() for one in file.entries},
        {
            name: {key: value for key, value in said.items() if key != "job"}
            for name, said in (*((name, said) for name, (_, said) in rows.items()),
                               *((name, file.provenance) for name, file in tensors.items()))
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", {}),
        pytest.param("olmoe", {}, marks=pytest.mark.slow),
        ("bert", {}),
        ("llama", {"dtype": "bfloat16"}),
        ("gpt2", {"placement": "layerwise"}),
    ],
)
def test_nothing_differs(name, settings, tmp_path, monkeypatch):
    run = Run(tmp_path, name, shape=(6, 24), lengths=[24, 24, 3, 10, 24, 1])
    chosen = SETTINGS | settings
    for folder in ("stored", "passes"):
        (tmp_path / folder).mkdir()
    stored, passes = tmp_path / "stored", tmp_path / "passes"
    for start, stop in CHUNKS:
        extract_activations(
            run.source, run.tokens, stored / f"activations{start}", stored / f"losses{start}",
            stored / f"neurons{start}", stored / f"channels{start}", start=start, stop=stop, **chosen,
        )  # fmt: skip
        detect_outliers(
            stored / f"activations{start}", stored / "activations0", run.tokens, files_of(stored, start), LOOKED_FOR,
            threads=2,
        )  # fmt: skip
        detect_in_passes(
            run.source, run.tokens, passes / f"losses{start}", passes / f"neurons{start}", passes / f"channels{start}",
            files_of(passes, start), LOOKED_FOR, start=start, stop=stop, first_stop=CHUNKS[0][1], **chosen,
        )  # fmt: skip
        expected_rows, expected_arrays, expected_said = found(stored, start)
        rows, arrays, said = found(passes, start)
        assert rows.keys() == expected_rows.keys() and arrays == expected_arrays
        for table, frame in rows.items():
            assert frame.equals(expected_rows[table]), table
        assert said == expected_said
        if start < 6:
            assert len(rows["scaled_hits"]) and len(rows["counted_positions"]) and len(rows["mlp_norm"])
    assert not [path for path in passes.rglob("*") if path.name.startswith(("activations", "."))]


@pytest.mark.parametrize(("name", "blocks"), [("llama", "model.layers"), ("bert", "encoder.layer")])
def test_means_by_position_are_of_what_hooks_see(name, blocks, tmp_path):
    """Of sequences of several lengths, each run for itself and without padding."""
    lengths = [24, 24, 3, 10, 24, 1]
    run, tables = Run(tmp_path, name, shape=(6, 24), lengths=lengths), []
    for cuts in ([0, 2, 5, 6], [0, 6]):
        folder = tmp_path / f"{len(cuts)}"
        folder.mkdir()
        for start, stop in pairwise(cuts):
            detect_in_passes(
                run.source, run.tokens, *(folder / kind for kind in ("losses", "neurons", "channels")),
                files_of(folder, start), LOOKED_FOR, start=start, stop=stop, first_stop=cuts[1], **SETTINGS,
            )  # fmt: skip
        statistics = [files_of(folder, start).statistics for start in cuts[:-1]]
        summarize_layers(statistics, *(folder / one for one in ("merged", "layers", "bins", "site_positions")))
        tables.append(read_table(folder / "site_positions", SITE_POSITIONS)[0])
    assert tables[0].equals(tables[1])
    model = run.model().eval()
    seen = [
        resid_post(model, model.get_submodule(blocks), ids[:length]).double().numpy()
        for ids, length in zip(run.ids, lengths, strict=True)
    ]
    for population, first in (("all", 0), ("without_first", 1)):
        found = tables[0].filter(population=population, site="resid_post")
        expected = [
            (layer, token, len(there), np.mean(there), np.mean(np.square(there)))
            for layer in range(len(seen[0]))
            for token in range(first, 24)
            if (there := [one[layer, token] for one in seen if one.shape[1] > token])
        ]
        keys, values = np.split(np.array(expected), [3], axis=1)
        assert found.select("layer", "token", "sequences").rows() == [*map(tuple, keys.astype(int).tolist())]
        np.testing.assert_allclose(found.select("mean", "mean_square").to_numpy(), values, rtol=1e-4, atol=1e-6)
