"""The training loop, its batches and checkpoints; BatchNorm and drawn weights after it."""

from gfo.core.lazy import lazily

WEIGHTS = dict.fromkeys(("Swag", "with_weights"), "gfo.train.weights")
__getattr__ = lazily(__name__, WEIGHTS | {"reestimate": "gfo.train.batchnorm"})
