"""What only a GPU can show; skipped where there is none."""

import copy
import warnings

import pytest
import torch
from gfo_lab.bench import compare
from gfo_lab.cli import main
from gfo_lab.experiments.cifar import CIFAR
from gfo_lab.run import run

import gfo
from gfo import models
from gfo.core.attach import attach
from gfo.core.batch import to_device
from gfo.core.masked_pass import masked_pass
from gfo.core.predict import sample_logits
from gfo.data import crop_flip
from gfo.methods import METHODS, create
from gfo.train.batchnorm import reestimate
from gfo.train.fit import fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICE = "cuda"
RELATIVE = 1e-4  # float32 sums in another order


@pytest.fixture(autouse=True)
def no_tf32():
    """Convolutions in float32, not in the ten bits of TF32, so that they can be compared."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def make(name, channels_last=False):
    torch.manual_seed(0)
    model, sites = models.build("resnet18", classes=10, width=8, blocks=[1, 1, 1])
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    net = attach(model, sites, create(name), torch.randn(2, 3, 32, 32))
    for parameter in net.method.parameters():  # last layers start at zero: say something
        torch.nn.init.normal_(parameter, std=0.3)
    return net


def batch(n=16):
    gen = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 32, 32, generator=gen), torch.randint(10, (n,), generator=gen)


def close(gpu, cpu):
    torch.testing.assert_close(gpu, cpu, rtol=RELATIVE, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_scores_and_predicts_as_the_cpu_does(name):
    here, (x, y) = make(name), batch()
    there = copy.deepcopy(here).to("cuda")
    masks = gfo.sample(here, x, y, seed=0)
    for gpu, cpu in zip(gfo.score(there, x, y, masks), gfo.score(here, x, y, masks), strict=True):
        if cpu is None:
            assert gpu is None
        else:
            close(gpu, cpu)
    stacked = [torch.stack([m, m.flip(0)]) for m in masks]
    gpu, cpu = (sample_logits(net, x, masks=stacked) for net in (there, here))
    assert gpu.device == x.device
    close(gpu, cpu)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_in_bfloat16_and_channels_last(name):
    net, data = make(name, channels_last=True), batch(64)
    how = dict(epochs=3, batch=32, device="cuda", bf16=True, augment=crop_flip, progress=False)
    before = copy.deepcopy(net.state_dict())
    history = fit(net, data, data, seed=0, **how)
    assert torch.isfinite(torch.tensor(history["valid_nll"])).all()
    moved = [not torch.equal(v.cpu(), before[k]) for k, v in net.state_dict().items()]
    assert sum(moved) > len(moved) // 2
    assert all(parameter.is_cuda for parameter in net.parameters())
    reestimate(net, data[0], augment=crop_flip)
    assert torch.isfinite(gfo.predict(net, data[0], 4)).all()


def test_masks_are_scored_in_float32_under_autocast():
    net, (x, y) = make("gflowout").to("cuda"), batch()
    masks = gfo.sample(net, x, y, seed=0)
    x, y, masks = x.cuda(), y.cuda(), [m.cuda() for m in masks]
    with torch.autocast("cuda", torch.bfloat16):
        out = masked_pass(net, x, y, masks=masks)
    assert out.logits.dtype == torch.bfloat16
    assert {t.dtype for t in (out.log_q, out.log_p, out.log_z, *out.q_logits)} == {torch.float32}


def test_a_stopped_run_on_a_gpu_goes_on_where_it_was(tmp_path):
    gen = torch.Generator().manual_seed(2)
    data = torch.randn(96, 20, generator=gen), torch.randint(3, (96,), generator=gen)

    def net():
        torch.manual_seed(0)
        layers = torch.nn.Linear(20, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
        return attach(torch.nn.Sequential(*layers), ["1"], "gflowout", data[0][:2])

    how = dict(batch=32, device="cuda", progress=False, seed=3)
    whole, parts = net(), net()
    fit(whole, data, epochs=4, **how)
    fit(parts, data, epochs=2, checkpoint=tmp_path / "run.pt", **how)
    again = net()
    fit(again, data, epochs=4, checkpoint=tmp_path / "run.pt", **how)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_prediction_that_runs_out_of_memory_folds_fewer_masks():
    net, (x, _) = make("random").to("cuda"), batch(256)
    small = sample_logits(net, x, 64, memory=2**26)
    torch.cuda.empty_cache()
    held, total = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((held + 2**29) / total)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            large = sample_logits(net, x, 64, memory=2**40)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("out of memory: folding" in str(w.message) for w in told)
    close(large, small)


@pytest.mark.parametrize("name", CIFAR.methods)
def test_the_cifar_experiment_runs_on_a_gpu(name, tmp_path):
    how = dict(dataset="digits", methods=[name], seeds=[0], profile="quick", device="cuda")
    found = run("cifar", out=tmp_path, scratch=tmp_path / "scratch", progress=False, **how)
    assert found["device"][0] == torch.cuda.get_device_name()
    assert found["accuracy"][0] > 0.3  # 0.1 by chance


def test_the_bench_measures_on_a_gpu():
    how = dict(pairs=6, batch=8, least=0.0, progress=False, bf16=True, channels_last=True)
    found = compare("resnet18", ["gflowout"], device="cuda", **how)
    assert list(found["method"]) == ["plain", "gflowout"]
    assert (found["step_ratio"] > 0).all() and (found["predict_ratio"] > 0).all()


def questions(n):
    gen = torch.Generator().manual_seed(3)
    words = torch.randint(1, 9, (n, 4), generator=gen)
    words[0, 2:] = 0  # questions of unequal length
    return (torch.randn(n, 3, 6, generator=gen), words), torch.randint(5, (n,), generator=gen)


def stays(n):
    """Drugs given or not, and who died."""
    gen = torch.Generator().manual_seed(4)
    return torch.rand(n, 50, generator=gen).round(), torch.randint(2, (n,), generator=gen)


MCAN = dict(words=9, classes=5, features=6, layers=2, width=16, heads=2, longest=8)
OTHERS = {"mcan": (MCAN, questions), "icu-mlp": (dict(inputs=50), stays)}


def other(name, method="gflowout"):
    torch.manual_seed(0)
    how, data = OTHERS[name]
    model, sites = models.build(name, **how)
    return attach(model, sites, create(method), data(2)[0]), data


def step_under(net, x, y, masks):
    """What a step computes under given masks: log Z, q and log-likelihood, and every gradient."""
    out = masked_pass(net, x, y, masks=masks)
    residual = out.log_z + out.log_q - (out.log_p + out.log_lik).detach()
    (residual.square().mean() - out.log_lik.mean() - out.log_p.mean()).backward()
    found = {"log_z": out.log_z, "log_q": out.log_q, "log_lik": out.log_lik}
    found |= {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {name: value.detach().cpu() for name, value in found.items()}


@pytest.mark.parametrize("name", OTHERS)
def test_a_step_of_other_networks_is_that_of_the_cpu(name):
    here, data = other(name)
    (x, y), there = data(32), copy.deepcopy(here).to(DEVICE)
    masks = gfo.sample(here, x, y, seed=0)
    moved = to_device((x, y, masks), torch.device(DEVICE))
    gpu, cpu = step_under(there, *moved), step_under(here, x, y, masks)
    assert gpu.keys() == cpu.keys() and len(cpu) > 10
    for key, value in cpu.items():
        close(gpu[key], value)
    history = fit(there, data(32), epochs=2, batch=16, device=DEVICE, bf16=True, progress=False)
    assert history.notna().all(axis=None) and all(p.is_cuda for p in there.parameters())


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("method", ["gflowout", "contextual", "vimco", "random"])
def test_steps_in_one_graph_are_the_eager_ones(name, method):
    """More of them than warm up, an odd last batch and moving rates."""
    nets, histories, (_, data) = [], [], other(name)
    for graph in (False, True):
        nets.append(other(name, method)[0])
        how = dict(epochs=4, batch=24, schedule="one-cycle", progress=False, seed=1)
        found = fit(nets[-1], data(60), device=DEVICE, graph=graph, **how)
        histories.append(torch.tensor(found.drop(columns="seconds").to_numpy()))
    assert len(histories[0]) == 4  # of three steps each, two of them in the graph
    # the same operators; Adam that can be captured rounds its corrections in float32
    torch.testing.assert_close(histories[1], histories[0], rtol=1e-3, atol=1e-4)
    for eager, graphed in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(graphed, eager, rtol=1e-3, atol=1e-4)


def test_the_queue_of_the_gpu_runs_in_miniature(tmp_path, capsys):
    said = ["run", "gpu", "--minutes", "1", "--profile", "quick", "--dataset", "digits"]
    where = ["--out", str(tmp_path / "out"), "--scratch", str(tmp_path / "scratch")]
    assert main([*said, *where, "--device", DEVICE]) == 0
    assert ": done, " in capsys.readouterr().out and (tmp_path / "out.tar.gz").exists()
