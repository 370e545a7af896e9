"""Randomness by name: every draw comes from (seed, what it is for, which one).

Then a run resumed at step 700 draws what an unbroken run drew, folding samples into the batch
gives what a loop gives, and two methods can be compared under common random numbers.
"""

import zlib
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch


def derive(seed: int, *key: int | str) -> int:
    """A 63-bit seed that depends on `seed` and every part of `key`.

    But for zeros at the end of a key of less than four parts: (“a”,) and (“a”, 0) are one.

    Args:
        seed: A whole number from 0 on.
        *key: What the randomness is for, and which one.

    Raises:
        ValueError: For a seed that is negative or no whole number.
    """
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed is {seed!r}: seeds are whole numbers from 0 on")
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else int(part) for part in key]
    state = np.random.SeedSequence([int(seed), *words]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def generator(seed: int, *key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded by `derive(seed, *key)`."""
    return torch.Generator(device).manual_seed(derive(seed, *key))


def step_key(seed: int | None, step: Any, gen: torch.Generator | None) -> tuple:
    """The key of one training step's noise: (seed, step), or one number that torch draws.

    Raises:
        ValueError: For a seed without a step, a step beside a generator, and a step that is no
            whole number.
    """
    if step is None:
        if seed is not None:
            raise ValueError(f"seed={seed} without step: every step would draw the same masks")
        device = "cpu" if gen is None else gen.device
        return (int(torch.randint(2**63 - 1, (), generator=gen, device=device)),)
    if gen is not None:
        raise ValueError("noise comes from (seed, step) or from a generator: give one of them")
    steps = step if isinstance(step, tuple | list) else (step,)
    if not all(isinstance(part, int | np.integer) and part >= 0 for part in steps):
        raise ValueError(f"step is {step!r}: steps are whole numbers from 0 on, or a tuple of some")
    return (seed or 0, "step", *steps)


class Noise(NamedTuple):
    """What one masked pass consumes.

    Attributes:
        u: Uniform numbers per site, (B, C_l) or (B, T_l, C_l), one number per mask bit.
        explore: Uniform (B, L), one number per example and layer, which decides whether that layer
            takes a random mask.
    """

    u: list[torch.Tensor]
    explore: torch.Tensor


def draw_noise(sites: Sequence, batch: int, gen: torch.Generator) -> Noise:
    """Uniform noise on the generator's device for `batch` rows of all `sites`.

    One `rand` for everything: drawing and comparing is twice as fast as `torch.bernoulli` on a
    CPU, and a single call keeps the number of kernels independent of depth.
    """
    sizes = [site.width * (site.tokens or 1) for site in sites]
    flat = torch.rand(batch, sum(sizes) + len(sites), generator=gen, device=gen.device)
    *by_site, explore = flat.split([*sizes, len(sites)], dim=1)
    shaped = [
        u.unflatten(1, (site.tokens, site.width)) if site.tokens else u  # (B, T·C) -> (B, T, C)
        for u, site in zip(by_site, sites, strict=True)
    ]
    return Noise(shaped, explore)
