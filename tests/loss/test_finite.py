"""The report of one GPU waits for no other, and is of its own step. Two GPUs, played on the CPU."""

import copy

import pytest
import torch

from nemo_sampled_rnnt.loss.finite import FiniteWatch

BAD = torch.tensor([1.0, float("nan")])


class OnGpu(torch.Tensor):
    is_cuda = True

    @property
    def device(self):
        return self.where


def on_gpu(number, costs):
    tensor = costs.as_subclass(OnGpu)
    tensor.where = torch.device("cuda", number)
    tensor.detach = lambda: tensor
    return tensor


class Event:
    """As CUDA's, of the device whose stream recorded it first."""

    synchronized = []

    def __init__(self):
        self.device = None

    def record(self, stream="cuda:0"):  # the current device's
        assert self.device in (None, stream), "Event device does not match recording stream's device"
        self.device = stream

    def synchronize(self):
        Event.synchronized.append(self.device)


@pytest.fixture(autouse=True)
def gpus(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **options: empty(*size, **options))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", str)
    monkeypatch.setattr(Event, "synchronized", [])


def test_each_has_its_own(caplog):
    watch = FiniteWatch()
    watch.submit(on_gpu(1, BAD))
    watch.submit(on_gpu(0, torch.ones(2)))
    assert not Event.synchronized and not caplog.records
    watch.submit(on_gpu(1, torch.ones(2)))
    assert Event.synchronized == ["cuda:1"] and "indices [1]" in caplog.text and watch.left_out == 1
    watch.submit(on_gpu(0, torch.ones(2)))
    assert Event.synchronized == ["cuda:1", "cuda:0"] and watch.left_out == 1


def test_a_batch_of_another_size():
    watch = FiniteWatch()
    for size in (3, 5, 5, 2):
        watch.submit(on_gpu(1, torch.full((size,), float("inf")).index_fill(0, torch.tensor([0]), 1.0)))
    assert watch.left_out == 2 + 4 + 4


def test_raised_once():
    watch = FiniteWatch()
    watch.submit(on_gpu(1, BAD[1:]))
    with pytest.raises(FloatingPointError):
        watch.submit(on_gpu(1, torch.ones(1)))
    watch.submit(on_gpu(1, torch.ones(1)))


def test_a_copy_takes_no_report_along():
    watch = FiniteWatch()
    watch.submit(on_gpu(0, BAD))
    other = copy.deepcopy(watch)
    other.submit(on_gpu(0, torch.ones(2)))
    assert other.left_out == 0
