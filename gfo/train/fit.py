"""The training loop, in the open: epochs of masked passes, early stopping, exact resume.

Every random number of a run comes from (seed, epoch, step), so a run that is killed and called
again with the same checkpoint ends with the weights of an unbroken one.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from gfo.core.attached import Attached
from gfo.core.batch import device_of, pick_device, to_device
from gfo.core.checks import check_net, check_samples
from gfo.core.masked_pass import BatchPass
from gfo.core.noise import derive, generator
from gfo.core.predict import predict
from gfo.core.save import describe
from gfo.methods.base import Loss
from gfo.train.batches import Batches, count, ordered, prepare
from gfo.train.checkpoint import name_of, remember, resume, stopped
from gfo.train.recipe import Schedule, adam, learning_rates, make_schedulers, optimizers_of


@torch.random.fork_rng()  # the caller's random state stays his: a loader may draw from it
def fit(
    net: Attached,
    train: Batches,
    valid: Batches | None = None,
    *,
    epochs: int = 40,
    batch: int = 128,
    patience: int = 6,
    lr: Mapping[str, float] | None = None,
    optimizer: Callable[[str, list], torch.optim.Optimizer] | None = None,
    backbone: bool = True,
    samples: int = 20,
    seed: int = 0,
    device: str | torch.device = "auto",
    checkpoint: str | Path | None = None,
    progress: bool = True,
    bf16: bool = False,
    compile: bool = False,
    schedule: str | Schedule | None = None,
    augment: Callable[[Any, torch.Generator], Any] | None = None,
) -> pd.DataFrame:
    """Train backbone and masks; return the history, one row an epoch.

    train, valid: (x, y) tensors, or any re-iterable of (x, y) batches. A DataLoader's own
        `generator` is seeded anew each epoch.
    valid: early stopping with `patience` epochs on the negative log-likelihood of the predictive
        averaged over `samples` masks under fixed noise; the best weights are restored. Without it
        all epochs run and the last weights stay.
    lr: learning rates of the groups "backbone", "masks", "log_z" that differ from the default
        1e-3, 1e-3, 1e-2 (Adam). optimizer: `f(group, parameters)` instead of Adam. Each group has
        an optimiser of its own: one backward pass serves all, their gradients being disjoint.
    backbone: False trains masks on a frozen network (its BatchNorm statistics stay too).
    device: "auto" takes the GPU if there is one.
    checkpoint: a file written at each epoch's end; if it exists, the run goes on from there.
    bf16, compile: autocast to bfloat16; torch.compile the method's loss, the masked pass included.
        It compiles anew for a batch of another size, as the last of an epoch may be.
    schedule: "one-cycle", or `f(optimizer, steps)` that makes a torch scheduler for a run of so
        many steps; every group follows it, from its own rate. None: rates stay.
    augment: `f(x, generator)` that changes each training batch on its device, drawing from a
        generator of that step only.

    History columns: epoch, each loss part (mean over batches, nats; "tb" in nats²), the method's
    further figures, valid_nll, seconds. Raises ValueError on bad data or another run's checkpoint.
    """
    check_net(net)
    check_samples(samples)
    if batch < 1:
        raise ValueError(f"batch is {batch}, needs to be at least 1")
    if patience < 1:
        raise ValueError(f"patience is {patience} epochs, needs to be at least 1")
    seed = int(seed)
    net.to(pick_device(device))
    train, n = prepare(net, train, "train")
    valid, valid_n = (None, 0) if valid is None else prepare(net, valid, "valid")
    if not isinstance(train, tuple):
        batch = 0  # an iterable brings its own batches
    rates = learning_rates(lr)
    make = optimizer or (lambda name, params: adam(params, rates[name]))
    optimizers = optimizers_of(net, backbone, make)
    per_epoch = count(train, n, batch) if batch or schedule else None
    steps = epochs * per_epoch if schedule else 0
    moving = {"optimizers": optimizers, "schedulers": make_schedulers(schedule, optimizers, steps)}
    about = describe(net) | {"run": dict(
        seed=seed, batch=batch, n=n, lr=rates, backbone=backbone, bf16=bf16, valid=valid_n,
        samples=samples if valid_n else None, augment=name_of(augment),
        optimizers=[name_of(type(o)) for o in optimizers.values()],
        schedule=name_of(schedule), steps=steps,  # where the schedule ends
    )}  # fmt: skip
    state = resume(net, moving, checkpoint, about)
    loss = compiled_loss(net) if compile else net.method.loss
    cast = torch.autocast(device_of(net).type, torch.bfloat16, enabled=bf16)
    with modes(net, backbone):
        for epoch in range(len(state["history"]), epochs):
            if stopped(state, patience, valid):
                break
            started = time.perf_counter()
            torch.manual_seed(derive(seed, "epoch", epoch))
            if isinstance(own := getattr(train, "generator", None), torch.Generator):
                own.manual_seed(derive(seed, "loader", epoch))  # a DataLoader's
            bar = tqdm(
                ordered(train, batch, seed, epoch), desc=f"epoch {epoch + 1}/{epochs}",
                total=per_epoch, leave=False, disable=not progress,
            )  # fmt: skip
            row = one_epoch(net, bar, moving, loss, augment, n, (seed, epoch), cast)
            if valid is not None:
                row["valid_nll"] = predictive_nll(net, valid, samples, seed)
            row["seconds"] = time.perf_counter() - started
            remember(net, moving, state, {"epoch": epoch + 1, **row}, checkpoint, about)
        if state["best"] is not None:
            net.load_state_dict(state["best"])
    return pd.DataFrame(state["history"])


def one_epoch(
    net: Attached,
    batches: Iterable,
    moving: dict[str, dict],
    loss: Callable[..., Loss],
    augment: Callable | None,
    n: int,
    key: tuple[int, int],
    cast: contextlib.AbstractContextManager,
) -> dict[str, float]:
    """One pass over the training data; returns the mean of each loss part. No step waits for the
    device: sums stay tensors until the epoch ends. loss: `net.method.loss`, compiled or not. key:
    (seed, epoch). cast: autocast, entered anew for each loss, since it keeps the weights that it
    has cast until it is left."""
    (seed, epoch), optimizers = key, moving["optimizers"].values()
    sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=device_of(net)))
    count = 0
    for step, (x, y) in enumerate(batches):
        x, y = to_device((x, y), device_of(net))
        if augment is not None:
            x = augment(x, generator(seed, "augment", epoch, step, device=device_of(net)))
        with cast:
            found = loss(BatchPass(net, x, y, (seed, "step", epoch, step)), n)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        sum(found.parts.values()).backward()
        for each in (*optimizers, *moving["schedulers"].values()):
            each.step()
        for name, value in (found.parts | found.info).items():
            sums[name] = sums[name] + value.detach()
        count += 1
    return {name: float(total) / count for name, total in sums.items()}


def compiled_loss(net: Attached) -> Callable[[BatchPass, int], Loss]:
    """`net.method.loss` under torch.compile, the masked pass included; noise is drawn outside,
    since its seeds are NumPy's."""
    compiled, noise = torch.compile(net.method.loss), torch.compiler.disable(BatchPass.noise)

    def loss(run: BatchPass, n: int) -> Loss:
        run.noise = partial(noise, run)
        return compiled(run, n)

    return loss


def predictive_nll(net: Attached, data: Batches, samples: int, seed: int = 0) -> float:
    """Mean negative log-likelihood of the mask-averaged predictive, in nats an example."""
    pairs = [data] if isinstance(data, tuple) else data
    total, count = torch.zeros(()), 0
    for x, y in pairs:
        probs = predict(net, x, samples, seed=seed)
        nll = net.likelihood.predictive_nll(probs, y.to(probs.device))
        total, count = total + nll.sum().cpu(), count + len(nll)
    return float(total) / count


@contextlib.contextmanager
def modes(net: Attached, backbone: bool) -> Iterator[None]:
    """Train mode inside the block, but for a frozen backbone, whose weights also ask for no
    gradient; modes and flags as they were after it."""
    before = [(m, m.training) for m in net.modules()]
    asked = [(p, p.requires_grad) for p in net.model.parameters()]
    net.train()
    if not backbone:
        net.model.eval()
        net.model.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
        for parameter, flag in asked:
            parameter.requires_grad_(flag)
