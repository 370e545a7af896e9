"""What the network's output says about y: one object used alike in loss, reward and `score`.

`Likelihood` is the protocol. A likelihood of your own is a subclass with a `distribution`; each of
the other methods may be replaced by something faster or better.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.distributions as td
import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int | None, ...]  # None: any length
POOL = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
CELLS = {1: 16, 2: 4, 3: 2}  # per axis, at most: what q reads of y where there are positions


class Likelihood(nn.Module):
    """log p(y | x, z), given the network's outputs under masks z.

    Outputs are (B, C, …): the batch, channels, and positions (pixels, tokens) where the network
    has them, as `F.cross_entropy` takes them. What belongs to one example is summed. `attach`
    keeps a copy as `net.likelihood`, so that what a likelihood learns belongs to one network: it
    is trained with the backbone, saved and moved. A file calls it what it prints as.

    Attributes:
        real: Whether y is of real numbers, which q and log Z read standardised.
        normalised: Whether exp(log_lik) is a probability, or density, of y.
        outputs: (C, …), the shape of one example's outputs.
        size: Numbers that q and log Z read of y.
    """

    real = False
    normalised = True
    outputs: tuple[int, ...] = ()
    size = 0
    wants = "real numbers"

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def build(self, outputs: tuple[int, ...]) -> None:
        """Learn the shape of the outputs and make what depends on it; called by `attach`.

        Raises:
            ValueError: For outputs that do not fit.
        """
        if len(outputs) - 1 > len(POOL):
            raise ValueError(f"outputs have {len(outputs) - 1} axes of positions, at most 3 work")
        self.outputs = outputs
        self.grid = tuple(min(n, CELLS[len(outputs) - 1]) for n in outputs[1:])
        self.size = self.targets(outputs[0]) * math.prod(self.grid)
        if self.real:
            count = self.targets(outputs[0])
            self.y_mean, self.y_sd = nn.Buffer(torch.zeros(count)), nn.Buffer(torch.ones(count))
            self.y_seen = nn.Buffer(torch.zeros((), dtype=torch.bool))

    def targets(self, channels: int) -> int:
        """Numbers of y per position, given the channels of the outputs."""
        return channels

    def distribution(self, outputs: Tensor) -> td.Distribution:
        """p(y | x, z) of one mask per example: outputs (B, C, …), batch shape (B,)."""
        raise NotImplementedError

    def log_lik(self, outputs: Tensor, y: Tensor) -> Tensor:
        """log p(y | x, z), shape (B,), in nats."""
        return self.distribution(outputs).log_prob(y)

    def predictive_log_lik(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Log of the mean over masks of p(y | x, z): outputs (S, B, C, …), shape (B,), in nats."""
        each = torch.stack([self.log_lik(one, y) for one in outputs])
        return each.logsumexp(0) - math.log(len(each))

    def valid_nll(self, outputs: Tensor, y: Tensor) -> Tensor:
        """What early stopping watches: outputs (S, B, C, …), shape (B,), in nats."""
        return -self.predictive_log_lik(outputs, y)

    def expected(self, outputs: Tensor) -> Tensor:
        """Mean of p(y | x, z): outputs (B, C, …)."""
        return self.distribution(outputs).mean

    def variance(self, outputs: Tensor) -> Tensor:
        """Variance of p(y | x, z), in the shape of `expected`."""
        return self.distribution(outputs).variance

    def mean(self, outputs: Tensor) -> Tensor:
        """Mean of the predictive over masks, what `gfo.predict` returns: outputs (S, B, C, …)."""
        return self.expected(outputs.flatten(0, 1)).unflatten(0, outputs.shape[:2]).mean(0)

    def entropy(self, probs: Tensor) -> Tensor:
        """Of mean probabilities (B, C, …), (B,), in nats; of several answers per row the sum."""
        raise ValueError(f"{self} has no probabilities: take gfo.predictive(net, x).variance")

    def answer(self, probs: Tensor) -> Tensor:
        """The y that mean probabilities (B, C, …) speak for."""
        return self.entropy(probs)  # without probabilities the same message

    def encode(self, y: Tensor) -> Tensor:
        """What q and log Z read of y, (B, `size`).

        The numbers themselves, standardised where they are real; where y has more positions than a
        few (`CELLS`), their means over a coarse grid.
        """
        y = y.float()
        if self.real:
            shape = (-1, *[1] * len(self.grid))  # (D,) -> (D, 1, …)
            y = (y - self.y_mean.view(shape)) / self.y_sd.view(shape)
        return self.pool(y)

    def pool(self, values: Tensor) -> Tensor:
        """Values (B, C, …) averaged over the cells of the grid, (B, C · cells)."""
        return (POOL[len(self.grid)](values, self.grid) if self.grid else values).flatten(1)

    @torch.no_grad()
    def standardise(self, ys: Iterable[Tensor]) -> None:
        """Take mean and standard deviation of the training y, for `encode`.

        `fit` calls this; in a loop of your own call it before the first step. Only the first call
        counts: a trained q goes on reading y as it has learned to.

        Args:
            ys: Batches (B, D, …), read only where y is real.
        """
        if not self.real or self.y_seen:
            return
        count, (mean, squares) = 0, torch.zeros(2, len(self.y_mean)).double()
        for y in map(torch.as_tensor, ys):
            y = y.detach().cpu().double().movedim(1, -1).flatten(0, -2)  # (B, D, …) -> (n, D)
            count, gap = count + len(y), y.mean(0) - mean
            mean = mean + gap * len(y) / count
            squares = squares + (y - y.mean(0)).square().sum(0)
            squares = squares + gap.square() * (len(y) * (count - len(y)) / count)
        sd = (squares / max(count - 1, 1)).sqrt()
        self.y_mean.copy_(mean)
        self.y_sd.copy_(torch.where(sd > 0, sd, 1))
        self.y_seen.fill_(True)

    def check(self, y: Tensor, batch: int, outputs: Shape) -> None:
        """Check y before a pass.

        Args:
            y: What is to be predicted.
            batch: How many rows there have to be.
            outputs: (C, …), the shape of one example's outputs; None where it is not known.

        Raises:
            ValueError: Unless y is finite floats (batch, D, …).
        """
        channels, *positions = outputs
        self.check_shape(y, (batch, self.targets(int(channels or 0)), *positions), " targets")
        if not y.is_floating_point():
            raise ValueError(f"y has dtype {y.dtype}, needs {self.wants}: use y.float()")
        if not y.isfinite().all():
            raise ValueError("y contains NaN or inf: clean the targets first")

    def check_shape(self, y: Tensor, want: Shape, what: str) -> None:
        """ValueError unless y has the shape `want`."""
        got, need = tuple(y.shape), str(want).replace("None", "any")
        if len(got) == len(want) and all(w in (g, None) for g, w in zip(got, want, strict=True)):
            return
        hint = ": use y[:, None]" if (*got, 1) == want else ""
        raise ValueError(f"y has shape {got}, needs {need}{what}{hint}")


