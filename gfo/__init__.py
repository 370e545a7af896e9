"""gfo: dropout masks sampled by a Generative Flow Network (GFlowOut, Liu et al., ICML 2023)."""

from typing import TYPE_CHECKING

from gfo.core import __version__
from gfo.core.attach import attach, detach
from gfo.core.attached import Attached
from gfo.core.bernoulli import Bernoulli, SoftTargets
from gfo.core.ensemble import Ensemble
from gfo.core.gaussian import Gaussian
from gfo.core.lazy import lazily
from gfo.core.likelihood import Categorical, Likelihood
from gfo.core.masked_pass import masked_pass
from gfo.core.predict import predict, sample, sample_logits, score
from gfo.core.predictive import predictive
from gfo.core.save import load, save
from gfo.core.torchvision_fix import declare_missing_operators

from gfo.methods import (  # isort: skip
    VIMCO, ConcreteDropout, ContextualDropout, Deterministic, EnsembleMember, GFlowOut, IDGFlowOut,
    ImportanceWeightedDropout, Masksembles, MCImproved, RandomDropout,
)  # fmt: skip

if TYPE_CHECKING:
    from gfo import audit, data, evaluate, methods, models, train
    from gfo.audit.diagnose import diagnose
    from gfo.audit.exact_audit import audit_masks
    from gfo.evaluate.report import report
    from gfo.train.fit import fit

declare_missing_operators()  # before anything imports torchvision

# What needs pandas, SciPy, scikit-learn, matplotlib or torchvision waits until it is asked for.
LATER = {
    "audit_masks": "gfo.audit.exact_audit",
    "diagnose": "gfo.audit.diagnose",
    "fit": "gfo.train.fit",
    "report": "gfo.evaluate.report",
}
__getattr__ = lazily(__name__, LATER)

__all__ = [
    "Attached", "Bernoulli", "Categorical", "ConcreteDropout", "ContextualDropout", "Deterministic",
    "Ensemble", "EnsembleMember", "GFlowOut", "Gaussian", "IDGFlowOut", "ImportanceWeightedDropout",
    "Likelihood", "MCImproved", "Masksembles", "RandomDropout", "SoftTargets", "VIMCO",
    "__version__", "attach", "audit", "audit_masks", "data", "detach", "diagnose", "evaluate",
    "fit", "load", "masked_pass", "methods", "models", "predict", "predictive", "report", "sample",
    "sample_logits", "save", "score", "train",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__
