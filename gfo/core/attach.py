"""Put masks behind named modules of any torch model, and take them off again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from gfo.core.attached import Attached, check_bare
from gfo.core.batch import device_of
from gfo.core.likelihood import Categorical
from gfo.core.prefix import replays
from gfo.core.registry import METHODS
from gfo.core.sites import find_sites, inspect


def attach(
    model: nn.Module,
    sites: str | Sequence[str],
    method: nn.Module | str,
    example: Any,
    *,
    axes: Mapping[str, Sequence[str]] | None = None,
    output: str | int | None = None,
    likelihood: Any = None,
) -> Attached:
    """Put masks behind modules of `model`.

    model: any module whose logits are (B, K).
    sites: module names, or one pattern such as "layer*.bn2" (`*` also matches dots). Masks are
        unit-wise for outputs (B, C), channel-wise for (B, C, H, W) and for the (B, C, L) of a
        `Conv1d` or `BatchNorm1d`, per token and feature for any other output of three axes, which
        is taken for (B, T, C); where tokens may be padding, a site of class `gfo.tokens.Tokens`
        says so.
    method: `gfo.GFlowOut()`, …, or a registered name such as "gflowout".
    example: an input batch (a tensor, or a tuple, list or dict of tensors), run a few times, also
        doubled, without gradient in eval mode, to find widths, token counts, the number of classes
        and what of a pass can be shared by many masks.
    axes: for a site whose shape cannot say it, a letter an axis: ("T", "B", "C"),
        ("B", "C", "L"), ("B", "H", "W", "C"). T has a mask a token, other letters share one.
    output: where the logits are, if the model returns a tuple (position) or dict (key).
    likelihood: what the logits say about y: `gfo.Categorical()` by default, with class weights
        `gfo.Categorical([1.0, 9.0])`, for graded answers `gfo.SoftTargets()`.

    Raises ValueError, naming the module, for a pattern that matches nothing and for a site that
    is never called, is called twice in one pass, returns no tensor, or whose batch is not where
    its axes say.
    """

    method = METHODS[method]() if isinstance(method, str) else method
    names = find_sites(model, sites)
    check_bare(model)
    spec = inspect(model, names, example, axes or {}, output)
    method.build(spec, model)
    method.to(device_of(model))
    net = Attached(model, spec, method, likelihood or Categorical())
    if not replays(net, example):
        net.spec = spec._replace(batched=())
    return net
