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

from . import schedule as schedules
from .attach import Attached, unmoved
from .checks import check_net, check_samples, check_x, check_y
from .masked_pass import Pass, masked_pass
from .methods.base import Loss
from .noise import Noise, derive, generator
from .predict import noise_for, predict
from .save import check_same, describe, load_state, read, write_atomically
from .tree import device_of, repeat_rows, rows, to_device, tree_map

LEARNING_RATES = {"backbone": 1e-3, "masks": 1e-3, "log_z": 1e-2}

Batches = tuple[Any, Tensor] | Iterable


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
    schedule: str | schedules.Schedule | None = None,
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
    per_epoch = schedules.count(train, n, batch) if batch or schedule else None
    steps = epochs * per_epoch if schedule else 0
    moving = {"optimizers": optimizers, "schedulers": schedules.make(schedule, optimizers, steps)}
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
            found = loss(Run(net, x, y, (seed, "step", epoch, step)), n)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        sum(found.parts.values()).backward()
        for each in (*optimizers, *moving["schedulers"].values()):
            each.step()
        for name, value in (found.parts | found.info).items():
            sums[name] = sums[name] + value.detach()
        count += 1
    return {name: float(total) / count for name, total in sums.items()}


class Run:
    """The masked pass on one batch, as a method's loss calls it. Noise comes from (key, draw):
    equal draws give equal noise, whatever else differs."""

    def __init__(self, net: Attached, x: Any, y: Tensor, key: tuple):
        self.net, self.x, self.y, self.key = net, x, y, key

    def noise(self, draw: int = 0, repeat: int = 1) -> Noise:
        """The uniform numbers that the pass with this `draw` and `repeat` makes its masks from."""
        gen = generator(*self.key, draw, device=device_of(self.net))
        return noise_for(self.net, repeat * rows(self.x), gen)

    def __call__(
        self,
        source: str = "train",
        draw: int = 0,
        *,
        repeat: int = 1,
        masks: list[Tensor | None] | None = None,
        still: bool = False,
        forward_only: bool = False,
    ) -> Pass:
        """source: which policy draws, as in `masked_pass`. draw: number of the noise.
        repeat: copies of the batch folded into it, a mask each; row s·B + b is copy s of row b.
        masks: one a site to impose, None where the site draws its own.
        still: no buffer moves, for passes beside the one that trains the backbone; BatchNorm
        normalises by the batch there too. forward_only: no gradient either."""
        x, y = (self.x, self.y) if repeat == 1 else repeat_rows((self.x, self.y), repeat)
        how = dict(masks=masks, noise=self.noise(draw, repeat), source=source)
        if not (still or forward_only):
            return masked_pass(self.net, x, y, **how)
        recorded = torch.no_grad() if forward_only else contextlib.nullcontext()
        with unmoved(self.net.model), recorded:
            return masked_pass(self.net, x, y, **how)


def compiled_loss(net: Attached) -> Callable[[Run, int], Loss]:
    """`net.method.loss` under torch.compile, the masked pass included; noise is drawn outside,
    since its seeds are NumPy's."""
    compiled, noise = torch.compile(net.method.loss), torch.compiler.disable(Run.noise)

    def loss(run: Run, n: int) -> Loss:
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


def ordered(data: Batches, batch: int, seed: int, epoch: int) -> Iterator[tuple[Any, Tensor]]:
    """The batches of one epoch: tensors in an order drawn from (seed, epoch), iterables as they
    come. A last batch of one row is left out, since BatchNorm cannot train on it, unless one was
    asked for."""
    if not isinstance(data, tuple):
        yield from data
        return
    x, y = data
    order = torch.randperm(len(y), generator=generator(seed, "order", epoch)).to(y.device)
    for index in order.split(batch):
        if len(index) > 1 or batch == 1 or len(y) == 1:
            yield tree_map(lambda t, index=index: t[index], x), y[index]


