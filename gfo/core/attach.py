"""Put masks behind named modules of any torch model, and take them off again."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from gfo.core.attached import Attached, check_bare, put_masks
from gfo.core.prefix import replays
from gfo.core.registry import METHODS
from gfo.core.sites import find_sites, inspect

if TYPE_CHECKING:
    from gfo.methods.base import Method


def attach(
    model: nn.Module,
    sites: str | Sequence[str],
    method: "Method | str",
    example: Any,
    *,
    axes: Mapping[str, Sequence[str]] | None = None,
    output: str | int | None = None,
    likelihood: Any = None,
) -> Attached:
    """Put masks behind modules of `model`.

    Args:
        model: Any module whose logits are (B, K).
        sites: Module names, or one pattern such as "layer*.bn2" (`*` also matches dots). Masks are
            unit-wise for outputs (B, C), channel-wise for (B, C, H, W) and for the (B, C, L) of a
            `Conv1d` or `BatchNorm1d`, per token and feature for any other output of three axes,
            which is taken for (B, T, C); where tokens may be padding, a site of class
            `gfo.core.batch.Tokens` says so.
        method: `gfo.GFlowOut()`, …, or a registered name such as "gflowout".
        example: An input batch (a tensor, or a tuple, list or dict of tensors), run a few times,
            also doubled, without gradient in eval mode, to find widths, token counts, the number of
            classes and what of a pass can be shared by many masks.
        axes: For a site whose shape cannot say it, a letter per axis: ("T", "B", "C"),
            ("B", "C", "L"), ("B", "H", "W", "C"). T has a mask per token, other letters share one.
        output: Where the logits are, if the model returns a tuple (position) or dict (key).
        likelihood: What the logits say about y: `gfo.Categorical()` by default, with class weights
            `gfo.Categorical([1.0, 9.0])`, for graded answers `gfo.SoftTargets()`.

    Returns:
        The model with its masks; its `detach` takes them off again.

    Raises:
        ValueError: Naming the module, for a pattern that matches nothing and for a site that is
            never called, is called twice in one pass, returns no tensor, or whose batch is not
            where its axes say.
    """

    method = METHODS[method]() if isinstance(method, str) else method
    names = find_sites(model, sites)
    check_bare(model)
    spec = inspect(model, names, example, axes or {}, output)
    net = put_masks(model, spec, method, likelihood)
    if not replays(net, example):
        net.spec = spec._replace(batched=())
    return net
