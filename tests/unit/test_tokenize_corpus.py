"""Sequences against the tokenizer's own encoding of the text they claim to cover."""

import json

import numpy as np
import polars as pl
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from outlier_features.errors import InputError
from outlier_features.files.artifacts import write_json
from outlier_features.files.sealed_parquet import write_parquet
from outlier_features.tokens.token_text import read_texts, token_text
from outlier_features.tokens.tokenize_corpus import tokenize_corpus
from outlier_features.tokens.tokens import Tokens

TEXTS = [
    "The naïve café cost 3 €, or 12 🍵 <|end|> and more. " * 4,
    "Second document:\n\ttabs, “quotes” and <script>.\n" * 5,
    "",
    "Third. " * 60,
]


@pytest.fixture
def bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def with_template(tokenizer):
    end = tokenizer.token_to_id("<|end|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|end|> $A <|end|>", special_tokens=[("<|end|>", end)]
    )
    return tokenizer


def run(folder, tokenizer, sample, texts=TEXTS, bos_token=None, config=None, part=None):
    folder.mkdir(exist_ok=True)
    (folder / "model").mkdir(exist_ok=True)
    tokenizer.save(str(folder / "model/tokenizer.json"))
    write_json(folder / "model/tokenizer_config.json", {"bos_token": bos_token} if bos_token else {})
    write_json(folder / "model/config.json", config or {})
    write_json(folder / "model.json", {"location": "model", "files": {}, "revision": "r", "origin": "o"})
    write_json(folder / "corpus.json", {"sha256": "c", "documents": len(texts)})
    fetched = pl.DataFrame({"text": texts}).to_arrow()
    write_parquet(folder / "documents", fetched, {"provenance": '{"sha256": "c"}'})
    sample = {"sequences": 3, "tokens": 16, "pack": "windows", "bos": "auto", **sample}
    arguments = ("model.json", "documents", "corpus.json", "tokens", "texts")
    tokenize_corpus("m", "c", *(folder / name for name in arguments), sample=sample, part=part)
    return Tokens.read(folder / "tokens"), pl.read_parquet(folder / "texts")["text"].to_list()


def test_tokens_are_read_as_they_were_written(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 99, (2, 5)).astype(np.int32)
    special, mask = rng.random((2, 5)) < 0.3, rng.random((2, 5)) < 0.7
    offsets = rng.integers(0, 9, (2, 5, 2)).astype(np.int32)
    texts = ["naïve 🙂", ""]
    Tokens(ids, special, mask, offsets, {"model": "m"}).write(tmp_path / "tokens", tmp_path / "texts", texts)
    found = Tokens.read(tmp_path / "tokens")
    for name, written in {"tokens": ids, "special": special, "mask": mask, "offsets": offsets}.items():
        np.testing.assert_array_equal(getattr(found, name), written)
    assert found.provenance["model"] == "m"
    assert [text.decode() for text in read_texts(tmp_path / "texts", found)] == texts
    Tokens(ids + 1, special, mask, offsets, {"model": "m"}).write(tmp_path / "others", tmp_path / "texts", texts)
    with pytest.raises(InputError, match="tokens_sha256"):
        read_texts(tmp_path / "texts", found)


def check_offsets(tokenizer, tokens, texts):
    """Each token's bytes decode to what the token says, unless it is part of a character."""
    for n, text in enumerate(texts):
        encoded = text.encode()
        ids = tokens.tokens[n][tokens.mask[n] & ~tokens.special[n]]
        assert tokenizer.decode(ids.tolist(), skip_special_tokens=False).strip("�") in text
        for t in np.flatnonzero(tokens.mask[n] & ~tokens.special[n]):
            first, last = tokens.offsets[n, t]
            own = tokenizer.decode([int(tokens.tokens[n, t])])
            if "�" not in own:
                assert encoded[first:last].decode() == own


def test_windows_are_full_and_follow_each_other(tmp_path, bpe):
    tokens, texts = run(tmp_path, bpe, {"sequences": 9})
    assert tokens.tokens.shape == (9, 16) and tokens.mask.all() and not tokens.special.any()
    check_offsets(bpe, tokens, texts)
    bpe.encode_special_tokens = True
    joined = "".join(text + "\n\n" for text in TEXTS)
    expected = bpe.encode(joined, add_special_tokens=False).ids[: 9 * 16]
    np.testing.assert_array_equal(tokens.tokens.reshape(-1), expected)
    assert texts[0] == joined[: len(texts[0])]


