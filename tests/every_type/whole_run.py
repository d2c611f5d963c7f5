"""What comes of a whole run on a tiny model of a type, judged by transformers itself."""

import contextlib
import shutil
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import nn
from torch.nn import functional

from absent_reasons import false_reasons
from block_lists import block_paths
from outlier_features.files.artifacts import read_json
from outlier_features.files.tensorfile import TensorFile
from outlier_features.model.bases import SITES
from outlier_features.model.models import load_model
from outlier_features.model.sites import find_sites
from outlier_features.tokens.tokens import Tokens
from rule_jobs import NAME, Job, Plans, inside
from tiny_tokenizer import save_tokenizer
from tiny_types import TYPES, alone, build, why_not_alone

CORPUS, TEXT = "text", "text.txt"
TOLERANCE = 1e-4  # of the RMS of a row: another order of sums, with other kernels


@dataclass
class Outcome:
    """How runs on a type ended.

    result    works; without: works but for `resid_post`; cannot: transformers itself cannot run it, and neither do we;
              refused: in one sentence; wrong: what a stage says or writes is not so; crash
    why       for the end of a sentence
    missing   analyses that could not be had, with the reason
    absent    sites that not every block has, with the reason
    """

    type: str
    part: str | None = None
    model: str = ""
    result: str = "works"
    why: str = ""
    missing: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def outcomes(name: str, jobs: Plans, folder: Path) -> list[Outcome]:
    """Run each part of a type's tiny model in `folder`."""
    reason = why_not_alone(name)
    try:
        model = build(name)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        return [Outcome(name, result="cannot" if reason else "crash", why=reason or found)]
    (folder / "model").mkdir(parents=True)
    model.save_pretrained(folder / "model")
    save_tokenizer(folder / "model", template=TYPES[name] == "masked")
    (folder / TEXT).write_text("\n".join(f"Line {n}: a lazy dog, dozing; naïve café no. {n * n}." for n in range(20)))
    parts = ("encoder", "decoder") if model.config.is_encoder_decoder else (None,)
    found = []
    for part in parts:
        outcome = Outcome(name, part, type(model).__name__)
        try:
            _run(outcome, jobs[part], folder)
            if outcome.result == "refused" and reason:
                outcome.result, outcome.why = "cannot", reason
            if outcome.result == "works" and reason:
                outcome.result, outcome.why = "wrong", f"there is a report, but {reason}"
            if outcome.result == "works":
                _judge(outcome, model, folder)
        except Exception as error:
            outcome.result, outcome.why = "crash", _in_short(error)
            traceback.print_exc()
        found.append(outcome)
    return found