def wide(outputs: Tensor) -> Tensor:
    """In float32, which autocast may have left, or wider."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()


def per_example(values: Tensor) -> Tensor:
    """(B,) or (B, …) -> (B,): the sum of what belongs to one example."""
    return values if values.dim() == 1 else values.flatten(1).sum(1)


class PositionLabels(td.Categorical):
    """Labels of which those of −100 count nothing."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value.where(value != -100, 0)).where(value != -100, 0.0)


class Categorical(Likelihood):
    """One of K classes: logits (B, K), labels y (B,) integer in 0…K−1.

    Or one per position: logits (B, K, …), labels (B, …), of which those of −100 count nothing, as
    in `F.cross_entropy`. Class weights make log p(y | x, z) count w_y times in loss, reward,
    `score` and early stopping alike, which is Bayes' rule with p(y | x, z)^{w_y}. They are taken
    as they are: with a mean of 1 over the training labels (scikit-learn's
    `compute_class_weight("balanced", …)`) prior and likelihood keep their proportion. `probs` is
    p(y | x, z) whatever the weights.

    Args:
        weights: K positive numbers, for classes of unequal size.

    Raises:
        ValueError: For weights that are not positive numbers.
    """

    def __init__(self, weights: Sequence[float] | Tensor | None = None):
        super().__init__()
        given = 0.0 if isinstance(weights, str) else weights  # a word is refused below
        w = None if given is None else torch.as_tensor(given, dtype=torch.float32)
        if w is not None and (w.dim() != 1 or not ((w > 0) & w.isfinite()).all()):
            raise ValueError(f"weights are {weights}, need to be positive numbers, one per class")
        self.weights: Tensor | None
        self.register_buffer("weights", w, persistent=False)  # the name in a file has them
        self.normalised = w is None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'' if self.weights is None else self.weights.tolist()})"

    def build(self, outputs: tuple[int, ...]) -> None:
        if outputs[0] == 1:
            cure = "gfo.Bernoulli() for yes or no, gfo.Gaussian(sd='learned') for a number"
            raise ValueError(f"the one output is, as a class, always right: likelihood={cure}")
        super().build(outputs)

    def distribution(self, outputs: Tensor) -> td.Distribution:
        kind = PositionLabels if outputs.dim() > 2 else td.Categorical
        return td.Independent(kind(logits=wide(outputs).movedim(1, -1)), outputs.dim() - 2)

    def log_lik(self, outputs: Tensor, y: Tensor) -> Tensor:
        """log p(y | x, z), times w_y, shape (B,), in nats."""
        logits = wide(outputs)
        weights = None if self.weights is None else self.weights.to(logits)
        return -per_example(F.cross_entropy(logits, y, weights, reduction="none"))

    def valid_nll(self, outputs: Tensor, y: Tensor) -> Tensor:
        if outputs.dim() > 3:
            return super().valid_nll(outputs, y)
        return self.predictive_nll(self.mean(outputs), y)  # w_y weighs the average, not each mask

    def probs(self, logits: Tensor) -> Tensor:
        """p(· | x, z), in the shape of the logits; any axes may come before the classes'."""
        return wide(logits).softmax(-max(len(self.outputs), 1))

    def expected(self, outputs: Tensor) -> Tensor:
        """Class probabilities."""
        return wide(outputs).softmax(1)

    def variance(self, outputs: Tensor) -> Tensor:
        """Of the label one-hot: p (1 − p) per class."""
        probs = self.expected(outputs)
        return probs * (1 - probs)

    def entropy(self, probs: Tensor) -> Tensor:
        return torch.special.entr(probs).flatten(1).sum(1)

    def answer(self, probs: Tensor) -> Tensor:
        return probs.argmax(1)

    def predictive_nll(self, probs: Tensor, y: Tensor) -> Tensor:
        """−log of the mask-averaged predictive at y, times w_y, shape (B,), in nats."""
        tiny = torch.finfo(probs.dtype).tiny
        nll = -probs.gather(1, y[:, None]).squeeze(1).clamp_min(tiny).log()  # (B, 1) -> (B,)
        return nll if self.weights is None else nll * self.weights.to(y.device)[y]

    def encode(self, y: Tensor) -> Tensor:
        """What q and log Z read of y: one-hot, (B, K); of positions, shares of each class."""
        classes = self.outputs[0] if self.outputs else -1
        if y.dim() == 1:
            return F.one_hot(y, classes).float()
        shares = [self.pool((y == k).float().unsqueeze(1)) for k in range(classes)]
        return torch.cat(shares, 1)  # a class at a time: one-hot would be (B, K, …)

    def check(self, y: Tensor, batch: int, outputs: Shape) -> None:
        """Check labels.

        Args:
            y: Labels, (B,) or (B, …).
            batch: How many rows there have to be.
            outputs: (K, …).

        Raises:
            ValueError: Unless y is integer labels in 0…K−1 and the class weights are K.
        """
        classes, positions = int(outputs[0] or 0), outputs[1:]
        if self.weights is not None and len(self.weights) != classes:
            raise ValueError(f"{len(self.weights)} class weights, the network has {classes} logits")
        what = " labels, one per position" if positions else ": one label per row"
        self.check_shape(y, (batch, *positions), what)
        if y.dtype != torch.int64:
            cure = "use y.long(); for real numbers attach with likelihood=gfo.Gaussian()"
            raise ValueError(f"y has dtype {y.dtype}, needs integer labels, int64: {cure}")
        known = y[y != -100] if positions else y
        low, high = (int(known.min()), int(known.max())) if len(known) else (0, 0)
        if low < 0 or high >= classes:
            raise ValueError(f"labels run {low}…{high}, the network has classes 0…{classes - 1}")
