"""The same activations, whichever way they lie: the same tables and the same counts, and those of brute force."""

import json
import os
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from outlier_features.command.main import main
from outlier_features.detect.detect_outliers import detect_outliers
from outlier_features.detect.detection import DetectionFiles, DetectionSettings
from outlier_features.detect.hits_schema import HITS
from outlier_features.detect.summarize_layers import summarize_layers
from outlier_features.dump.dumps import Dump
from outlier_features.errors import InputError
from outlier_features.files import tensorfile
from outlier_features.files.layer_keys import layer_keys, nearest_keys
from outlier_features.files.tables import read_table
from outlier_features.files.tensorfile import TensorFile
from outlier_features.norms.gains_in_file import gains_in_file, named_gains
from outlier_features.scan import site_tensors as module
from outlier_features.tokens.token_text import read_texts, token_text
from test_count_locations import brute
from test_dumps import described

LENGTHS, LAYERS, DIMS = (5, 1, 7, 7, 3), (3, 7, 11), 12
F8 = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}


def planted(lengths=LENGTHS, seed=0):
    """Per sequence float32 (L, T, H), of values that every format has."""
    rng = np.random.default_rng(seed)
    found = []
    for length in lengths:
        x = rng.choice(np.array([0, -0.0, 0.125, -0.5, 1, 1.5, -2, 3, 4, -6], np.float32), (len(LAYERS), length, DIMS))
        x[:, :, 4] = 14
        x[1, length // 2, 9] = -448
        found.append(x)
    return found


def packed(x):
    return torch.from_numpy(np.concatenate(x, axis=1))  # (L, T of all, H)


def padded(x, fill=np.nan):
    out = np.full((len(x), len(LAYERS), max(LENGTHS) + 2, DIMS), fill, np.float32)
    for n, one in enumerate(x):
        out[n, :, : one.shape[1]] = one
    return torch.from_numpy(out)


def write(folder, layout, x, dtype=torch.float32):
    """Save sequences in some layout; returns the keys of a catalog entry that say so."""
    folder.mkdir(exist_ok=True)
    files = {}

    def put(name, **tensors):
        files[str(folder / name)] = {
            key: (value.to(dtype) if value.is_floating_point() else value).contiguous()
            for key, value in tensors.items()
        }

    lengths = torch.tensor(LENGTHS)
    ends = torch.tensor([0, *np.cumsum(LENGTHS)], dtype=torch.int32)
    entry = {}
    if layout == "padded, stacked":
        put("a.safetensors", acts=padded(x), n=lengths)
        entry = {"lengths": "n", "layers": list(LAYERS)}
    elif layout == "padded, two files, tokens before layers":
        put("a1.safetensors", acts=padded(x)[:2].permute(0, 2, 1, 3))
        put("a2.safetensors", acts=padded(x)[2:].permute(0, 2, 1, 3))
        entry = {"lengths": list(LENGTHS), "layers": list(LAYERS), "layout": "NTLH", "dump": str(folder / "a*")}
    elif layout == "padded, a tensor a layer":
        put("a.safetensors", n=lengths, **{f"blocks.{k}.hook": padded(x)[:, i] for i, k in enumerate(LAYERS)})
        entry = {"keys": "blocks.{layer}.hook", "lengths": "n"}
    elif layout == "padded, tokens first":
        hooks = {f"blocks.{k}.hook": padded(x)[:, i].transpose(0, 1) for i, k in enumerate(LAYERS)}
        put("a.safetensors", n=lengths, **hooks)
        entry = {"keys": "hook", "lengths": "n", "layout": "TNH"}
    elif layout == "packed, a tensor a layer":
        put("a.safetensors", cu=ends, **{f"model.layers.{k}.mlp": packed(x)[i] for i, k in enumerate(LAYERS)})
        entry = {"keys": "model.layers.{layer}.mlp", "lengths": "cu"}
    elif layout == "packed, layers first":
        put("a.safetensors", acts=packed(x))
        entry = {"lengths": [0, *np.cumsum(LENGTHS).tolist()], "layers": list(LAYERS)}
    elif layout == "a file a layer":
        for i, k in enumerate(LAYERS):
            put(f"layer-{k:02d}.safetensors", acts=packed(x)[i], cu=ends)
        entry = {"dump": str(folder / "layer-{layer}.safetensors"), "lengths": "cu"}
    elif layout == "a file a layer, named in the keys":
        for i, k in enumerate(LAYERS):
            put(f"{chr(ord('c') - i)}.safetensors", **{f"acts.{k}": packed(x)[i]}, n=lengths)
        entry = {"lengths": "n"}
    elif layout == "a file a layer and batch":
        for i, k in enumerate(LAYERS):
            for part, rows in enumerate((slice(0, 2), slice(2, 5))):
                name = f"part{part}-{k}.safetensors"
                put(name, acts=torch.from_numpy(np.concatenate(x[rows], axis=1))[i], n=lengths[rows])
        entry = {"dump": str(folder / "part*-{layer}.safetensors"), "lengths": "n"}
    elif layout == "a file a request":  # as vLLM's extract_hidden_states
        for n, one in enumerate(x):
            ids = torch.arange(100 * n, 100 * n + one.shape[1])
            put(f"req_{n + 8}.safetensors", acts=torch.from_numpy(one).transpose(0, 1), token_ids=ids)
        entry = {"dump": str(folder / "req_*.safetensors"), "layers": list(LAYERS)}
    elif layout == "a file a request, a tensor a layer":
        for n, one in enumerate(x):
            put(f"req_{n}.safetensors", **{f"h{k}_out": torch.from_numpy(one[i]) for i, k in enumerate(LAYERS)})
        entry = {"keys": "h{layer}_out"}
    elif layout == "numpy's, stacked":
        put("a.npz", acts=padded(x), n=lengths)
        entry = {"lengths": "n", "layers": list(LAYERS)}
    elif layout == "numpy's, an array a layer":  # which begin where the lengths of their names have it
        put("a.npz", n=lengths, **{f"blocks.{k}.hook": padded(x)[:, i] for i, k in enumerate(LAYERS)})
        entry = {"keys": "blocks.{layer}.hook", "lengths": "n"}
    for name, tensors in files.items():
        if name.endswith(".npz"):
            np.savez(name, **{key: tensor.numpy() for key, tensor in tensors.items()})
        else:
            save_file(tensors, name)
    key = entry.pop("keys", "acts")
    return {"dump": list(files), "keys": {"attn_norm": key}, **entry}


LAYOUTS = [
    "padded, stacked", "padded, two files, tokens before layers", "padded, a tensor a layer", "padded, tokens first",
    "packed, a tensor a layer", "packed, layers first", "a file a layer", "a file a layer, named in the keys",
    "a file a layer and batch", "a file a request", "a file a request, a tensor a layer", "numpy's, stacked",
    "numpy's, an array a layer",
]  # fmt: skip


def tables(folder, source):
    """Hits and the tables of layers and distribution of a run on a dump."""
    how = {key: value for key, value in source.items() if key not in ("dump", "keys")}
    files = [source["dump"]] if isinstance(source["dump"], str) else source["dump"]
    described(folder, files, source["keys"], "special", **how)
    dump, parts, frames = Dump.open(source), [], []
    for index, where in enumerate(dump.chunks()):
        hits, path = folder / f"hits{index}.parquet", folder / f"statistics{index}.safetensors"
        detect_outliers(
            where, replace(where, start=0, stop=1), folder / "tokens.safetensors",
            DetectionFiles(
                {"attn_norm": hits}, *(folder / f"{name}.parquet" for name in ("scaled", "pairs", "positions")), path
            ),
            DetectionSettings({"attn_norm": 4.0}, 1.0, {"pairs": {}, "listed": {}}),
            threads=2,
        )  # fmt: skip
        frames.append(read_table(hits, HITS)[0])
        parts.append(path)
    names = [folder / f"{name}.parquet" for name in ("layers", "distribution", "site_positions")]
    summarize_layers(parts, folder / "s.safetensors", *names)
    return [pl.concat(frames), *map(pl.read_parquet, names)]


def count(capsys, source, *options):
    arguments = ["--input", *([source["dump"]] if isinstance(source["dump"], str) else source["dump"])]
    for name in ("layout", "lengths", "layers"):
        if name in source:
            value = source[name]
            arguments += [f"--{name}", value if isinstance(value, str) else ",".join(map(str, value))]
    key = source["keys"]["attn_norm"]
    status = main(["count", *arguments, "--key", key, "--format", "json", "--quiet", *options])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)[key]


