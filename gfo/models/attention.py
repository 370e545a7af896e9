"""The parts of MCAN: attention, feed-forward, attentional reduction, and where masks go."""

from torch import Tensor, nn

from gfo.core.batch import Tokens


class Attend(nn.Module):
    """Multi-head attention without dropout on its map, a mask site behind it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.site = Tokens()
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, real: Tensor, other: Tensor, other_real: Tensor) -> Tensor:
        """Attend from one sequence to another.

        Args:
            h: Whose queries look, (B, T, C).
            real: (B, T), True where there is a token of h.
            other: What they look at, (B, T', C).
            other_real: (B, T'), True where there is a token of it.

        Returns:
            (B, T, C).
        """
        found, _ = self.attention(h, other, other, key_padding_mask=~other_real, need_weights=False)
        return self.norm(h + self.site(found, real))


class FeedForward(nn.Module):
    """C → 4C → C per token, a mask site behind it."""

    def __init__(self, width: int):
        super().__init__()
        wide = 4 * width
        self.net = nn.Sequential(nn.Linear(width, wide), nn.ReLU(), nn.Linear(wide, width))
        self.site = Tokens()
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, real: Tensor) -> Tensor:
        return self.norm(h + self.site(self.net(h), real))


class Block(nn.Module):
    """Self-attention, guided attention where there is a guide, feed-forward.

    Each adds to what it reads, and a layer norm follows.
    """

    def __init__(self, width: int, heads: int, guided: bool):
        super().__init__()
        self.self_attend = Attend(width, heads)
        self.guided_attend = Attend(width, heads) if guided else None
        self.feed_forward = FeedForward(width)

    def forward(
        self, h: Tensor, real: Tensor, guide: Tensor | None = None, guide_real: Tensor | None = None
    ) -> Tensor:
        h = self.self_attend(h, real, h, real)
        if self.guided_attend is not None:
            h = self.guided_attend(h, real, guide, guide_real)
        return self.feed_forward(h, real)


class Reduce(nn.Module):
    """Attentional reduction: the tokens' mean under learned weights, widened to `flat`."""

    def __init__(self, width: int, flat: int):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        self.weights = nn.Softmax(1)  # a module, so that a hook can read where it looks
        self.merge = nn.Linear(width, flat)

    def forward(self, h: Tensor, real: Tensor) -> Tensor:
        score = self.score(h).masked_fill(~real.unsqueeze(-1), float("-inf"))  # (B, T, 1)
        return self.merge((self.weights(score) * h).sum(1))  # (B, T, C) -> (B, C) -> (B, flat)