def test_windows_do_not_depend_on_how_many_are_taken(tmp_path, bpe):
    texts = [f"{i}: " + "some words here. " * (i % 7) for i in range(400)]
    few, few_texts = run(tmp_path / "few", bpe, {"sequences": 5}, texts)
    many, many_texts = run(tmp_path / "many", bpe, {"sequences": 80}, texts)
    np.testing.assert_array_equal(few.tokens, many.tokens[:5])
    assert few_texts == many_texts[:5]
    assert "".join(many_texts) in "".join(text + "\n\n" for text in texts)  # nothing is left out in between


def test_documents_are_cut_or_padded(tmp_path, bpe):
    tokens, texts = run(tmp_path, bpe, {"pack": "documents", "tokens": 400})
    lengths = tokens.mask.sum(1)
    bpe.encode_special_tokens = True
    documents = [text for text in TEXTS if text]  # an empty one makes no sequence
    for n, document in enumerate(documents):
        ids = bpe.encode(document).ids[:400]
        assert lengths[n] == len(ids) and tokens.tokens[n, : len(ids)].tolist() == ids
        assert not tokens.mask[n, len(ids) :].any()
        assert document.startswith(texts[n])
    check_offsets(bpe, tokens, texts)
    assert tokens.parts[0, lengths[0] :].tolist() == [2] * (400 - lengths[0])


def test_special_tokens_in_a_text_are_text(tmp_path, bpe):
    tokens, _ = run(tmp_path, bpe, {"pack": "documents", "tokens": 400})
    assert not (tokens.tokens[tokens.mask] == bpe.token_to_id("<|end|>")).any()


@pytest.mark.parametrize(("bos", "prefix", "suffix"), [("auto", 1, 1), ("always", 1, 1), ("never", 0, 0)])
def test_special_tokens_of_the_tokenizer(tmp_path, bpe, bos, prefix, suffix):
    tokens, texts = run(tmp_path, with_template(bpe), {"bos": bos})
    end = bpe.token_to_id("<|end|>")
    assert tokens.special.sum(1).tolist() == [prefix + suffix] * 3
    assert (tokens.tokens[tokens.special] == end).all()
    assert tokens.special[:, 0].all() == bool(prefix) and tokens.special[:, -1].all() == bool(suffix)
    check_offsets(bpe, tokens, texts)
    encoded = [text.encode() for text in texts]
    if prefix:
        assert token_text(encoded, tokens, 0, 0) == token_text(encoded, tokens, 0, 15) == "<|end|>"
    assert token_text(encoded, tokens, 0, 1) == bpe.decode([tokens.tokens[0, 1]])
    assert (tokens.parts == 0).sum(1).tolist() == [max(1, prefix) + suffix] * 3


@pytest.mark.parametrize("bos_token", ["<|end|>", {"content": "<|end|>"}])
def test_bos_always_adds_the_one_of_the_tokenizer_config(tmp_path, bpe, bos_token):
    tokens, _ = run(tmp_path, bpe, {"bos": "always"}, bos_token=bos_token)
    assert (tokens.tokens[:, 0] == bpe.token_to_id("<|end|>")).all() and tokens.special.sum() == 3


def test_bos_always_without_one_is_an_error(tmp_path, bpe):
    with pytest.raises(InputError, match=r"sample\.bos: found 'always'"):
        run(tmp_path, bpe, {"bos": "always"})


@pytest.mark.parametrize(
    ("sample", "hint"),
    [({"sequences": 500}, "a longer text, or fewer"), ({"pack": "documents", "sequences": 4}, "more documents")],
)
def test_a_corpus_that_is_too_short_is_used_as_far_as_it_goes(tmp_path, bpe, capsys, sample, hint):
    found, texts = run(tmp_path / "short", bpe, sample)
    assert 1 < len(texts) == len(found.tokens) < sample["sequences"]
    expected, same = run(tmp_path / "exact", bpe, sample | {"sequences": len(texts)})
    assert texts == same
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.mask, expected.mask)
    (note,) = found.provenance["notes"]
    assert f"{len(texts)} of the {sample['sequences']} sequences" in note and hint in note
    assert expected.provenance["notes"] == [] and note in capsys.readouterr().err


