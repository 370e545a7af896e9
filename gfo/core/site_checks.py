"""What may not be a site, and what had better not be one."""

import warnings
from itertools import combinations

from torch import Tensor


def check_site(name: str, outputs: list) -> None:
    """Raise ValueError unless a site's calls in one pass gave exactly one tensor."""
    if len(outputs) > 1:
        wrong = f"is called {len(outputs)} times in one pass: give each call a module"
    elif not outputs:
        wrong = "is never called on the example: choose a module that runs"
    elif not isinstance(outputs[0], Tensor):
        wrong = (
            f"returns a {type(outputs[0]).__name__}, no tensor: choose the dropout behind it, say"
        )
    elif outputs[0].is_nested:
        wrong = "returns a nested tensor: set enable_nested_tensor=False in its encoder"
    else:
        return
    raise ValueError(f"site {name!r} {wrong}")


def check_together(outputs: dict[str, Tensor], logits: Tensor, dropped: list[str]) -> None:
    """Raise ValueError where two sites return one tensor, and warn of what weakens masks.

    Args:
        outputs: Of each site.
        logits: A site that returns them is warned of.
        dropped: Sites at which the model's own dropout acts too while it trains.
    """
    for (name, h), (other, same) in combinations(outputs.items(), 2):
        if h is same:
            raise ValueError(
                f"sites {name!r} and {other!r} return the same tensor: name one of them"
            )
    said = [
        f"site {name!r} is the output layer: its masks set logits to 0; choose a module before it"
        for name, h in outputs.items()
        if h is logits
    ]
    if dropped:
        said.append(
            "dropout of the model's own, p > 0, acts in training beside the masks of site(s) "
            f"{', '.join(dropped)}: set its p to 0"
        )
    for words in said:
        warnings.warn(words, stacklevel=4)
