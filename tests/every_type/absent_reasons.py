"""Whether the reasons for absent sites are true, by what the model calls its modules and by changing them."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

ATTENTION = re.compile(r"Attention|Attn|MLA$")
NO_SOFTMAX = re.compile(r"Linear|Delta|Lightning|Mamba|Mixer|Recurrent|Rwkv|Fourier|Lstm|LSTM|Conv|Cross|Mra|Yoso|LSH")
OTHER_MIXERS = re.compile(
    r"(?<!Kimi)Linear\w*Attention|Delta|Lightning|Mamba|Mixer|RecurrentBlock|ShortConv|RwkvSelf|Fourier|xLSTMLayer"
)
# RWKV's `feed_forward` reads the token before as well.
MLP = re.compile(r"MLP|Mlp|FFN|FeedForward|Intermediate|MoE|Moe|Experts")
RWKV = re.compile("Rwkv")
EXPERTS = re.compile(r"Expert|MoE|Moe|MOE|Router|Gate$|DbrxFFN")
NORM = re.compile(r"Norm")


def false_reasons(blocks: list[Any], model: nn.Module, run: Callable[[], Any]) -> Iterator[str]:
    """Reasons that are not so, of `find_sites`' blocks of `model`, which `run` runs."""
    for index, block in enumerate(blocks):
        module = model.get_submodule(block.path)
        classes = [type(part).__name__ for part in module.modules()][1:]
        for site, reason in block.absent.items():
            if why := _is_false(reason, classes, module, run):
                yield f"{site} of block {index} is absent since {reason}, but {why}"
                return


def _is_false(reason: str, classes: list[str], module: nn.Module, run: Callable[[], Any]) -> str | None:
    if "by softmax weights" in reason and (found := _some(classes, ATTENTION, NO_SOFTMAX)):
        return f"it has {found}"
    if "in another way than by softmax" in reason and (found := _some(classes, OTHER_MIXERS)):
        return f"it has {found}"
    if reason == "the block has no MLP" and (found := _some(classes, MLP, RWKV)):
        return f"it has {found}"
    if "routes tokens to experts" in reason and not _some(classes, EXPERTS):
        return "it has none"
    if reason.endswith("and MLP are parallel"):
        return _reads_attention(module, run)
    if found := re.fullmatch(r"no norm of the block feeds (.*)", reason):
        return _is_fed_by_a_norm(found[1], module, run)
    return None


def _some(classes: list[str], like: re.Pattern[str], unlike: re.Pattern[str] = re.compile("(?!)")) -> str | None:
    return next((name for name in classes if like.search(name) and not unlike.search(name)), None)


def _first(module: nn.Module, like: re.Pattern[str], unlike: re.Pattern[str] = re.compile("(?!)")) -> nn.Module | None:
    names = ((type(part).__name__, part) for part in module.modules() if part is not module)
    return next((part for name, part in names if like.search(name) and not unlike.search(name)), None)


def _inputs(module: nn.Module, run: Callable[[], Any]) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []

    def receive(_: Any, args: Any, kwargs: Any) -> None:
        seen.append(next(value for value in (*args, *kwargs.values()) if torch.is_tensor(value)).clone())

    handle = module.register_forward_pre_hook(receive, with_kwargs=True)
    run()
    handle.remove()
    return seen


def _reads_attention(module: nn.Module, run: Callable[[], Any]) -> str | None:
    """Parallel: what the MLP reads stays as it is when attention's output changes."""
    attention, mlp = _first(module, ATTENTION), _first(module, MLP, ATTENTION)
    if attention is None or mlp is None:
        return None
    before = _inputs(mlp, run)

    def change(_: Any, args: Any, output: Any) -> Any:
        return output + 1 if torch.is_tensor(output) else (output[0] + 1, *output[1:])

    handle = attention.register_forward_hook(change)
    after = _inputs(mlp, run)
    handle.remove()
    same = all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    return None if same else f"{type(mlp).__name__} reads something else where {type(attention).__name__} writes it"


def _is_fed_by_a_norm(name: str, module: nn.Module, run: Callable[[], Any]) -> str | None:
    """Whether the first linear layer of a part of the block reads the output of a norm in it."""
    part = module.get_submodule(name) if name in dict(module.named_modules()) else _first(module, MLP, ATTENTION)
    linear = part and next((one for one in part.modules() if isinstance(one, nn.Linear)), None)
    norms = [one for one in module.modules() if NORM.search(type(one).__name__)]
    if linear is None or not norms:
        return None
    written: list[torch.Tensor] = []
    fed: list[bool] = []

    def read(_: Any, args: Any) -> None:
        fed.append(
            any(one.numel() == args[0].numel() and torch.equal(one.flatten(), args[0].flatten()) for one in written)
        )

    handles = [
        module.register_forward_pre_hook(lambda *_: written.clear()),  # a block may be called several times
        linear.register_forward_pre_hook(read),
        *(norm.register_forward_hook(lambda _, args, output: written.append(output.clone())) for norm in norms),
    ]
    run()
    for handle in handles:
        handle.remove()
    return f"its first linear layer reads what a norm of {type(module).__name__} writes" if any(fed) else None
