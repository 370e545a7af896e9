"""Put masks behind named modules of any torch model, and take them off again."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from gfo.core.attached import Attached, Hub, check_bare, hubs, put_masks
from gfo.core.batch import kinds
from gfo.core.bernoulli import Bernoulli
from gfo.core.likelihood import Categorical, Likelihood
from gfo.core.registry import METHODS
from gfo.core.sharing import judge
from gfo.core.sites import find_sites, inspect

if TYPE_CHECKING:
    from gfo.methods.base import Method


def attach(
    model: nn.Module, sites: str | Sequence[str], method: "Method | str", example: Any, *,
    axes: Mapping[str, Sequence[str]] | None = None, output: str | int | None = None,
    likelihood: Likelihood | None = None,
) -> Attached:  # fmt: skip
    """Put masks behind modules of `model`.

    Args:
        model: Any module whose logits are (B, K), or (B, K, …) with positions as pixels.
        sites: Module names, or one pattern such as "layer*.bn2" (`*` also matches dots). Masks are
            unit-wise for outputs (B, C), per token and feature for (B, T, C), else one bit per
            channel: (B, C, L), (B, C, H, W), (B, H, W, C), (B, C, D, H, W). Which axis holds C is
            followed through the pass, function by function: last behind a `Linear` or `LayerNorm`,
            second behind a convolution or `BatchNorm`. Where tokens may be padding, a site of class
            `gfo.core.batch.Tokens` says so.
        method: `gfo.GFlowOut()`, …, or a registered name such as "gflowout".
        example: An input batch (a tensor, or a tuple, list or mapping of tensors), run a few times,
            also doubled and disturbed, without gradient in eval mode, to find widths, token counts,
            the number of classes and what of a pass can be shared by many masks.
        axes: For a site of which nothing tells it, a letter per axis: ("T", "B", "C"),
            ("B", "C", "L"), ("B", "H", "W", "C"). T has a mask per token, other letters share one.
        output: Where the logits are, if the model returns a tuple (position) or dict (key), if only
            in train mode; a NamedTuple's `logits` are found without.
        likelihood: What the logits say about y: `gfo.Categorical()` by default, with class weights
            `gfo.Categorical([1.0, 9.0])`, for graded answers `gfo.SoftTargets()`, for yes or no
            `gfo.Bernoulli()`, for real numbers `gfo.Gaussian()`. The net keeps a copy.

    Returns:
        The model with its masks; its `detach` takes them off again.

    Raises:
        ValueError: Naming the module, for a pattern that matches nothing and for a site that is
            never called, is called twice in one pass, returns no tensor, returns that of another
            site or contains it, or whose batch is not where its axes say. For one output under
            `Categorical`, a model without weights yet or with masks already, an unknown method and
            one that another net has.

    Warns of a site that is the output layer, or beside which dropout of the model's own acts, and
    of logits that are probabilities.
    """
    method = METHODS[method]() if isinstance(method, str) else method
    check_parts(model, method)
    by_class = isinstance(likelihood, Categorical | None)
    read = (by_class or isinstance(likelihood, Bernoulli), by_class)
    with Hub({}).turn(model):  # another network may run modules of this one
        spec = inspect(model, find_sites(model, sites), example, axes or {}, output, *read)
        net = put_masks(model, spec, method, likelihood)
        net.seen.add(kinds(example))
        net.spec = judge(net, example)
    return net


def check_parts(model: Any, method: Any) -> None:
    """Raise ValueError unless these are a bare model with weights and a method."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}, needs to be an nn.Module")
    check_bare(model)
    for name, p in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(p):
            raise ValueError(f"{name!r} has no shape yet: run the lazy model once before attach")
        if p.is_meta:
            raise ValueError(f"{name!r} is on the meta device: load weights before attach")
    if isinstance(method, type) or not hasattr(method, "mask_at_site"):
        raise ValueError(f"method is {method!r}, needs to be an object such as gfo.GFlowOut()")


def detach(model: nn.Module) -> nn.Module:
    """Take masks off a model, with or without the net that `attach` returned.

    Args:
        model: The model, a copy of it, or the net; a model without masks stays as it is.

    Returns:
        The model; its modes are those it had at `attach`.

    Raises:
        ValueError: For what is no module.
    """
    if isinstance(model, Attached):
        return model.detach()
    if not isinstance(model, nn.Module):
        raise ValueError(f"detach takes a model or a net, got a {type(model).__name__}")
    for hub in hubs(model):
        hub.leave(model)
    return model
