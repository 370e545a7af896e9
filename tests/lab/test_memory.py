"""Peak memory, against what a reader can add up."""

import pytest
import torch
from gfo_lab.memory import peak_mb

CPU = torch.device("cpu")
MB = 2**18  # float32 numbers in one MiB


def test_the_peak_is_of_what_is_alive_at_once():
    def call():
        a = torch.ones(3 * MB)
        b = a + 1  # 6 MiB
        del a
        c = b.view(3, -1)[0] * 2  # a view is no memory: 3 + 1
        return torch.cat([c, c])  # 3 + 1 + 2

    assert peak_mb(call, CPU) == 6


def test_what_stood_before_counts_as_nothing_changed_in_place_or_not():
    before = torch.ones(4 * MB)
    assert peak_mb(lambda: before.add_(1).view(2, -1).t(), CPU) == 0
    assert peak_mb(lambda: before.mul(2), CPU) == 4


def test_what_backward_needs_stays_until_it_has_run():
    x, weight = torch.ones(MB), torch.ones(MB, requires_grad=True)

    def call(layers):
        h = x
        for _ in range(layers):
            h = (h * weight).sin()  # h of before and the product are kept: 2 MiB per layer
        h.sum().backward()

    few, many = (peak_mb(lambda n=n: call(n), CPU) for n in (3, 8))
    assert many - few == pytest.approx(2 * 5, abs=1e-4)  # the sum is one number
