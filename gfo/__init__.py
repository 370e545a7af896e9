"""gfo: dropout masks sampled by a Generative Flow Network (GFlowOut, Liu et al., ICML 2023)."""

from typing import TYPE_CHECKING

from gfo.core import __version__
from gfo.core.attach import attach
from gfo.core.attached import Attached
from gfo.core.ensemble import Ensemble
from gfo.core.lazy import lazily
from gfo.core.likelihood import Categorical, SoftTargets
from gfo.core.masked_pass import masked_pass
from gfo.core.predict import predict, sample, sample_logits, score
from gfo.core.save import load, save
from gfo.core.torchvision_fix import declare_missing_operators
from gfo.methods import (
    ConcreteDropout,
    ContextualDropout,
    Deterministic,
    EnsembleMember,
    GFlowOut,
    IDGFlowOut,
    MCImproved,
    RandomDropout,
)  # fmt: skip

if TYPE_CHECKING:
    from gfo import audit, data, evaluate, methods, models, train
    from gfo.audit.diagnose import diagnose
    from gfo.audit.exact_audit import audit_masks
    from gfo.train.fit import fit

declare_missing_operators()  # before anything imports torchvision

# What needs pandas, SciPy, scikit-learn, matplotlib or torchvision waits until it is asked for.
ROOMS = ("methods", "models", "data", "train", "evaluate", "audit")
LATER = {
    "audit_masks": "gfo.audit.exact_audit",
    "diagnose": "gfo.audit.diagnose",
    "fit": "gfo.train.fit",
}
__getattr__ = lazily(__name__, ROOMS, LATER)

__all__ = [
    "Attached", "Categorical", "ConcreteDropout", "ContextualDropout", "Deterministic", "Ensemble",
    "EnsembleMember", "GFlowOut", "IDGFlowOut", "MCImproved", "RandomDropout", "SoftTargets",
    "__version__", "attach", "audit", "audit_masks", "data", "diagnose", "evaluate", "fit", "load",
    "masked_pass", "methods", "models", "predict", "sample", "sample_logits", "save", "score",
    "train",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__
