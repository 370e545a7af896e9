"""BatchNorm's running statistics under the masks of the test."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gfo.core.attached import Attached
from gfo.core.batch import device_of, rows, to_device
from gfo.core.checks import check_finite, check_net, check_whole, check_x
from gfo.core.masked_pass import masked_pass, noise_for
from gfo.core.noise import derive, generator
from gfo.core.sites import eval_mode


@torch.random.fork_rng()  # a backbone's own dropout draws from torch's random state
@torch.no_grad()
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
    x, device = check_x(net, x), device_of(net)
    if not isinstance(x, Tensor):
        raise ValueError(f"x is a {type(x).__name__}: re-estimation reads one tensor")
    if min(check_whole("batch", batch), len(x)) < 2:
        raise ValueError(f"{len(x)} rows in batches of {batch}: BatchNorm needs two rows in one")
    changes = generator(seed, "batchnorm", "augment", device=device)
    torch.manual_seed(derive(seed, "batchnorm"))
    with net.exclusive():
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        norms = [m for m in norms if m.training or not net.model.training]  # no frozen one
        held = [(m, m.momentum, {n: b.clone() for n, b in m.named_buffers()}) for m in norms]
        with eval_mode(net):
            try:
                for module in norms:
                    module.train()
                    module.reset_running_stats()
                    module.momentum = None  # each pass counts alike
                parts = (part for part in x.split(batch) if norms and len(part) > 1)
                for step, part in enumerate(parts):
                    part = to_device(part.clone(), device)
                    part = augment(part, changes) if augment else part
                    gen = generator(seed, "batchnorm", step, device=device)
                    masked_pass(net, part, noise=noise_for(net, rows(part), gen), source="test")
                check_finite(net, *(b for m in norms for b in m.buffers()))
            except BaseException:
                for module, _, buffers in held:
                    module.load_state_dict(buffers, strict=False)
                raise
            finally:
                for module, momentum, _ in held:
                    module.momentum = momentum
