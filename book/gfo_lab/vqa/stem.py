"""Frozen image features: a small convolutional stem, taught what is in an image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from gfo.core.noise import derive, generator

WIDTHS = (32, 64, 64)
EPOCHS = 8


def stem() -> nn.Sequential:
    """(n, 3, 32, 32) to (n, 64, 4, 4)."""
    layers = []
    for before, width in zip((3, *WIDTHS[:-1]), WIDTHS, strict=True):
        conv = nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


def features(images: Tensor, train: Tensor, labels: dict[str, Tensor], seed: int) -> Tensor:
    """Image tokens (n, 16, 64) of `images` (n, 3, 64, 64) in [0, 1], standardised per channel.

    The stem learns on the images `train` (m,) to name each of `labels`, (n,) with −1 where
    unknown, from the mean of its output; then it is frozen. That is supervision beyond the
    question-answer pairs; labels of other images are never read.
    """
    x = F.avg_pool2d(images, 2)  # (n, 3, 64, 64) -> (n, 3, 32, 32)
    mean, std = x[train].mean((0, 2, 3), keepdim=True), x[train].std((0, 2, 3), keepdim=True)
    x = (x - mean) / std
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "stem"))
        net = stem()
        heads = {name: nn.Linear(WIDTHS[-1], int(y.max()) + 1) for name, y in labels.items()}
        learn(net, nn.ModuleDict(heads), x, train, labels, seed)
    net.eval()
    with torch.no_grad():
        maps = torch.cat([net(part) for part in x.split(500)])
    tokens = maps.flatten(2).mT  # (n, 64, 4, 4) -> (n, 16, 64)
    seen = tokens[train].flatten(0, 1)  # (m·16, 64)
    return ((tokens - seen.mean(0)) / seen.std(0).clamp_min(1e-6)).contiguous()


def learn(
    net: nn.Module, heads: nn.ModuleDict, x: Tensor, train: Tensor, labels: dict, seed: int
) -> None:
    """Adam with a linearly falling rate, batches of 64, each batch mirrored or not."""
    parameters = [*net.parameters(), *heads.parameters()]
    steps = EPOCHS * -(-len(train) // 64)
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    gen = generator(seed, "stem", "order")
    for _ in tqdm(range(EPOCHS), desc="image features", leave=False):
        for index in train[torch.randperm(len(train), generator=gen)].split(64):
            flip = bool(torch.rand((), generator=gen) < 0.5)
            pooled = net(x[index].flip(3) if flip else x[index]).mean((2, 3))
            pairs = ((heads[name](pooled), y[index]) for name, y in labels.items())
            losses = (F.cross_entropy(*pair, ignore_index=-1) for pair in pairs)
            optimizer.zero_grad()
            sum(losses).backward()
            optimizer.step()
            schedule.step()