def brute_count(x):
    """`brute` of sequences of several lengths, as of one sequence of all, but for what depends on the positions."""
    flat = np.concatenate(x, axis=1)[None]
    expected = brute(flat, "float32", 6.0, False, 0.25)
    hit = np.abs(flat) > 6
    kept = (hit & (hit.mean(axis=1, keepdims=True) >= 0.25)).sum(axis=(0, 1, 3))
    tokens = np.zeros(max(LENGTHS), int)
    np.add.at(tokens, np.concatenate([np.arange(length) for length in LENGTHS]), kept)
    return expected, tokens


@pytest.mark.parametrize("layout", LAYOUTS)
def test_counts_equal_brute_force_in_every_layout(tmp_path, capsys, layout):
    x = planted()
    found = count(capsys, write(tmp_path / "d", layout, x))
    expected, tokens = brute_count(x)
    assert found["shape"] == [len(LENGTHS), len(LAYERS), max(LENGTHS), DIMS] and found["positions"] == sum(LENGTHS)
    for name in ("elements_over_threshold", "occurrences", "occurrence_rate", "locations", "location_rate",
                 "mean_layer_fraction", "quantiles", "dims", "magnitudes"):  # fmt: skip
        assert found[name] == expected[name], name
    for name in ("layers", "first_layers"):
        assert [row["layer"] for row in found[name]] == list(LAYERS)
        assert [row["count"] for row in found[name]] == [row["count"] for row in expected[name]]
    assert [row["count"] for row in found["tokens"]] == tokens.tolist()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return tables(folder, write(folder / "d", "padded, stacked", planted()))


