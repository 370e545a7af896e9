"""gfo: dropout masks sampled by a Generative Flow Network (GFlowOut, Liu et al., ICML 2023)."""

from ._vision import declare_missing_operators

declare_missing_operators()  # before anything imports torchvision

from . import data, exact, models, plots, records, uncertainty  # noqa: E402, I001
from .attach import Attached, attach  # noqa: E402
from .batchnorm import reestimate  # noqa: E402
from .diagnose import diagnose  # noqa: E402
from .ensemble import Ensemble  # noqa: E402
from .fit import fit  # noqa: E402
from .likelihood import Categorical, SoftTargets  # noqa: E402
from .masked_pass import Pass, masked_pass  # noqa: E402
from .methods import (  # noqa: E402
    ConcreteDropout, ContextualDropout, Deterministic, EnsembleMember, GFlowOut, IDGFlowOut,
    MCImproved, RandomDropout,
)  # fmt: skip
from .predict import Score, predict, sample, sample_logits, score  # noqa: E402
from .save import load, save  # noqa: E402
from .truth import audit_masks  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "Attached", "Categorical", "ConcreteDropout", "ContextualDropout", "Deterministic", "Ensemble",
    "EnsembleMember", "GFlowOut", "IDGFlowOut", "MCImproved", "Pass", "RandomDropout", "Score",
    "SoftTargets", "attach", "audit_masks", "data", "diagnose", "exact", "fit", "load",
    "masked_pass", "models", "plots", "predict", "records", "reestimate", "sample",
    "sample_logits", "save", "score", "uncertainty",
]  # fmt: skip
