"""The tiny network live: views of its sixteen masks that need neither kernel nor network.

`live.js` computes and draws everything from a few numbers; `live.toml` has the words of each view
for where no script runs. A chapter needs two lines: the import, and
`live.show("flow", **live.examples(tiny))`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from IPython.display import HTML
from torch import full, tensor

from gfo import RandomDropout, attach
from gfo.audit import exact, layerwise_optimum, toys
from gfo.core.files import declared

ABOUT = declared(__file__)


def examples(toy: toys.Toy, points: Sequence[int] = ABOUT["points"]) -> dict[str, Any]:
    """What `show` needs of some points: log p(y|x,z) of all 16 masks, in nats, and names."""
    x, y = toy.x[[*points]], toy.y[[*points]]
    with attach(toy.model, toy.sites, RandomDropout(keep=0.5), x) as net:
        rows = exact.score_all(net, x, y).log_lik.tolist()
    size, kind = x * tensor(ABOUT["std"]) + tensor(ABOUT["mean"]), ABOUT["classes"]
    names = [ABOUT["name"].format(kind[k], *cm) for k, cm in zip(y, size.tolist(), strict=True)]
    log_lik = [[round(value, 6) for value in row] for row in rows]
    return dict(log_lik=log_lik, names=names, labels=y.tolist(), classes=kind, keep=0.5)


def show(view: str, **data: Any) -> HTML:
    """A live view in one piece of HTML, the same on a page, in Jupyter and in Colab.

    Args:
        view: "posterior", "bound", "flow" or "policy".
        data: What `examples` returns. A page without scripts shows the first of them.
    """
    log_lik, prior = tensor(data["log_lik"][0]).double(), full((16,), 1 / 16).double().log()
    post, evidence = exact.log_posterior(log_lik, prior)
    (q,), _ = layerwise_optimum.best_layerwise(post[None], (2, 2))
    said = dict(name=data["names"][0], evidence=evidence.exp(), log_evidence=evidence)
    said |= dict(kl=(gap := exact.kl(prior, post)), elbo=evidence - gap, share=post.exp().max())
    text = ABOUT[view]["text"].format(entropy=-(q.exp() * q).sum(), **said)
    kinds = ("html", "css", "js")
    page, css, js = (Path(__file__).with_suffix(f".{kind}").read_text("utf-8") for kind in kinds)
    about = dict(view=view, title=ABOUT[view]["title"], text=text, data=json.dumps(data))
    return HTML(page.format(css=css, js=js, **about))
