"""The training loop, its batches and checkpoints, recipes by name, BatchNorm after it."""

from gfo.core.lazy import lazily

MODULES = ("batches", "batchnorm", "checkpoint", "fit", "optim")
__getattr__ = lazily(__name__, MODULES, {"reestimate": "gfo.train.batchnorm"})
