"""A model in hand gives, bit by bit, what a run of the workflow gives of it; and docs/library.md does what it says."""

import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from test_same_numbers import MOMENTS, differing
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

import outlier_features as of

DOCS = Path(__file__).parents[2] / "docs"
TABLES = (
    "layers",
    "distribution",
    "site_positions",
    "pairs",
    "dims",
    "sensitivity",
    "massive",
    "positions",
    "emergence",
)
THREADS = 2  # those of the project: of these the last bits of a product may depend


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_chunk(project) -> Path:
    """Runs of the tiny Llama and the tiny BERT, of documents and so with padding, each in one chunk."""
    texts = [
        "A zebra, a lazy dog.",
        "z",
        "An even lazier dog; a naïve café.",
        "Dozing zebras and dogs, dozing, dozing.",
    ]
    (project.folder / "docs.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    project.run_here(
        *(f"chunk/{model}/docs/summary.json" for model in ("tiny", "tiny-bert")), models=["tiny", "tiny-bert"],
        corpora=["docs"], results="chunk", resources="chunk/resources", extract__chunk_sequences=16,
        sample={"sequences": 4, "tokens": 48, "pack": "documents"}, catalog__corpora__docs={"files": ["docs.jsonl"]},
        skip=["surface", "origin", "experts", "attention_maps", "super_weights", "ablation", "expert_ablation",
              "neurons", "gallery"],
    )  # fmt: skip
    return project.folder / "chunk"


def model_of(project, name: str, run: of.Run) -> torch.nn.Module:
    kind = AutoModelForCausalLM if name == "llama" else AutoModel
    return kind.from_pretrained(project.folder / name, attn_implementation=run.summary["run"]["attention"])


@pytest.mark.parametrize(("name", "model"), [("tiny", "llama"), ("tiny-bert", "bert")])
def test_a_model_in_hand_gives_what_the_workflow_gives(project, one_chunk, name, model):
    run = of.open(one_chunk / name / "docs")
    found = of.measure(model_of(project, model, run), run, config={"detect": {"max_density": 0.2}})
    for table in TABLES:
        assert len(run.tables[table]) or model == "bert", table  # in which nothing is planted
        assert differing(found.tables[table], run.tables[table], (), 0) == [], table
    for site in run.statistics:
        ours, theirs = found.statistics[site], run.statistics[site]
        assert all(np.array_equal(getattr(ours, key), getattr(theirs, key), equal_nan=True) for key in vars(ours))
        assert found.hits(site).equals(run.hits(site)) and (len(run.hits(site)) or model == "bert")
    of_checkpoint = {"tensor", "dtype"}  # which a model in hand has none of
    assert set(differing(found.tables.norms, run.tables.norms, (), 0)) <= of_checkpoint
    assert found.tables.gains.equals(run.tables.gains)
    if model == "llama":
        assert differing(found.tables.loss, run.tables.loss, (), 0) == [] and run.summary["loss"]["perplexity"] > 1
        assert found.dims("massive") == run.dims("massive") == [7]
    else:
        with pytest.raises(of.InputError, match="BertModel is no causal model"):
            found.tables["loss"]
    assert found.populations == run.populations and {*found.figures} <= {*run.figures, "locations"}


def test_so_does_what_is_handed_over_array_by_array(project, one_chunk):
    """Ids, mask and special tokens as a tokenizer has them; the tokenizer names tokens as the workflow does."""
    run = of.open(one_chunk / "tiny-bert" / "docs")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(project.folder / "bert/tokenizer.json"))
    handed = {"input_ids": torch.from_numpy(run.tokens.tokens), "attention_mask": torch.from_numpy(run.tokens.mask),
              "special_tokens_mask": run.tokens.special.astype(int).tolist()}  # fmt: skip
    bert = model_of(project, "bert", run)
    found = of.measure(bert, handed, tokenizer=tokenizer, config={"detect": {"max_density": 0.2}})
    assert (found.tokens.tokens == run.tokens.tokens).all() and (found.tokens.special == run.tokens.special).all()
    assert found.texts == run.texts and (found.tokens.offsets == run.tokens.offsets).all()
    assert [table for table in TABLES if differing(found.tables[table], run.tables[table], (), 0)] == []
    rows = zip(run.tokens.tokens, run.tokens.special, run.tokens.mask, strict=True)
    lists, special = zip(*((ids[mask].tolist(), marked[mask].tolist()) for ids, marked, mask in rows), strict=True)
    unnamed = of.measure(bert, list(lists), special=list(special), config={"detect": {"max_density": 0.2}})
    assert set(unnamed.texts) == {""}
    # Of another length of the padded sequences, and so of other products.
    assert differing(unnamed.tables.layers, run.tables.layers, run.tables.layers.columns, 1e-4) == []


def test_several_chunks_differ_from_it_in_rounding_alone(project):
    """The project's own run, of windows, in chunks of four; its text is cut within a character now and then."""
    run = of.open(project.first / "results/tiny/text")
    found = of.measure(model_of(project, "llama", run), run, config={"detect": {"max_density": 0.2}})
    for table in (*TABLES, "loss"):
        assert differing(found.tables[table], run.tables[table], MOMENTS, 1e-9) == [], table


def test_the_page_on_the_library_does_what_it_says(project, tmp_path, monkeypatch):
    """Every block of Python in docs/library.md, one after the other, on the project's run and model."""
    place = tmp_path / "results/tiny/text"  # files say whose they are
    place.parent.mkdir(parents=True)
    place.symlink_to(project.first / "results/tiny/text")
    shutil.copytree(project.folder / "llama", tmp_path / "my-llama")
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "library.md").read_text(encoding="utf-8")
    for run in ("smollm2-135m/python-docs", "my-llama/notes"):
        assert run in text
        text = text.replace(run, "tiny/text")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), names)
    assert len(blocks) >= 8
    assert names["run"].tables.dims.equals(pl.read_parquet(place / "dims.parquet"))
    assert "z" in names["found"].tables.massive["token_text"].to_list()  # the letter that is planted
