"""A whole run on a tiny random model of every type that transformers loads as a language model.

What counts as right is what transformers itself gives (`whole_run`); the table in docs/architectures.md says how each
type ends. `make test` tries a few types of different shapes, `make test-all` every one.
"""

import pytest
import transformers

import table
from tiny_types import TYPES, why_not_alone
from worker import Worker

# An encoder-decoder, a wrapper, parallel blocks, a mixer alone and one beside attention, experts.
SPREAD = {"bart", "gemma3", "gpt_neox", "mamba", "mixtral", "nemotron_h"}
# Types that transformers runs and this project does not, and why that is so; tried by hand.
REFUSED = {
    "flaubert": "a block is no module: attention, norms and MLPs lie in lists of their own",
    "xlm": "a block is no module: attention, norms and MLPs lie in lists of their own",
    "squeezebert": "its blocks' `forward` is called past the modules, so that no hook sees it",
    "perceiver": "its blocks read latents, not tokens",
    "blt": "its blocks read patches of bytes, not tokens",
    "cpmant": "its blocks read a prompt before the tokens",
    "prophetnet": "the decoder's blocks read a stream for each n-gram beside that of the tokens",
}
# Types whose blocks hand on something else than one vector a token, so that some have no `resid_post`.
OTHER_STREAMS = {
    "funnel": "tokens are pooled between blocks",
    "inkling2": "what follows reads the outputs of several blocks",
    "inkling2_text": "what follows reads the outputs of several blocks",
    "reformer": "two streams",
    "deepseek_v4": "four copies of the stream",
    "gemma3n_text": "four copies of the stream",
    "glm5_next": "four copies of the stream",
    "hy_v4": "four copies of the stream",
}
TRIED = [pytest.param(name, marks=[] if name in SPREAD else [pytest.mark.slow]) for name in sorted(TYPES)]
OF_THIS_VERSION = table.version() == transformers.__version__


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with Worker(tmp_path_factory.mktemp("types")) as one:
        yield one


@pytest.mark.parametrize("name", TRIED)
def test_a_run_on_a_tiny_model(name, worker):
    rows = worker.try_type(name)
    log = worker.folder / "logs" / f"{name}.txt"
    said = log.read_text()[-5000:] if log.exists() else ""
    for row in rows:
        assert row["result"] not in ("crash", "wrong"), f"{row}\n{said}"
        assert row["result"] != "refused" or name in REFUSED, f"{row}\n{said}"
        assert row["result"] != "without" or name in OTHER_STREAMS, f"{row}\n{said}"
        assert row["result"] != "cannot" or why_not_alone(name), f"{row}\n{said}"
        if OF_THIS_VERSION:
            assert table.read_rows()[table.key_of(row)][1].split(":")[0] == table.WORDS[row["result"]]


def test_the_table_names_every_type():
    assert table.version(), "run `make docs-types`"
    if OF_THIS_VERSION:
        assert {name.split(",")[0] for name in table.read_rows()} == set(TYPES)


def test_of_the_types_that_run_on_text_alone_at_least_95_of_100_work():
    results = [cells[1] for cells in table.read_rows().values() if not cells[1].startswith("not run")]
    works = [result for result in results if result == "works"]
    assert len(works) >= 0.95 * len(results) > 250


def test_the_types_that_are_always_tried_are_types():
    assert set(TYPES) >= SPREAD