@pytest.mark.parametrize("sequences", [1, 16])
def test_a_text_that_fills_no_window_makes_a_padded_one(tmp_path, bpe, sequences):
    text = "The naïve café."
    found, texts = run(tmp_path, with_template(bpe), {"tokens": 100, "sequences": sequences}, [text])
    ids = bpe.encode(text, add_special_tokens=False).ids
    end = bpe.token_to_id("<|end|>")
    assert texts == [text] and found.tokens.shape == (1, 100)
    assert found.tokens[found.mask].tolist() == [end, *ids, end] and found.mask.sum() == len(ids) + 2
    check_offsets(bpe, found, texts)
    assert "no full window of 100 tokens" in found.provenance["notes"][0]


@pytest.mark.parametrize("pack", ["windows", "documents"])
def test_a_corpus_without_a_token_is_an_error(tmp_path, bpe, pack):
    with pytest.raises(InputError, match="corpus 'c' has no token, expected text"):
        run(tmp_path, bpe, {"pack": pack}, [""])


@pytest.mark.parametrize("flag", [True, False])
def test_flags_that_differ_from_the_template_are_named(tmp_path, bpe, flag):
    run(tmp_path, bpe, {})
    tokenizer = bpe if flag else with_template(bpe)
    tokenizer.save(str(tmp_path / "model/tokenizer.json"))
    for value in (flag, not flag):
        (tmp_path / "model/tokenizer_config.json").write_text(json.dumps({"add_bos_token": value}))
        for bos in ("auto", "never"):
            tokenize_corpus(
                "m", "c", *(tmp_path / name for name in ("model.json", "documents", "corpus.json", "tokens", "texts")),
                sample={"sequences": 3, "tokens": 16, "pack": "windows", "bos": bos},
            )  # fmt: skip
            found = Tokens.read(tmp_path / "tokens")
            assert found.special.any() == (not flag and bos == "auto")  # the template is followed
            expected = [f"add_bos_token: {str(flag).lower()}"] if bos == "auto" and value == flag else []
            assert [note.rpartition("says ")[2].partition(";")[0] for note in found.provenance["notes"]] == expected


def test_a_broken_tokenizer(tmp_path, bpe):
    run(tmp_path, bpe, {})
    (tmp_path / "model/tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(InputError, match="expected a tokenizer"):
        tokenize_corpus(
            "m", "c", *(tmp_path / name for name in ("model.json", "documents", "corpus.json", "tokens", "texts")),
            sample={"sequences": 3, "tokens": 16, "pack": "windows", "bos": "auto"},
        )  # fmt: skip


def test_changed_tokens_are_noticed(tmp_path, bpe):
    run(tmp_path, bpe, {})
    data = bytearray((tmp_path / "tokens").read_bytes())
    data[4096] ^= 1
    (tmp_path / "tokens").write_bytes(data)
    with pytest.raises(InputError, match="its tokens_sha256 is"):
        Tokens.read(tmp_path / "tokens")


@pytest.mark.parametrize("config", [{"decoder_start_token_id": 7}, {"decoder": {"bos_token_id": 7}, "eos_token_id": 3}])
def test_a_decoder_reads_the_text_behind_its_start_token(tmp_path, bpe, config):
    """And the encoder, which reads what follows that token, the same text with the tokenizer's own special tokens."""
    with_template(bpe)
    decoder, texts = run(tmp_path / "decoder", bpe, {"tokens": 17}, config=config, part="decoder")
    encoder, same = run(tmp_path / "encoder", bpe, {"tokens": 16}, config=config, part="encoder")
    assert texts == same
    assert (decoder.tokens[:, 0] == 7).all() and decoder.special[:, 0].all()
    np.testing.assert_array_equal(decoder.tokens[:, 1:], encoder.tokens)
    np.testing.assert_array_equal(decoder.special[:, 1:], encoder.special)


def test_a_decoder_without_a_start_token_is_a_mistake(tmp_path, bpe):
    with pytest.raises(InputError, match="no decoder_start_token_id"):
        run(tmp_path, bpe, {}, part="decoder")
