"""BatchNorm's running statistics under the masks of the test."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from gfo.core.attached import Attached
from gfo.core.batch import device_of, rows, to_device
from gfo.core.checks import check_finite, check_net, check_whole, check_x
from gfo.core.masked_pass import masked_pass, noise_for
from gfo.core.noise import derive, generator
from gfo.core.sites import eval_mode


class _UnderTest(nn.Module):
    """One masked pass by the test-time policy, new masks every time."""

    def __init__(self, net: Attached, seed: int):
        super().__init__()
        self.net, self.seed, self.calls = net, seed, 0
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.norms = [m for m in norms if m.training or not net.model.training]

    def modules(self, *_):  # all that update_bn finds: a frozen one keeps its own
        return iter(self.norms)

    def train(self, mode: bool = True):
        self.net.eval()
        for module in self.norms:
            module.train(mode)
        return self

    def forward(self, x: Tensor) -> None:
        gen = generator(self.seed, "batchnorm", self.calls, device=device_of(self.net))
        self.calls += 1
        masked_pass(self.net, x, noise=noise_for(self.net, rows(x), gen), source="test")


@torch.random.fork_rng()  # a backbone's own dropout draws from torch's random state
def reestimate(
    net: Attached, x: Tensor, *, batch: int = 128, seed: int = 0,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> None:  # fmt: skip
    """Set BatchNorm's running mean and variance to averages under test-time masks.

    In training they follow the training policy, which for GFlowOut is q, tempered and mixed with
    random masks; a test draws from p. Weights stay; without a BatchNorm layer nothing happens, and
    one in eval mode inside a model in train mode is frozen and keeps its own.

    Args:
        net: The trained network.
        x: What to average over, (n, ...).
        batch: Rows per pass.
        augment: The augmentation of the training, so that the masks are all that differs.
        seed: Of the masks.

    Raises:
        ValueError: On bad x, and where no batch would have two rows.
    """
    check_net(net)
    x = check_x(net, x)
    if not isinstance(x, Tensor):
        raise ValueError(f"x is a {type(x).__name__}: re-estimation reads one tensor")
    if min(check_whole("batch", batch), len(x)) < 2:
        raise ValueError(f"{len(x)} rows in batches of {batch}: BatchNorm needs two rows in one")
    gen = generator(seed, "batchnorm", "augment", device=device_of(net))
    parts = (to_device(part.clone(), device_of(net)) for part in x.split(batch) if len(part) > 1)
    torch.manual_seed(derive(seed, "batchnorm"))
    with net.exclusive():
        under = _UnderTest(net, seed)
        held = {m: (m.momentum, {n: b.clone() for n, b in m.named_buffers()}) for m in under.norms}
        with eval_mode(net):
            try:
                update_bn((augment(p, gen) if augment else p for p in parts), under)
                check_finite(net, *(b for m in under.norms for b in m.buffers()))
            except BaseException:  # update_bn zeroes the statistics first
                for module, (module.momentum, buffers) in held.items():
                    module.load_state_dict(buffers, strict=False)
                raise