def test_tables_equal_brute_force(reference):
    x, (hits, layers, distribution, site_positions) = planted(), reference
    expected = [
        (n, LAYERS[i], t, h, one[i, t, h], t == 0)
        for n, one in enumerate(x) for i, t, h in np.argwhere(np.abs(one) >= 4)
    ]  # fmt: skip
    assert hits.rows() == expected
    for population, first in (("all", 0), ("without_first", 1)):
        for i, layer in enumerate(LAYERS):
            parts = [one[i, first:] for one in x if one.shape[1] > first]
            row = layers.row(by_predicate=(pl.col("population") == population) & (pl.col("layer") == layer), named=True)
            flat = np.concatenate(parts).astype(np.float64)
            assert row["positions"] == len(flat)
            assert row["rms"] == pytest.approx(np.sqrt((flat**2).mean()), rel=1e-12)
            assert row["median"] == np.mean([np.median(np.abs(part)) for part in parts])
            bins = distribution.filter(population=population, layer=layer)
            assert bins["values"].sum() == flat.size
            for low, high, values in bins.select("low", "high", "values").rows():
                assert ((np.abs(flat) >= low) & (np.abs(flat) < max(high, 1e-300))).sum() == values
            by_token = site_positions.filter(population=population, layer=layer)
            assert by_token["token"].to_list() == [*range(first, max(LENGTHS))]
            for token, sequences, mean, square in by_token.select("token", "sequences", "mean", "mean_square").rows():
                there = np.array([one[i, token] for one in x if one.shape[1] > token], np.float64)
                assert sequences == len(there)
                assert (mean, square) == pytest.approx((there.mean(), (there**2).mean()), rel=1e-12)


@pytest.mark.parametrize("small", [False, True], ids=["whole", "small chunks and blocks"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables_are_the_same_in_every_layout(tmp_path, monkeypatch, reference, layout, small):
    if small:
        monkeypatch.setattr("outlier_features.dump.dumps._CHUNK_VALUES", 300)
        monkeypatch.setattr(module, "_COPIED", 20)
        monkeypatch.setattr("outlier_features.scan.scan._BLOCK_VALUES", 50)
        monkeypatch.setattr("outlier_features.locate.count_locations._SLAB_VALUES", 40)
        monkeypatch.setattr(tensorfile, "_MOST_OPEN", 2)
    for found, expected in zip(tables(tmp_path, write(tmp_path / "d", layout, planted())), reference, strict=True):
        assert_frame_equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, *F8])
@pytest.mark.parametrize("layout", ["padded, stacked", "a file a request"])
def test_tables_and_counts_are_the_same_in_every_format(tmp_path, capsys, reference, dtype, layout):
    source = write(tmp_path / "d", layout, planted(), dtype)
    for found, expected in zip(tables(tmp_path, source), reference, strict=True):
        assert_frame_equal(found, expected)
    plain = write(tmp_path / "f", layout, planted())
    for options in ([], ["--iqr-samples", "40", "--outlier-samples", "9"]):
        found, expected = count(capsys, source, *options), count(capsys, plain, *options)
        name = str(dtype).removeprefix("torch.").replace("e4m3fn", "e4m3")
        assert found.pop("dtype") == name and expected.pop("dtype") == "float32"
        assert found == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_are_the_same_in_every_layout(tmp_path, capsys, layout):
    options = ["--iqr-samples", "60", "--outlier-samples", "9"]
    expected = count(capsys, write(tmp_path / "a", "padded, stacked", planted()), *options)
    assert count(capsys, write(tmp_path / "b", layout, planted()), *options) == expected


