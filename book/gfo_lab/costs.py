"""What `gfo_lab.bench` compares: plain dropout in an ordinary torch loop, and each method as
`gfo.fit` trains it and `gfo.predict` asks it; and what can be counted of them without a clock."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import gfo
from gfo.core.batch import device_of
from gfo.core.noise import generator
from gfo.core.rates import LEARNING_RATES
from gfo.core.registry import Registry
from gfo.core.sites import eval_mode, trace
from gfo.train.fit import compiled_loss, one_epoch
from gfo.train.optim import adam, optimizers_of
from gfo.train.step import WARM_UP, GraphedStep, Step
from gfo_lab import declared
from gfo_lab.memory import peak_mb

SAMPLES = 20
EXAMPLES = 50_000  # the size of the training set that losses are told
# MC dropout as other libraries have it, where they are installed: package and, called with a model
# and the number of masks, what wraps it. The wrapped model trains as it would without; in eval mode
# it drops in as many copies of the batch at once.
WRAPS = {"torch-uncertainty": "torch_uncertainty.methods:mc_dropout"}  # of 0.13
RIVALS = [name for name, at in WRAPS.items() if find_spec(at.split(".")[0])]
GROUPS: dict[str, list[str]] = declared(__file__)


class Case(NamedTuple):
    """A backbone as it is measured. shape: of one example. config: a method's own arguments."""

    build: Callable[[], tuple[nn.Module, Sequence[str]]]
    shape: tuple[int, ...]
    batch: int
    config: dict[str, dict[str, Any]]


CASES = Registry("model")
CASES["mlp"] = Case(gfo.models.mlp, (1, 28, 28), 128, {})
CASES["resnet18"] = Case(gfo.models.resnet18, (3, 32, 32), 32, {})


class Setting(NamedTuple):
    """How all sides of a comparison run. samples: masks of a prediction. The others but device and
    batch are for GPUs; graph: our steps only."""

    device: torch.device
    batch: int
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False
    graph: bool = False
    samples: int = SAMPLES

    def move(self, thing: Any) -> Any:
        """A model or input on the device, in its memory format."""
        if self.channels_last and (isinstance(thing, nn.Module) or thing.dim() == 4):
            return thing.to(self.device, memory_format=torch.channels_last)
        return thing.to(self.device)

    def cast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


class Side(NamedTuple):
    """One side of a comparison. steps(k): k training steps. predict(): (B, K) probabilities, the
    mean over the setting's masks. net: all that is trained. backbone: numbers in its backbones."""

    steps: Callable[[int], None]
    predict: Callable[[], Tensor]
    net: nn.Module
    backbone: int


