"""Is q the posterior? Exact answers where all masks can be listed, estimates elsewhere."""

from gfo.core.lazy import lazily

MODULES = "broken diagnose exact exact_audit layerwise_optimum modes toys trial".split()
__getattr__ = lazily(__name__, MODULES)