@pytest.mark.parametrize("dtype", list(F8))
def test_8_bit_floats_have_torchs_values(dtype):
    out = np.empty((1, 256), np.uint16)
    module._convert(np.arange(256, dtype=np.uint8)[None], F8[dtype], out)
    expected = torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy()
    np.testing.assert_array_equal((out[0].astype(np.uint32) << 16).view(np.float32), expected)


def test_float64_is_rounded_to_the_nearest_float32(tmp_path, capsys):
    x = np.random.default_rng(0).standard_normal((3, 2, 4, 50)) * 6
    x[0, 0, 0, :3] = [6 + 1e-9, 1e-300, 3.4028235e38]
    save_file({"acts": torch.from_numpy(x)}, tmp_path / "a.safetensors")
    found = count(capsys, {"dump": str(tmp_path / "a.safetensors"), "keys": {"attn_norm": "acts"}})
    assert found == brute(x.astype(np.float32), "float64", 6.0, False, 0.25)


def test_tokens_of_requests_are_labels(tmp_path):
    source = write(tmp_path / "d", "a file a request", planted())
    how = {"layers": source["layers"], "labels": "token_ids"}
    run = described(tmp_path, [source["dump"]], source["keys"], **how)
    assert run.mask.sum(axis=1).tolist() == list(LENGTHS)
    assert [run.tokens[n][run.mask[n]].tolist() for n in range(5)] == [
        list(range(100 * n, 100 * n + length)) for n, length in enumerate(LENGTHS)
    ]
    assert run.provenance["blocks"] == 12


def test_the_text_of_a_requests_tokens(tmp_path):
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate([*names, "caf"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save(str(tmp_path / "tokenizer/tokenizer.json"))
    of_byte = {byte: tokenizer.encode(chr(byte)).ids[0] for byte in b"a bz"}
    first, second = tokenizer.encode("é").ids  # which two tokens share
    texts = {0: ([256, first, second, of_byte[32], of_byte[97]], "café a"), 1: ([of_byte[98], second], "b?")}
    for n, (ids, _) in texts.items():  # as vLLM's extract_hidden_states
        hidden = torch.zeros(len(ids), 3, 8, dtype=torch.bfloat16)
        save_file({"hidden_states": hidden, "token_ids": torch.tensor(ids)}, tmp_path / f"r{n}.safetensors")
    files, how = (
        [tmp_path / "r0.safetensors", tmp_path / "r1.safetensors"],
        {"labels": "token_ids", "layers": [2, 5, 9]},
    )
    run = described(tmp_path, files, {"resid_pre": "hidden_states"}, tokenizer=tmp_path / "tokenizer", **how)
    shown = read_texts(tmp_path / "texts.parquet", run)
    assert [text.decode() for text in shown] == [text for _, text in texts.values()]
    pieces = [[token_text(shown, run, n, t) for t in range(len(ids))] for n, (ids, _) in texts.items()]
    assert pieces == [["caf", "é", "é", " ", "a"], ["b", "?"]]
    assert run.tokens[1].tolist()[:2] == texts[1][0] and run.mask[1].tolist() == [True, True, False, False, False]
    save_file({"hidden_states": hidden, "token_ids": torch.tensor([0, 999])}, files[1])
    with pytest.raises(InputError, match="has no token 999"):
        described(tmp_path, files, {"resid_pre": "hidden_states"}, tokenizer=tmp_path / "tokenizer", **how)


def test_an_archive_of_numpys_that_cannot_be_read_where_it_lies(tmp_path):
    x = np.zeros((2, 3, 4, 8), np.float32)
    path = tmp_path / "a.npz"

    def error(**arrays):
        np.savez(path, **{"acts": x} | arrays)
        with pytest.raises(InputError) as raised:
            Dump.open({"dump": str(path), "keys": {"attn_norm": "acts"}})
        return str(raised.value)

    class Harmful:
        def __reduce__(self):
            return (path.with_name("harm").touch, ())

    assert "acts has Python objects" in error(acts=np.array([Harmful()], object))
    assert not path.with_name("harm").exists()
    assert "acts is in Fortran order" in error(acts=np.asfortranarray(x))
    assert "acts is >f4" in error(acts=x.astype(">f4"))
    assert "acts is I64" in error(acts=x.astype(np.int64))
    np.savez_compressed(path, acts=x)
    with pytest.raises(InputError, match=r"acts is compressed, expected an array as `numpy.savez` writes it"):
        Dump.open({"dump": str(path), "keys": {"attn_norm": "acts"}})
    np.savez(path, acts=x)
    for size in (0, 40, path.stat().st_size - 1):
        with path.open("r+b") as file:
            file.truncate(size)
        with pytest.raises(InputError, match=r"a.npz: expected a whole .npz file"):
            Dump.open({"dump": str(path), "keys": {"attn_norm": "acts"}})
        np.savez(path, acts=x)
    other = {"mine": np.array([Harmful()], object), "text": np.array(["a"])}  # what is not asked for does not matter
    np.savez(path, acts=x, **other)
    assert Dump.open({"dump": str(path), "keys": {"attn_norm": "acts"}}).sites["attn_norm"].full_shape == x.shape


def test_many_files_leave_few_open(tmp_path):
    for n in range(400):
        save_file({"acts.0": torch.full((2, 4), float(n))}, tmp_path / f"{n}.safetensors")
    dump = Dump.open({"dump": str(tmp_path / "*.safetensors"), "keys": {"attn_norm": "acts"}})
    before = len(os.listdir("/proc/self/fd"))
    site = dump.sites["attn_norm"]
    assert [float(site.sequence(0, n)[0, 0]) for n in range(400)] == list(range(400))  # by numbers, not by letters
    assert len(os.listdir("/proc/self/fd")) - before <= 2 * tensorfile._MOST_OPEN


def test_a_file_that_was_replaced_is_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"acts": torch.zeros(1, 1, 1, 1)}, path)
    file = TensorFile(path)
    save_file({"acts": torch.zeros(1, 1, 1, 2)}, tmp_path / "b.safetensors")
    os.replace(tmp_path / "b.safetensors", path)
    with pytest.raises(InputError, match="has changed since its header was read"):
        file.array("acts")


