"""Which module reads a site: whose weights the site's mask multiplies."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from gfo.core.sites import Spec


def find_consumers(model: nn.Module, spec: Spec, named: Mapping[str, str]) -> tuple[Any, ...]:
    """One module with a weight matrix per site.

    By the name that `named` gives the site, or that the model's own `consumers` does, or the next
    one behind it in its nn.Sequential.

    Args:
        model: The bare model.
        spec: Its sites.
        named: Site to name of the module.

    Raises:
        ValueError: Where none of these finds one, or a name is no site's or no such module's.
    """
    sites = [site.name for site in spec.sites]
    if unknown := sorted(set(named) - set(sites)):
        raise ValueError(f"consumers names {unknown[0]!r}, which is not a site: {', '.join(sites)}")
    told = getattr(model, "consumers", {})
    named = {site: told[site] for site in sites if site in told} | dict(named)
    known = dict(model.named_modules())
    for name in (n for n in named.values() if n not in known or not _weighted(known[n])):
        raise ValueError(f"consumers names {name!r}, which is no module with a weight matrix")
    found = [known[named[s]] if s in named else _next(model, s) for s in sites]
    if None in found:
        site = sites[found.index(None)]
        raise ValueError(f"no module tells what reads {site!r}: pass consumers={{{site!r}: …}}")
    return tuple(found)


def _weighted(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and weight.dim() >= 2  # a normalisation's weight is a vector


def _next(model: nn.Module, site: str) -> nn.Module | None:
    above, _, child = site.rpartition(".")
    parent = model.get_submodule(above)
    if not isinstance(parent, nn.Sequential):
        return None
    behind = list(parent)[list(parent._modules).index(child) + 1 :]
    for module in (m for part in behind for m in part.modules()):
        if _weighted(module):
            return module
        if not isinstance(module, nn.Sequential) and any(p.dim() > 1 for p in module.parameters()):
            return None  # a block with branches of its own: which weights would it be?
    return _next(model, above) if above else None  # the Sequential ends: what reads its output?
