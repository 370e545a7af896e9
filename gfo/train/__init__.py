"""The training loop, its batches and checkpoints, recipes by name, BatchNorm after it."""

from gfo.core.lazy import lazily

__getattr__ = lazily(__name__, {"reestimate": "gfo.train.batchnorm"})
