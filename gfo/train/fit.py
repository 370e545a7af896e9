"""The training loop, in the open: epochs of masked passes, early stopping, exact resume.

Every random number of a run comes from (seed, epoch, step), so a run that is killed and called
again with the same checkpoint ends with the weights of an unbroken one. One backward pass serves
backbone, masks and log Z, their gradients being disjoint.
"""

import contextlib
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from gfo.core.attached import Attached
from gfo.core.batch import pick_device, to_device, tree_map
from gfo.core.blocks import samplers
from gfo.core.checks import check_batch, check_counts, check_functions, check_net, check_whole
from gfo.core.masked_pass import BatchPass
from gfo.core.noise import derive, generator
from gfo.core.predict import Reduce, answers
from gfo.core.rates import learning_rates
from gfo.core.save import describe, digest
from gfo.core.sites import set_modes
from gfo.methods.base import Loss, check_argument
from gfo.train.batches import Batches, Data, ordered, pairs
from gfo.train.checkpoint import File, Moving, check_writable, name_of, remember, resume
from gfo.train.optim import Make, Schedule, make_schedulers, optimizers_of
from gfo.train.step import GraphedStep, Step


@torch.random.fork_rng()  # the caller's random state stays his: a loader may draw from it
def fit(
    net: Attached, train: Batches, valid: Batches | None = None, *, epochs: int = 40,
    batch: int = 128, patience: int = 6, lr: Mapping[str, float] | None = None,
    optimizer: Make | None = None, backbone: bool = True, n: int | None = None,
    samples: int = 20, seed: int = 0, device: str | torch.device = "auto",
    checkpoint: File = None, progress: bool = True, bf16: bool = False,
    compile: bool = False, graph: bool = False, schedule: str | Schedule | None = None,
    augment: Callable[[Any, torch.Generator], Any] | None = None, on_epoch: Callable | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Train backbone and masks. Modules in eval mode inside a model in train mode stay so.

    Args:
        net: What `attach` returned.
        train: (x, y) tensors or arrays, or any re-iterable of such batches, or of mappings with y
            under "labels" (`gfo.core.batch.LABELS`). Of one row they are left out beside BatchNorm,
            of tensors always. A DataLoader's own `generator` is seeded anew each epoch.
        valid: The same for early stopping, on the NLL of the mask-averaged predictive under fixed
            noise; the best weights come back. Without it all epochs run and the last weights stay.
        epochs: At most so many.
        batch: Rows per batch of tensors; an iterable brings its own batches.
        patience: Early stopping waits so many epochs for a better one.
        lr: Rates of the groups "backbone", "masks", "log_z" other than 1e-3, 1e-3, 1e-2 (Adam).
        optimizer: `f(group, parameters)` per group, instead of one Adam; its rates act, not `lr`.
        backbone: False trains masks on a frozen network (its BatchNorm statistics stay too).
        samples: Masks that the validation predictive is averaged over.
        seed: Of every random number, but NumPy's own and those of a loader's persistent workers.
        device: "auto" takes the GPU if there is one.
        checkpoint: A file written at each epoch's end; if it exists, the run goes on from there.
        progress: Whether to show a bar per epoch.
        bf16: Autocast to bfloat16.
        compile: torch.compile the loss, masked pass included; anew for a batch of another size.
        graph: On a GPU, a CUDA graph per step (odd batches aside); needs a capturable `optimizer`.
        schedule: "one-cycle", or `f(optimizer, steps)`: a torch scheduler, stepped per batch.
        augment: `f(x, generator)` changes each training batch, by draws of that step's generator.
        n: Size of the training set; spares a stream that cannot tell it one reading. To be said
            where a sampler draws more or fewer rows per epoch than there are.
        on_epoch: `f(row)` of each new row of the history, once the checkpoint is written.

    Returns:
        The history, one row per epoch: epoch, each loss part (mean over batches, nats; "tb",
        "vargrad" and "subtb" in nats²), the method's further figures, valid_nll, seconds.

    Raises:
        ValueError: On bad data or another run's checkpoint; after an epoch that ends with a loss or
            weight that is not finite: with `valid` the net then has its best weights so far.
    """
    check_net(net)
    check_counts(samples=samples, batch=batch, patience=patience, n=1 if n is None else n)
    epochs, seed = check_whole("epochs", epochs), check_whole("seed", seed)
    check_functions(optimizer=optimizer, augment=augment, on_epoch=on_epoch)
    check_writable(checkpoint)
    net.to(pick_device(device))
    data, rates = Data(net, train, valid, int(batch), bool(schedule), n), learning_rates(lr)
    optimizers = optimizers_of(net, lr, backbone, optimizer, graph)
    steps = epochs * data.per_epoch if schedule else 0
    moving = {"optimizers": optimizers, "schedulers": make_schedulers(schedule, optimizers, steps)}
    flags = dict(bf16=bf16, compile=compile, graph=graph)
    run = Run(net, data, moving, augment, epochs, samples, seed, flags, progress, on_epoch)
    with modes(net, backbone), torch.enable_grad():
        return run.to_end(patience, checkpoint, rates, backbone, schedule, steps)


@dataclass
class Run:
    """One call of `fit`: what stays the same from epoch to epoch."""

    net: Attached
    data: Data
    moving: Moving
    augment: Callable | None
    epochs: int
    samples: int
    seed: int
    flags: dict[str, bool]
    progress: bool
    on_epoch: Callable | None

    def about(self, rates: dict, backbone: bool, schedule: Any, steps: int) -> dict[str, Any]:
        """What has to be the same where a run goes on from a checkpoint."""
        data, optimizers = self.data, self.moving["optimizers"].values()
        return describe(self.net) | {"run": dict(
            seed=self.seed, batch=data.batch, n=data.n, lr=rates, backbone=backbone,
            valid=data.valid_n, samples=self.samples if data.valid_n else None,
            augment=name_of(self.augment), optimizers=[name_of(type(o)) for o in optimizers],
            schedule=name_of(schedule), steps=steps, bf16=self.flags["bf16"],
            data=digest(data.train) if isinstance(data.train, tuple) else None,
        )}  # fmt: skip

    def to_end(self, patience: int, checkpoint: File, *settings: Any) -> pd.DataFrame:
        """Begin, or go on from the checkpoint, until the epochs are over; the history. `settings`
        are what `about` takes, which reads all training data: only a checkpoint asks for it."""
        for name, flag in self.flags.items():
            check_argument(name, flag, False)
        about = {} if checkpoint is None else self.about(*settings)
        state = resume(self.net, self.moving, checkpoint, about)
        self.net.likelihood.standardise(y for _, y in pairs(self.data.train))
        loss = compiled_loss(self.net) if self.flags["compile"] else self.net.method.loss
        optimizers = self.moving["optimizers"].values()
        kind = GraphedStep if self.flags["graph"] else Step
        take = kind(self.net, loss, optimizers, self.data.n, self.flags["bf16"])
        try:
            for epoch in range(len(state["history"]), self.epochs):
                if self.data.valid is not None and state["waited"] >= patience:
                    break
                row = self.epoch(epoch, take)
                remember(self.net, self.moving, state, row, checkpoint, about)
                if self.on_epoch is not None:
                    self.on_epoch(dict(row))  # after the checkpoint, so that it may fail
        finally:  # also where training diverged
            if state["best"] is not None:
                with self.net.exclusive():
                    self.net.load_state_dict(state["best"])
        return pd.DataFrame(state["history"])

    def epoch(self, epoch: int, take: Step) -> dict[str, Any]:
        """One epoch and a look at the validation data: a row of the history."""
        net, data, seed, started = self.net, self.data, self.seed, time.perf_counter()
        torch.manual_seed(derive(seed, "epoch", epoch))
        source = getattr(data.train, "source", None)
        for part in (source, *samplers(source)):
            if isinstance(own := getattr(part, "generator", None), torch.Generator):
                own.manual_seed(derive(seed, "loader", epoch))
        bar = tqdm(
            ordered(data.train, data.batch, seed, epoch, data.lone), leave=False,
            total=data.per_epoch or None, disable=not self.progress,
            desc=f"epoch {epoch + 1}/{self.epochs}",
        )  # fmt: skip
        schedulers = self.moving["schedulers"].values()
        fresh = isinstance(data.train, tuple)  # of which batches are taken by index
        row = one_epoch(net, bar, take, schedulers, self.augment, (seed, epoch), fresh)
        check_weights(net, epoch)
        if data.valid is not None:
            row["valid_nll"] = predictive_nll(net, data.valid, self.samples, seed)
            check_finite("valid_nll", row["valid_nll"], epoch)
        return {"epoch": epoch + 1, **row, "seconds": time.perf_counter() - started}


def one_epoch(
    net: Attached, batches: Iterable, take: Step, schedulers: Iterable,
    augment: Callable | None, key: tuple[int, int], fresh: bool = False,
) -> dict[str, float]:  # fmt: skip
    """One pass over the training data.

    No step waits for the device: sums stay tensors until the epoch ends.

    Args:
        net: The network, in its training modes.
        batches: Of (x, y).
        take: What does a step.
        schedulers: Of the learning rates.
        augment: As in `fit`.
        key: (seed, epoch).
        fresh: Whether batches are copies already, which an augmentation may change in place.

    Returns:
        The mean of each loss part and further figure over the batches that have it.
    """
    (seed, epoch), device, counts = key, take.device, Counter()
    found = Loss({}, {})
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=device))
    for step, (x, y) in enumerate(batches):
        x, y = to_device((x, y), device)
        if augment is not None:
            gen = generator(seed, "augment", epoch, step, device=device)
            x = augment(x if fresh else tree_map(torch.clone, x), gen)  # it may work in place
        with net.exclusive():  # another thread may predict between steps, not within one
            found = take(BatchPass(net, x, y, (seed, "step", epoch, step)))
            for each in schedulers:
                each.step()
        for name, value in (found.parts | found.info).items():
            sums[name] = sums[name] + value.detach()
            counts[name] += 1
    if not sums:
        raise ValueError(f"epoch {epoch + 1}: train yields no batch; can it be read only once?")
    means = {name: float(value) / counts[name] for name, value in sums.items()}
    for name in found.parts:
        check_finite(name, means[name], epoch)
    return means


def check_finite(part: str, value: float, epoch: int) -> None:
    """Raise ValueError, naming epoch and part, for a NaN or inf."""
    if not math.isfinite(value):
        said = f"epoch {epoch + 1}: {part} is {value}"
        raise ValueError(f"{said}, training diverged: lower the rates, lr={{…}}")


def check_weights(net: Attached, epoch: int) -> None:
    """Raise ValueError, naming epoch and weight, for one that is not finite."""
    named = dict(net.named_parameters())  # a buffer may hold inf by design, as a causal mask does
    finite = torch.stack([v.isfinite().all() for v in named.values()]).tolist()  # one wait
    if not all(finite):
        check_finite(f"weight {list(named)[finite.index(False)]}", math.nan, epoch)


def compiled_loss(net: Attached) -> Callable[[BatchPass, int], Loss]:
    """`net.method.loss` under torch.compile, the masked pass included.

    Noise is drawn outside, since its seeds are NumPy's.
    """
    compiled, noise = torch.compile(net.method.loss), torch.compiler.disable(BatchPass.noise)

    def loss(batch_pass: BatchPass, n: int) -> Loss:
        # an attribute of this one pass hides the method
        batch_pass.noise = partial(noise, batch_pass)  # pyright: ignore[reportAttributeAccessIssue]
        return compiled(batch_pass, n)

    return loss


def predictive_nll(net: Attached, data: Batches, samples: int, seed: int = 0) -> float:
    """Mean negative log-likelihood of the predictive over masks, in nats per example.

    Args:
        net: What `attach` returned.
        data: (x, y) tensors or a re-iterable of batches; see `Likelihood.valid_nll`.
        samples: Masks per example.
        seed: Of the masks.

    Raises:
        ValueError: On bad x or y, and where the network answers NaN.
    """
    batches = (check_batch(net, x, y) for x, y in pairs(data))
    nll = [answers(net, x, samples, _valid_nll(y), seed=seed)[0].cpu() for x, y in batches]
    return float(torch.cat(nll, 1).double().mean())  # of (1, B) each


def _valid_nll(y: Tensor) -> Reduce:
    """`Likelihood.valid_nll` block by block, (1, b) each; y holds the labels of all blocks."""
    rest = y

    def reduce(net: Attached, parts: Iterable[Tensor], count: int) -> Tensor:
        nonlocal rest
        outputs = torch.cat(list(parts))  # (S, b, …)
        known, rest = rest.tensor_split([outputs.shape[1]])
        return net.likelihood.valid_nll(outputs, known.to(outputs.device))[None]

    return reduce


@contextlib.contextmanager
def modes(net: Attached, backbone: bool) -> Iterator[None]:
    """Train mode inside the block; modes and flags as they were after it.

    But for modules in eval mode inside a model in train mode, such as a frozen BatchNorm, and for a
    frozen backbone (`backbone` False), whose weights also ask for no gradient.
    """
    with net.exclusive():
        before = [(m, m.training) for m in net.modules()]
        frozen = [m for m in net.model.modules() if not m.training] if net.model.training else []
        asked = [(p, p.requires_grad) for p in net.model.parameters()]
        net.train()
        set_modes([(m, False) for m in frozen])
        if not backbone:
            net.model.eval()
            net.model.requires_grad_(False)
    try:
        yield
    finally:
        with net.exclusive():
            set_modes(before)
            for parameter, flag in asked:
                parameter.requires_grad_(flag)
