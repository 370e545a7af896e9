"""Masksembles: a few fixed masks with overlap, between dropout and an ensemble."""

import torch

from gfo.core.registry import METHODS
from gfo.methods.base import Method


def draw_masks(width: int, count: int, overlap: float) -> torch.Tensor:
    """Masks of one layer by the recipe of Masksembles, from torch's global generator.

    Every mask takes the same number of places out of a longer row at random; places that none took
    are left out. The row's length is moved until `width` places remain.

    Args:
        width: Units or channels of the layer.
        count: How many masks.
        overlap: In [0.1, 1], see `Masksembles`.

    Returns:
        (count, width) of 0 and 1, with equally many ones in each row and a one in each column.

    Raises:
        ValueError: For an overlap below 0.1 or above 1.
    """
    if not 0.1 <= overlap <= 1:
        raise ValueError(f"overlap is {overlap}, needs to be in [0.1, 1]")
    taken = (1 - (1 - overlap) ** count) / overlap  # places that are taken, per one of a mask
    ones = max(round(width / taken), -(-width // count))  # what `count` masks need to reach all
    places = max(width, round(ones / overlap))
    masks = torch.zeros(count, 0)
    while masks.shape[1] != width:
        masks = (torch.rand(count, places).argsort(1) < ones).float()  # of a random permutation
        masks = masks[:, masks.any(0)]
        places = max(width, places + (1 if masks.shape[1] < width else -1))
    return masks


@METHODS.register("masksembles")
class Masksembles(Method):
    """Masksembles (Durasov et al., CVPR 2021): `count` fixed masks that share some of their units.

    Mask k acts at every site at once, so the network holds `count` subnetworks with common weights.
    A training step shares its batch out among them, row by row in turn; a prediction takes each
    exactly once, whatever `samples` says; `gfo.sample` draws one of them per row, all alike. Kept
    units are not rescaled. Nothing about the masks is learned and they have no probability bit by
    bit: `score` returns None for log q and log p. They are drawn with the network's first weights,
    and go into its file.

    Args:
        count: How many masks.
        overlap: The share of a mask's units that another one is expected to have too: 1 makes all
            masks ones, one common network; near 0 they share no unit, as members of an ensemble.
            The paper's scale S is 1 / overlap, at most 6 in its authors' code.
    """

    name = "masksembles"
    count: int = 4
    overlap: float = 0.5

    def make(self, spec):
        for layer, site in enumerate(spec.sites):
            self.register_buffer(f"masks_{layer}", draw_masks(site.width, self.count, self.overlap))

    def mask_at_site(self, layer, context, mask, u, explore, source):
        h, masks = context.h, self.get_buffer(f"masks_{layer}")
        mask = masks.mean(0, keepdim=True) if mask is None and source == "mean" else mask
        if mask is None:
            mask = masks[(explore[:, 0] * self.count).long() % self.count]  # rounding may give it
        alike = mask.dim() < h.dim()  # every token has the mask of its features
        return mask.unsqueeze(1).expand(-1, h.shape[1], -1) if alike else mask, None, None
