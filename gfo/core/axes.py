"""Which axis of an activation holds the channels: followed through a pass, function by function."""

import contextlib
import math
import re
from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from gfo.core.batch import leaves
from gfo.core.files import declared

Axes = tuple[int, ...]
KINDS = {kind: re.compile("|".join(names)) for kind, names in declared(__file__).items()}


class Channels(TorchFunctionMode):
    """Inside the block, knows the channel axes of every tensor that functions of torch make.

    More than one where the channels were split into groups or heads. A function's kind, as in
    `axes.toml`, says what it does to them; one of no kind leaves them where they are in its first
    argument of as many axes.

    Attributes:
        known: By tensor; () or no entry for one of which nothing is known.
        maker: By tensor, the name of the function that made it.
        dropped: Inputs and outputs of dropout with p > 0, though it may be in eval mode.
    """

    def __init__(self):
        super().__init__()
        self.known, self.maker, self.dropped = (WeakTensorKeyDictionary() for _ in range(3))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if made := [t for t in leaves(result) if t.dim()]:
            name, given = getattr(func, "__name__", "").strip("_"), leaves([*args, kwargs])
            for t, axes in zip(made, self.axes(func, name, args, kwargs, given, made), strict=True):
                self.known[t], self.maker[t] = axes, name
            if KINDS["drops"].fullmatch(name):
                if kwargs.get("p", args[1] if len(args) > 1 else 0.5) > 0:
                    self.dropped.update(dict.fromkeys((*given[:1], *made), True))
        return result

    def axes(self, func, name, args, kwargs, given, made) -> list[Axes]:
        """The channel axes of each tensor that a call made, () where nothing is known."""
        known = [t for t in given if self.known.get(t)]
        # a norm over all of (C, H, W) has no word on which of them is C
        sizes = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
        whole = name in ("layer_norm", "rms_norm") and len(sizes) > 1
        kinds = {kind for kind, names in KINDS.items() if names.fullmatch(name)}
        if "product" in kinds and known:  # axes that are not summed over keep their place
            h = known[-1]
            # q @ kᵀ has none; W @ x has new ones there
            gone = h.dim() - 2 if h is given[-1] and h is not known[0] else None
            found = [a + max(0, made[0].dim() - h.dim()) for a in self.known[h] if a != gone]
            return [tuple(min(a, t.dim() - 1) for a in found) for t in made]
        if "mixes" in kinds or ("product" in kinds and given[0].dim() < given[-1].dim()):
            return [()] * len(made)  # W @ x: which axis of x?
        if kinds & {"last", "product"} and not whole:
            return [(max(0, t.dim() - 1),) for t in made]
        if "second" in kinds:
            return [(min(1, t.dim() - 1),) for t in made]
        if "moves" in kinds:
            axes = self.known.get(args[0]) if args and isinstance(args[0], torch.Tensor) else None
            found = tried(func, args, kwargs, axes) if axes else []
            return found if len(found) == len(made) else [()] * len(made)
        default = (1,) if "second_if_unknown" in kinds else ()
        return [next((self.known[t] for t in known if t.dim() == m.dim()), default) for m in made]


def tried(func: Callable, args: tuple, kwargs: dict, axes: Axes) -> list[Axes]:
    """Where `func` moves channels that lie on `axes` of its first argument.

    A number per channel, put in its place, goes along. Empty where that cannot be tried.
    """
    shape = [n if i in axes else 1 for i, n in enumerate(args[0].shape)]
    numbers = torch.arange(math.prod(shape), dtype=torch.float64, device=args[0].device)
    with contextlib.suppress(RuntimeError, TypeError, IndexError):
        result = func(numbers.view(shape).expand(args[0].shape).clone(), *args[1:], **kwargs)
        made = [t for t in leaves(result) if t.dim()]
        return [tuple(a for a in range(t.dim()) if (t != t.narrow(a, 0, 1)).any()) for t in made]
    return []


def usual_letters(h: torch.Tensor, axes: Axes) -> str | None:
    """Letters for an activation of 2 to 5 axes, batch first, whose channels lie on `axes`.

    Three axes are tokens where the channels are last; where they are not, and for more, one mask
    bit serves all places. None where that is not known.
    """
    if h.dim() == 2:
        return "BC"
    if h.dim() not in (3, 4, 5) or len(axes) != 1 or axes == (0,):
        return None
    rest = iter("DHW"[5 - h.dim() :] if h.dim() > 3 else "T" if axes == (2,) else "L")
    return "B" + "".join("C" if i in axes else next(rest) for i in range(1, h.dim()))