def _in_short(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {lines[-1] if lines else ''} ({Path(frame.filename).name}:{frame.lineno})"


def _run(outcome: Outcome, jobs: list[Job], folder: Path) -> None:
    with inside(folder):
        for job in jobs:
            if error := job.run():
                # Whether a model can be run at all, is said where it is run first.
                outcome.result = "refused" if job.rule == "extract_activations" else "wrong"
                outcome.why = f"{job.rule}: {error}".replace(str(folder), "")
                return
        told = read_json(_results(outcome) / "summary.json", "sites")
        outcome.absent = dict(told["sites"]["absent"])
        for analysis, record in told.get("missing", {}).items():
            outcome.missing[analysis] = record["reason"]
            if record["cause"] == "fault":
                outcome.result, outcome.why = "crash", f"{analysis}: {record['reason']}"


def _results(outcome: Outcome) -> Path:
    return Path("results") / (f"{NAME}.{outcome.part}" if outcome.part else NAME) / CORPUS


def _judge(outcome: Outcome, model: Any, folder: Path) -> None:
    """Compare `resid_post` of every block and the loss with transformers' own."""
    run = folder / _results(outcome)
    tokens = Tokens.read(run / "tokens.safetensors")
    ids = torch.from_numpy(tokens.tokens.astype(np.int64))
    [file] = (run / "activations").glob("*.safetensors")
    stored = TensorFile(file)
    said = stored.provenance
    model = _again(model, folder / "model", said["attention"])
    states, logits = _plain(outcome, model, ids)
    why = said["absent"].get("resid_post")
    complaints = list(_stream_differs(stored, states, whole=why is None))
    if why:
        # Not proven is said of what the model does not go on to read as it is.
        if "fails by" in why or any(state.ndim != 3 or state.shape[:2] != ids.shape for state in states):
            outcome.result, outcome.why = "without", f"resid_post: {why}"
        else:
            complaints.append(f"resid_post is absent: {why}")
    complaints += _loss_differs(run, ids, tokens.mask, logits, causal=_is_causal(outcome, model, ids))
    complaints += _false_absences(outcome, folder / "model", ids[:1])
    if complaints:
        outcome.result, outcome.why = "wrong", "; ".join(complaints)


def _false_absences(outcome: Outcome, directory: Path, ids: torch.Tensor) -> Iterator[str]:
    """Why any site is absent goes into the outcome; what of it is not so."""
    part: Any = {"part": outcome.part} if outcome.part else {}
    loaded = load_model(directory, dtype="float32", device="cpu", attention="auto", trust_remote_code=False, **part)
    blocks = find_sites(loaded)
    for site in SITES:
        reasons: dict[str, list[int]] = {}
        for index, block in enumerate(blocks):
            if site not in block.sites:
                reasons.setdefault(block.absent[site], []).append(index)
        if reasons:
            outcome.absent[site] = "; ".join(
                reason if len(which) == len(blocks) else f"{reason} (block {', '.join(map(str, which))})"
                for reason, which in reasons.items()
            )

    def run() -> None:
        with torch.inference_mode():
            loaded.base(ids)

    yield from false_reasons(blocks, loaded.model, run)


def _again(model: Any, directory: Path, attention: str) -> Any:
    """What transformers' own class reads back."""
    plain = type(model).from_pretrained(directory).eval()
    if plain.config.get_text_config()._attn_implementation != attention:
        plain = type(model).from_pretrained(directory, attn_implementation=attention).eval()
    for config in (plain.config, plain.config.get_text_config()):
        config.use_cache = False
    return plain


def _feed(outcome: Outcome, model: Any, ids: torch.Tensor) -> Any:
    if outcome.part == "decoder":
        with torch.no_grad():
            return model(input_ids=ids[:, 1:], decoder_input_ids=ids)
    return alone(model, ids)


def _plain(outcome: Outcome, model: Any, ids: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """Outputs of the blocks in the order of calls, each (B, T, ...), and logits (B, T, V); a sequence at a time."""
    states: list[list[torch.Tensor]] = []
    logits = []
    for sequence in ids.split(1):
        seen: list[torch.Tensor] = []
        with _watching(model, block_paths(outcome.type, outcome.part), seen):
            output = _feed(outcome, model, sequence)
        states.append(seen)
        logits.append(None if outcome.part == "encoder" else getattr(output, "logits", None))
    stacked = [torch.cat(each) for each in zip(*states, strict=True)]
    return stacked, None if logits[0] is None else torch.cat(logits)


@contextlib.contextmanager
def _watching(model: nn.Module, paths: list[str], seen: list[torch.Tensor]) -> Iterator[None]:
    def receive(module: nn.Module, args: Any, output: Any) -> None:
        seen.append((output if torch.is_tensor(output) else output[0]).detach().clone())

    found = [model.get_submodule(path) for path in paths]
    blocks = [block for one in found for block in (one if isinstance(one, nn.ModuleList) else [one])]
    handles = [block.register_forward_hook(receive) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _stream_differs(stored: TensorFile, states: list[torch.Tensor], whole: bool) -> Iterator[str]:
    names = {int(name.rpartition(".")[2]) for name in stored.entries if name.startswith("resid_post.")}
    if whole and names != set(range(len(states))):
        yield f"resid_post has blocks {sorted(names)}, transformers ran {len(states)}"
        return
    for index, expected in enumerate(states):
        if index not in names:
            continue
        found = torch.from_numpy(np.array(stored.array(f"resid_post.{index}")))
        if found.numel() != expected.numel():
            yield f"resid_post of block {index} is {tuple(found.shape)}, transformers' {tuple(expected.shape)}"
            return
        difference = (found - expected.reshape(found.shape)).abs()
        allowed = TOLERANCE * expected.square().mean().sqrt()
        if not (difference <= allowed).all():
            yield f"resid_post of block {index} differs from transformers' by {difference.max():.3g}"
            return


def _is_causal(outcome: Outcome, model: Any, ids: torch.Tensor) -> bool:
    """Whether the logits of the first position stay when later tokens change, in a model that predicts the next one."""
    if TYPES[outcome.type] == "masked" and outcome.part is None:
        return False  # without its CUDA kernel MRA's attention is zero, and no position sees another
    changed = ids.clone()
    changed[:, 1:] = (ids[:, 1:] + 97) % 256 + 4
    if outcome.part == "decoder":
        with torch.no_grad():
            before, after = (model(input_ids=ids[:, 1:], decoder_input_ids=one).logits[:, 0] for one in (ids, changed))
    else:
        before, after = (getattr(alone(model, one), "logits", torch.zeros(1, 1, 1))[:, 0] for one in (ids, changed))
    return bool((before - after).abs().max() <= 1e-4 * before.abs().max())


def _loss_differs(run: Path, ids: torch.Tensor, mask: Any, logits: torch.Tensor | None, causal: bool) -> Iterator[str]:
    found = pl.read_parquet(run / "loss.parquet").sort("sequence")
    if found.is_empty() or found["nll"].null_count():
        if causal and logits is not None and logits.shape[:2] == ids.shape:
            yield "there is no loss, though the logits predict the next token"
        return
    if logits is None or not causal:
        yield "there is a loss, though the model predicts no next token"
        return
    each = functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten(), reduction="none")
    predicted = torch.from_numpy(np.array(mask[:, 1:]))
    expected = torch.where(predicted, each.reshape(predicted.shape), 0).sum(1)
    if not torch.allclose(torch.tensor(found["nll"].to_list(), dtype=torch.float64), expected, rtol=1e-4):
        yield f"the loss is {found['nll'].to_list()}, transformers' {[round(x, 4) for x in expected.tolist()]}"


def try_type(name: str, jobs: Plans, folder: Path, log: Path) -> list[Outcome]:
    """`outcomes`, with what the stages say in `log`."""
    torch.set_num_threads(1)
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            return outcomes(name, jobs, folder)
        finally:
            shutil.rmtree(folder / "results", ignore_errors=True)
            shutil.rmtree(folder / "model", ignore_errors=True)
