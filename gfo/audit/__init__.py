"""Is q the posterior? Exact answers where all masks can be listed, estimates elsewhere."""

from gfo.core.lazy import lazily

__getattr__ = lazily(__name__)
