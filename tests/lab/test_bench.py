"""The benchmark: what it counts is exact, what it times it reports with an honest interval."""

import json
from functools import partial
from math import comb

import pytest
import torch
from conftest import Net
from gfo_lab import bench, costs, records
from gfo_lab.cli import main

import gfo
from gfo.core.registry import METHODS

KEYS = (
    "model", "method", "batch", "step_ratio", "step_low", "step_high", "predict_ratio",
    "predict_low", "predict_high", "step_ms", "predict_ms", "device",
)  # fmt: skip
B = 8


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A tiny model. No test looks at a time, so none is taken long."""
    tiny = costs.Case(lambda: gfo.models.mlp(6, 10, (5, 4)), (6,), B, {})
    monkeypatch.setitem(costs.CASES, "tiny", tiny)


def test_flops_are_those_of_the_layers():
    table = bench.compare(
        "tiny", ["deterministic", "random", "gflowout"], pairs=6, least=0, progress=False
    )
    row = table.set_index("method")
    layers = [6 * 5, 5 * 4, 4 * 10]
    # forward, weight gradients, and input gradients of all layers but the first
    assert row["step_flops"]["plain"] == 2 * B * (3 * sum(layers) - layers[0])
    assert row["predict_flops"]["plain"] == 20 * 2 * B * sum(layers)
    assert row["step_flops"]["random"] == row["step_flops"]["plain"]
    # what lies before the first mask once, the rest for each of the 20
    assert row["predict_flops"]["random"] == 2 * B * (layers[0] + 20 * sum(layers[1:]))
    assert row["predict_flops"]["deterministic"] == 2 * B * sum(layers)
    assert row["mask_weights"]["random"] == 0 < row["mask_weights"]["gflowout"]
    assert (row["weights"] == sum(layers) + 5 + 4 + 10).all()
    assert row["step_floor"]["random"] == 1 < row["step_floor"]["gflowout"]
    assert row["step_peak_mb"]["gflowout"] > row["step_peak_mb"]["random"] > 0
    # 20 masks folded into the batch are held at once; passes one after the other are not
    assert row["predict_peak_mb"]["random"] > row["predict_peak_mb"]["plain"] > 0
    assert (row.loc["plain", ["step_ratio", "step_low", "step_high"]] == 1).all()


@pytest.mark.parametrize("n", [6, 15, 16, 31])
def test_interval_of_the_median_holds_it_often_enough_and_is_the_narrowest(n):
    median, low, high = bench.median_interval(list(range(n, 0, -1)))
    assert median == (n + 1) / 2 and low + high == n + 1

    def covers(rank):  # P(x_(rank) <= median < x_(n + 1 - rank))
        return sum(comb(n, k) for k in range(rank, n + 1 - rank)) / 2**n

    assert covers(int(low)) >= 0.95 > covers(int(low) + 1)  # the values are the ranks


def test_plain_prediction_drops_channels_and_moves_no_statistics():
    net = Net()
    case = costs.Case(lambda: (net, ["stem.2", "bn"]), (3, 6, 6), B, {})
    setting = costs.Setting(torch.device("cpu"), B)
    x, y = torch.randn(B, 3, 6, 6), torch.arange(B) % 4
    side = costs.plain(case, x, y, setting)
    kinds = [type(m).__name__ for m in net.modules() if "Dropout" in type(m).__name__]
    assert kinds == ["Dropout2d", "Dropout2d"]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    one, two = side.predict(), side.predict()
    assert not torch.equal(one, two)
    torch.testing.assert_close(one.sum(1), torch.ones(B))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    side.steps(2)
    assert net.training
    assert not torch.equal(net.out.weight, before["out.weight"])


@pytest.mark.parametrize("build", [costs.plain, partial(costs.ours, "gflowout")])
def test_a_first_step_is_counted_as_any_other(build):
    x, y = torch.randn(B, 6), torch.arange(B) % 4
    side = build(costs.CASES["tiny"], x, y, costs.Setting(torch.device("cpu"), B))
    assert costs.counts(side) == costs.counts(side)  # Adam makes its moments in the first


def test_torch_uncertainty_drops_what_plain_dropout_drops():
    pytest.importorskip("torch_uncertainty.methods")
    setting = costs.Setting(torch.device("cpu"), B)
    found = costs.sides("tiny", ["torch-uncertainty"], setting)
    plain, theirs = (costs.counts(side) for side in found.values())
    for same in ("step_flops", "predict_flops", "weights", "mask_weights"):  # no pass is shared
        assert theirs[same] == plain[same]
    one, two = (found["torch-uncertainty"].predict() for _ in range(2))
    assert not torch.equal(one, two)
    torch.testing.assert_close(one.sum(1), torch.ones(B))


@pytest.mark.skipif(bool(costs.RIVALS), reason="torch-uncertainty is installed")
def test_a_library_that_is_not_installed_is_no_method_and_said_to_be_left_out(capsys):
    args = ["bench", "--model", "tiny", "--pairs", "6", "--method"]
    assert main([*args, "torch-uncertainty"]) == 2
    assert "unknown method 'torch-uncertainty'" in capsys.readouterr().err
    assert main([*args, "random"]) == 0
    assert "torch-uncertainty is not installed: left out" in capsys.readouterr().out


def test_the_released_step_stands_below_as_the_ratio_of_its_own_machine():
    table = bench.compare("tiny", ["random"], pairs=6, least=0, progress=False)
    assert list(bench.readable(table)["method"]) == ["plain", "random"]  # not timed on this one
    told = bench.readable(table.assign(model="mlp")).set_index("method")
    ms, plain = bench.ABOUT["released"]["mlp"]["step"]
    assert told["step"]["released code (*)"] == f"{ms / plain:.2f}"
    assert told["step, ms"]["released code (*)"] == f"{ms:.2f}"
    assert f"{table['step_ratio'][1]:.2f} [" in told["step"]["random"]


def test_growth_changes_one_size_at_a_time(monkeypatch, tmp_path):
    base = {"width": 6, "depth": 2, "batch": 4, "masks": 1, "samples": 3}
    along = [{}, {"width": 5}, {"depth": 3}, {"batch": 8}, {"masks": 2, "samples": 2}]
    plan = {"methods": ["gflowout"], "base": base, "along": along}
    monkeypatch.setitem(bench.ABOUT, "growth", plan)
    table = bench.growth(pairs=6, least=0)
    assert list(table["method"]) == ["plain", "gflowout"] * len(along)
    for change, (_, row) in zip(along, table[::2].iterrows(), strict=True):
        size = base | change
        assert {key: row[key] for key in size} == size
        widths = [784, *[size["width"]] * size["depth"], 10]
        layers = [a * b for a, b in zip(widths, widths[1:], strict=False)]
        assert row["step_flops"] == 2 * size["batch"] * (3 * sum(layers) - layers[0])
        assert row["predict_flops"] == size["samples"] * 2 * size["batch"] * sum(layers)
    ours = table[1::2].reset_index()
    assert ours["step_flops"][4] > 1.5 * ours["step_flops"][0]  # two masks per example
    bench.save(table, "cpu", tmp_path, 1.0, 0)
    found = records.read("growth", tmp_path, profile="full")
    assert len(found) == len(table) and found["config_hash"].nunique() == len(along)
    assert sorted(config["width"] for config in found["config"]) == [5] * 2 + [6] * 8


def ten_classes():
    model = Net()
    model.out = torch.nn.Linear(8, 10)
    return model, ["stem.2", "bn"]


def test_every_method_is_measured_on_an_image_network(monkeypatch):
    readers = {"concrete": dict(consumers={"stem.2": "conv", "bn": "out"})}
    monkeypatch.setitem(costs.CASES, "net", costs.Case(ten_classes, (3, 6, 6), 4, readers))
    found = costs.sides("net", list(METHODS), costs.Setting(torch.device("cpu"), 4))
    assert set(found) == {"plain", *METHODS}
    assert all(side.predict().shape == (4, 10) for side in found.values())


def test_the_command_prints_rows_and_saves_records(tmp_path, capsys):
    args = ["--model", "tiny", "--method", "random", "--pairs", "6", "--out", str(tmp_path)]
    assert main(["bench", *args, "--json", "--save", "--seed", "2"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["plain", "random"]
    assert all(set(KEYS) <= set(row) for row in rows)
    found = records.read("bench", tmp_path, profile="full").set_index("method")
    assert found["step_ratio"]["random"] == round(rows[1]["step_ratio"], 6)
    assert found["config"]["random"]["model"] == "tiny" and (found["seed"] == 2).all()


def test_faults_c_an_unwritable_folder_is_found_before_measuring(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "compare", None)
    (tmp_path / "file").write_text("", encoding="utf-8")
    args = ["bench", "--model", "tiny", "--save", "--out", str(tmp_path / "file")]
    assert main(args) == 2
    error = capsys.readouterr().err
    assert "cannot be written to" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "mpl"], "did you mean 'mlp'?"),
        (["--method", "randm"], "did you mean 'random'?"),
        (["--pairs", "5"], "need 6"),
        (["--model", "tiny", "--bf16"], "measured on a GPU"),
        (["--model", "tiny", "--graph"], "graph: measured on a GPU"),
        (["--model", "tiny", "--batch", "0"], "batch is 0"),
        (["--model", "tiny", "--threads", "-1"], "threads is -1"),
        (["--model", "tiny", "--seed", "-1"], "seed is -1"),
        (["--model", "tiny", "--seed", "0", "1"], "give one seed"),
        (["--model", "tiny", "--device", "gpu"], "device 'gpu' is none"),
        (["--growth", "--batch", "77"], "--growth has sizes of its own: leave out --batch"),
        (["--growth", "--model", "tiny"], "leave out --model"),
    ],
)
def test_the_command_names_what_is_wrong(args, message, capsys):
    if "GPU" in message and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["bench", *args]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