def plain(case: Case, x: Tensor, y: Tensor, setting: Setting, wrap: Any = None) -> Side:
    """Dropout 0.5 as torch has it behind each site, whole channels of feature maps, in an ordinary
    training loop. Passes one after the other predict, or, where the model is wrapped as `WRAPS`
    says, one pass of as many copies of the batch."""
    torch.manual_seed(0)
    model, sites = case.build()
    outputs = dict(trace(model, x[:2].cpu())[1])
    for name in sites:
        dropout = nn.Dropout2d() if outputs[name].dim() == 4 else nn.Dropout()
        model.set_submodule(name, nn.Sequential(model.get_submodule(name), dropout))
    net = setting.move(wrap(model, setting.samples) if wrap else model).train()
    optimizer = adam(list(net.parameters()), LEARNING_RATES["backbone"])
    forward = torch.compile(net) if setting.compile else net

    def steps(count: int) -> None:
        total = torch.zeros((), device=x.device)
        for _ in range(count):
            with setting.cast():
                loss = F.cross_entropy(forward(x), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total = total + loss.detach()

    @torch.no_grad()
    def answer() -> Tensor:
        with eval_mode(net), setting.cast():
            for module in model.modules():
                module.training = isinstance(module, nn.Dropout | nn.Dropout2d)
            if wrap:  # (S·B, K) -> (B, K)
                return forward(x).float().softmax(-1).unflatten(0, (-1, len(x))).mean(0)
            count = setting.samples
            return sum(forward(x).float().softmax(-1) for _ in range(count)) / count

    return Side(steps, answer, net, numbers(model))


def ours(name: str, case: Case, x: Tensor, y: Tensor, setting: Setting) -> Side:
    """A method as `gfo.fit` trains it and `gfo.predict` asks it; an ensemble in all its members."""
    torch.manual_seed(0)
    config = case.config.get(name, {})
    nets, takes = [], []
    for _ in range(gfo.methods.create(name, **config).members):
        model, sites = case.build()
        net = gfo.attach(model, sites, gfo.methods.create(name, **config), x[:2].cpu())
        nets.append(setting.move(net).train())
        loss = compiled_loss(net) if setting.compile else net.method.loss
        optimizers = optimizers_of(net, graph=setting.graph).values()
        kind = GraphedStep if setting.graph else Step
        takes.append(kind(net, loss, optimizers, EXAMPLES, setting.bf16))
    whole = gfo.Ensemble(nets) if len(nets) > 1 else nets[0]

    def steps(count: int) -> None:
        for net, take in zip(nets, takes, strict=True):
            one_epoch(net, [(x, y)] * count, take, (), None, (0, 0))

    def answer() -> Tensor:
        with setting.cast():
            return gfo.predict(whole, x, setting.samples)

    return Side(steps, answer, whole, sum(numbers(net.model) for net in nets))


def numbers(net: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in net.parameters())


def sides(model: str | Case, methods: Sequence[str], setting: Setting) -> dict[str, Side]:
    """ "plain" and each method, of `METHODS` or `RIVALS`, on the same random batch, warmed up."""
    case = CASES[model] if isinstance(model, str) else model
    gen = generator(0, "bench")
    x = setting.move(torch.randn(setting.batch, *case.shape, generator=gen))
    y = setting.move(torch.randint(10, (setting.batch,), generator=gen))
    found = {"plain": plain(case, x, y, setting)}
    for name in methods:
        wrap = resolve_name(WRAPS[name]) if name in WRAPS else None
        found[name] = plain(case, x, y, setting, wrap) if wrap else ours(name, case, x, y, setting)
    for side in found.values():
        side.steps(WARM_UP + 1)  # a graph is captured in the last
        side.predict()
    return found


def counts(side: Side) -> dict[str, float]:
    """What does not depend on the machine: operations, memory, weights."""
    step_flops, at = flops(lambda: side.steps(1)), device_of(side.net)
    side.net.zero_grad()  # gradients of that step, and Adam's moments, belong to no peak
    return {
        "step_peak_mb": peak_mb(lambda: side.steps(1), at), "step_flops": step_flops,
        "predict_peak_mb": peak_mb(side.predict, at), "predict_flops": flops(side.predict),
        "weights": side.backbone, "mask_weights": numbers(side.net) - side.backbone,
    }  # fmt: skip


def flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and convolutions in a call, backward too."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def where_time_goes(side: Side, steps: int = 9) -> pd.DataFrame:
    """A training step by kind of operator, from torch's profiler: ms, in the quickest of `steps`
    steps for each kind, and number of operators. The profiler's own cost is in the ms, a little per
    operator."""
    seen = []
    for _ in range(steps):
        with torch.profiler.profile() as profile:
            side.steps(1)
        parts = {name: [0.0, 0] for name in (*GROUPS, "all else")}
        for event in profile.key_averages():
            spent = max(event.self_cpu_time_total, event.self_device_time_total)
            groups = (g for g, words in GROUPS.items() if any(w in event.key for w in words))
            part = parts[next(groups, "all else")]
            part[0], part[1] = part[0] + spent / 1e3, part[1] + event.count
        seen.append(pd.DataFrame(parts, index=["ms", "operators"]).T)
    least = pd.concat(seen).groupby(level=0, sort=False).min()
    return least.rename_axis("part").astype({"operators": int})