def test_what_is_unclear_or_does_not_fit_is_one_sentence(tmp_path):
    x, ids = torch.zeros(4, 4, 8), torch.zeros(4, dtype=torch.int64)
    save_file(
        {
            "hidden": x, "token_ids": ids, "flat": torch.zeros(3, 8), "deep": torch.zeros(2, 2, 2, 2, 2),
            "a.1.mlp": x.clone(), "a.2.mlp": x.clone(), "b.1.mlp": x.clone(), "b.2.mlp": x.clone(),
            "h.0": x.clone(), "h.1": x[0].clone(), "text": torch.tensor([3, 2]), "zero": torch.tensor([0, 2, 2, 4]),
            "floats": torch.zeros(4),
        },
        tmp_path / "a.safetensors",
    )  # fmt: skip
    save_file({"h.1": x.clone(), "h.2": x.clone(), "other": x.clone()}, tmp_path / "b.safetensors")
    save_file({"c.0": torch.zeros(2, 4, 8)}, tmp_path / "c-0.safetensors")
    save_file({"c.0": torch.zeros(3, 5, 8)}, tmp_path / "c-1.safetensors")
    save_file({"c.5": torch.zeros(2, 4, 8)}, tmp_path / "c-2.safetensors")
    for files, key, how, sentence in [
        (
            "a",
            "hidden",
            {},
            "hidden has shape .4, 4, 8., whose axes may be TLH or LTH .*, expected layout to say which",
        ),
        ("a", "flat", {}, "whose axes may be TH .*, expected layout"),
        ("a", "deep", {}, "expected .N, L, T, H., or other axes as layout says"),
        ("a", "hidden", {"layout": "TH"}, "expected 2 axes as layout TH says"),
        ("a", "a.{layer}.mlp", {"layout": "LTH"}, "one tensor a layer, so without L"),
        ("a", "mlp", {}, "mlp may be any of a.{layer}.mlp, b.{layer}.mlp"),
        ("a", "a.{layer}.mpl", {}, "has no tensor 'a.{layer}.mpl', nearest: .*a.{layer}.mlp"),
        ("a", "h", {}, "h.1 is F32 .4, 8., expected .* alike in all layers"),
        ("a", "flat", {"lengths": "text"}, "axes may be TH"),
        ("a", "a.{layer}.mlp", {"lengths": "text"}, "lengths are 2 with the sum 5, expected 4 of at most 4"),
        ("a", "flat", {"layout": "TH", "lengths": [2, 2]}, "lengths are 2 with the sum 4, expected a sum of 3"),
        ("a", "flat", {"layout": "TH", "lengths": [1, 2, 2]}, "lengths has 1 entries more than there are sequences"),
        ("a", "flat", {"layout": "TH", "lengths": "zero"}, "expected the tokens of each sequence, 1 at least"),
        ("a", "flat", {"layout": "TH", "lengths": "floats"}, "lengths floats is F32 .4., expected integers"),
        ("a", "flat", {"layout": "TH", "lengths": "txt"}, "has no tensor 'txt' of lengths, nearest: text"),
        ("a", "hidden", {"layout": "LTH", "layers": [3, 1, 2, 5]}, "layers are 3, 1, 2, 5, expected 4 ascending"),
        ("a", "a.{layer}.mlp", {"layers": [1, 2]}, "whose names have the numbers"),
        ("ab", "h.{layer}", {}, "h.1 is F32"),
        ("ab", "other", {"layout": "NTH"}, "a.safetensors: has no tensor 'other'"),
        (["c-0", "c-1"], "c", {}, r"\[3, 1, 5, 8\], expected F32 \[2, 1, 4, 8\] but for N.*say by lengths"),
        (["c-1", "c-2"], "c", {}, "has 2 sequences of 4 tokens, expected 3 sequences of 5 tokens as in .*c-1"),
        (["c-{layer}"], "c.{layer}", {}, "c.{layer} has layers 0, expected 1 as in the file's name"),
        (["d-*"], "c", {}, r"d-\*.safetensors: expected a whole safetensors file"),
    ]:
        with pytest.raises(InputError, match=sentence):
            Dump.open(
                {"dump": [str(tmp_path / f"{one}.safetensors") for one in files], "keys": {"resid_post": key}, **how}
            )