def prepare(net: Attached, data: Batches, what: str) -> tuple[Batches, int]:
    """Check (x, y) tensors or a re-iterable of batches; put tensors on the device; count rows."""
    if isinstance(data, list) and len(data) == 2 and isinstance(data[1], Tensor):
        data = tuple(data)
    if isinstance(data, tuple):
        if len(data) != 2:
            raise ValueError(f"{what} is a tuple of {len(data)}, needs (x, y)")
        check_x(net, data[0])
        check_y(net, *data)
        return to_device(data, device_of(net)), rows(data[0])
    if iter(data) is data:
        raise ValueError(f"{what} can be read only once: pass a list or a DataLoader of batches")
    count = 0
    for pair in data:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"{what} yields {describe_batch(pair)}, needs batches (x, y)")
        x, y = pair
        check_x(net, x)
        check_y(net, x, y)
        count += rows(x)
    if not count:
        raise ValueError(f"{what} is empty: it yields no batch")
    return data, count


def describe_batch(batch: Any) -> str:
    what = f"a {type(batch).__name__}"
    return f"{what} of {len(batch)}" if isinstance(batch, tuple | list) else what


def pick_device(device: str | torch.device) -> torch.device:
    """ "auto" is the GPU if there is one; ValueError for a GPU that is not there."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        asked = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device {device!r} is none: auto, cpu, cuda or cuda:1, say") from None
    if asked.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r} asked for, but torch sees no CUDA: use device='auto'")
    return asked


def learning_rates(lr: Mapping[str, float] | None) -> dict[str, float]:
    if not isinstance(lr, Mapping | None):
        raise ValueError(f"lr is {lr!r}, needs a rate by group: lr={{'backbone': {lr!r}}}, say")
    unknown = set(lr or {}) - set(LEARNING_RATES)
    if unknown:
        raise ValueError(f"lr names {sorted(unknown)}; the groups are {sorted(LEARNING_RATES)}")
    return LEARNING_RATES | {name: float(rate) for name, rate in (lr or {}).items()}


def name_of(thing: Any) -> str | None:
    """How a checkpoint tells apart what it cannot hold: by name."""
    return thing if isinstance(thing, str | None) else getattr(thing, "__qualname__", repr(thing))


def optimizers_of(
    net: Attached, backbone: bool, make: Callable[[str, list], torch.optim.Optimizer]
) -> dict[str, torch.optim.Optimizer]:
    """What `make` makes for each group; ValueError where there is nothing to train."""
    groups = {"backbone": list(net.model.parameters())} if backbone else {}
    groups |= net.method.param_groups()
    if not groups:
        raise ValueError(
            f"{net.method.name} has no mask parameters: nothing to train, backbone=False"
        )
    return {name: make(name, group) for name, group in groups.items()}


def adam(params: list, lr: float) -> torch.optim.Optimizer:
    """Adam, fused into one kernel where this torch has it for the parameters' device."""
    try:
        return torch.optim.Adam(params, lr=lr, fused=True)
    except (RuntimeError, TypeError):
        return torch.optim.Adam(params, lr=lr)


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


def stopped(state: dict, patience: int, valid: Any) -> bool:
    return valid is not None and state["waited"] >= patience


def remember(
    net: Attached,
    moving: dict[str, dict],
    state: dict,
    row: dict,
    checkpoint: str | Path | None,
    about: dict,
) -> None:
    """Add an epoch to the history, keep the best weights, write the checkpoint."""
    state["history"].append(row)
    nll = row.get("valid_nll")
    if nll is not None:
        best = min((r["valid_nll"] for r in state["history"][:-1]), default=float("inf"))
        state["waited"] = 0 if nll < best else state["waited"] + 1
        if nll < best:
            state["best"] = {k: v.clone() for k, v in net.state_dict().items()}
    if checkpoint is not None:
        content = {
            "gfo": about,
            "state": net.state_dict(),
            "progress": state,
        } | {k: {name: o.state_dict() for name, o in v.items()} for k, v in moving.items()}
        write_atomically(checkpoint, lambda temporary: torch.save(content, temporary))


def resume(
    net: Attached, moving: dict[str, dict], checkpoint: str | Path | None, about: dict
) -> dict:
    """The progress in `checkpoint`, with the weights and what else moves (optimisers, schedulers)
    restored; else a fresh start."""
    fresh = {"history": [], "waited": 0, "best": None}
    if checkpoint is None or not Path(checkpoint).exists():
        return fresh
    content = read(checkpoint)
    check_same(content["gfo"], about, checkpoint)
    load_state(net, content["state"], checkpoint)
    for kind, named in moving.items():
        for name, each in named.items():
            each.load_state_dict(content[kind][name])
    return content["progress"]
