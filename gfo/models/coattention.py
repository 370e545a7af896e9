"""MCAN, a transformer for questions about images (Yu et al., 2019)."""

from typing import Any

from torch import Tensor, nn

from gfo.core.batch import Tokens
from gfo.core.registry import MODELS
from gfo.models.attention import Attend, Block, FeedForward, Reduce


class Words(nn.Module):
    """Question tokens (B, T) of word numbers, 0 for padding, to (B, T, C).

    Embedded and read by an LSTM, or without one (`embedding` 0) embedded with learned positions.
    """

    def __init__(self, words: int, width: int, embedding: int, longest: int):
        super().__init__()
        self.embed = nn.Embedding(words, embedding or width, padding_idx=0)
        self.lstm = nn.LSTM(embedding, width, batch_first=True) if embedding else None
        self.position: Any = None if embedding else nn.Embedding(longest, width)

    def forward(self, question: Tensor) -> Tensor:
        embedded = self.embed(question)
        if self.lstm is not None:
            return self.lstm(embedded)[0]
        return embedded + self.position.weight[: question.shape[1]]


class MCAN(nn.Module):
    """Logits (B, answers) for image tokens (B, T, D) and questions (B, T') of word numbers.

    An encoder of self-attention over the words; a decoder of self-attention over the image tokens
    and attention from them to the encoded words; attentional reduction of both, whose sum,
    normalised, is classified. Padding is word 0 and the image tokens that are all zero; each
    example needs a word and a token of its own.

    Its forward raises ValueError for image tokens of another width and questions longer than
    `longest`.
    """

    def __init__(
        self, words: int, answers: int, features: int, layers: int, width: int, heads: int,
        embedding: int, longest: int,
    ):  # fmt: skip
        super().__init__()
        self.features, self.longest = features, longest
        self.words = Words(words, width, embedding, longest)
        self.image = nn.Linear(features, width)
        self.encoder = nn.ModuleList(Block(width, heads, guided=False) for _ in range(layers))
        self.decoder = nn.ModuleList(Block(width, heads, guided=True) for _ in range(layers))
        self.reduce_words = Reduce(width, 2 * width)
        self.reduce_image = Reduce(width, 2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.out = nn.Linear(2 * width, answers)

    def forward(self, image: Tensor, question: Tensor) -> Tensor:
        if image.shape[-1] != self.features:
            raise ValueError(f"image tokens are {image.shape[-1]} wide, not {self.features}")
        if question.shape[1] > self.longest:
            cause = f"questions have {question.shape[1]} tokens, this network takes {self.longest}"
            raise ValueError(f"{cause}: cut them, or build it with longest=…")
        there, asked = (image != 0).any(-1), question != 0  # (B, T), (B, T')
        words, tokens = self.words(question), self.image(image)
        for block in self.encoder:
            words = block(words, asked)
        for block in self.decoder:
            tokens = block(tokens, there, words, asked)
        fused = self.reduce_words(words, asked) + self.reduce_image(tokens, there)
        return self.out(self.norm(fused))


@MODELS.register("mcan")
def mcan(
    words: int = 28, classes: int = 13, features: int = 64, layers: int = 2, width: int = 64,
    heads: int = 4, embedding: int = 0, longest: int = 14,
) -> tuple[MCAN, list[str]]:  # fmt: skip
    """An MCAN and its sites.

    A site is the output of each self-attention, guided attention and feed-forward before it is
    added, with a mask per token and feature. The defaults are for easy-VQA. The size of Yu et al.
    and of the paper: words 20,573 and classes 3,129 on VQA v2, features=2048, layers=6, width=512,
    heads=8, embedding=300.

    Args:
        words: Size of the vocabulary, padding and unknown word included.
        classes: Number of answers.
        features: Width of an image token.
        layers: Blocks of the encoder, and as many of the decoder.
        width: C, of every token inside.
        heads: Attention heads; a divisor of `width`.
        embedding: Width of the word embedding that an LSTM reads; 0 for learned positions instead.
        longest: Tokens of the longest question.

    Returns:
        The model and the names of its sites.

    Raises:
        ValueError: Where `heads` does not divide `width`.
    """
    if width % heads:
        raise ValueError(f"width is {width}, needs to be a multiple of heads, {heads}")
    model = MCAN(words, classes, features, layers, width, heads, embedding, longest)
    return model, [name for name, module in model.named_modules() if isinstance(module, Tokens)]


def producers(model: MCAN) -> dict[str, str]:
    """The linear map whose output each site's mask multiplies: site to module name.

    In a residual branch it is what `gfo.ConcreteDropout(consumers=…)` means, since everything reads
    the sum.
    """
    last = {Attend: "attention.out_proj", FeedForward: "net.2"}
    return {
        f"{name}.site": f"{name}.{last[type(module)]}"
        for name, module in model.named_modules()
        if type(module) in last
    }