def test_a_plain_stem_where_nothing_else_could_be_meant(tmp_path):
    x = torch.randn(2, 3, 4)
    save_file(
        {"blocks.3.hook_resid_post": x, "blocks.9.hook_resid_post": x * 2, "b.1.w": x + 1, "x": x + 2}, tmp_path / "a"
    )
    for key in ("hook_resid_post", "blocks.hook_resid_post", "blocks.{layer}.hook_resid_post"):
        site = Dump.open({"dump": str(tmp_path / "a"), "keys": {"resid_post": key}}).sites["resid_post"]
        assert site.layers == (3, 9)
        np.testing.assert_array_equal(site.sequence(1, 1), x[1].numpy() * 2)
    with pytest.raises(InputError, match=r"nearest: blocks.\{layer\}.hook_resid_post"):
        Dump.open({"dump": str(tmp_path / "a"), "keys": {"resid_post": "blocks.{layer}.hook_resid_pre"}})


def test_gains_of_a_key_with_the_layer_in_it(tmp_path):
    gains = {layer: torch.rand(4) for layer in (2, 10)}
    save_file({f"blocks.{layer}.ln1.w": gain for layer, gain in gains.items()}, tmp_path / "a")
    found = gains_in_file(TensorFile(tmp_path / "a"), ["blocks.{layer}.ln1.w"])
    assert list(found) == ["blocks.2.ln1.w", "blocks.10.ln1.w"]
    named = [name for name, _, _ in named_gains(TensorFile(tmp_path / "a"), {"attn_norm": "blocks.{layer}.ln1.w"})]
    assert named == ["attn_norm.2", "attn_norm.10"]
    np.testing.assert_array_equal(found["blocks.10.ln1.w"].stored, gains[10].numpy())
    with pytest.raises(InputError, match=r"nearest: blocks.\{layer\}.ln1.w"):
        gains_in_file(TensorFile(tmp_path / "a"), ["blocks.{layer}.ln2.w"])


def test_the_number_that_varies_most_is_the_layers():
    names = [f"m.{layer}.experts.{expert}.out" for layer in range(5) for expert in (0, 1)]
    assert layer_keys(names) == {f"m.{{layer}}.experts.{expert}.out": set(range(5)) for expert in (0, 1)}
    assert nearest_keys([], "x") == "" and nearest_keys(["alone"], "x") == ", nearest: alone"
