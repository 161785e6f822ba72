"""fp16's loss scale: a step is taken by all optimizers on all processes, by right gradients, or by
none.

Scales are powers of two, so that in float32 a scaled run is the plain one to the last bit.
"""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from engine import trainer
from engine.conformance.case import Case, losses_of, state_of
from engine.trainer import fit
from losses import Exchange
from tests.conftest import with_values
from tests.settings import LEARNERS, brief, sections_of
from utils import distributed
from utils.config.config import OptimConfig
from utils.loss_scale import SMALLEST, LossScale
from utils.parameters import (
    DeclaredParameter,
    Gradient,
    Kind,
    OuterGradient,
    of_gradient,
    take_rows,
)
from utils.runtime import Runtime
from utils.training.optim import build_optimizers

GROWTH_INTERVAL = 7  # the scale doubles inside a run


@pytest.fixture
def scales(monkeypatch):
    """The loss scales of the stages that are trained from here on, on a CPU in float32."""
    made = []
    start = Runtime.start

    def scaled(config):
        made.append(LossScale(growth_interval=GROWTH_INTERVAL))
        return replace(start(config), loss_scale=made[-1])

    monkeypatch.setattr(Runtime, "start", scaled)
    return made


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("clip_norm", [0.1, None])
@pytest.mark.parametrize("name", [*LEARNERS, "xc-in-batch", "dexa-transformer"])
def test_a_scaled_run_is_the_plain_one(
    name, clip_norm, tiny_root, small_encoder, tmp_path, request
):
    sections = brief(sections_of(name.removesuffix("-transformer")))
    if name.endswith("transformer"):  # as DEXA is published
        sections["encoder"] = {"name": small_encoder}
    case = Case(sections, tiny_root, small_encoder, tmp_path)
    case = case.with_last_stage(
        train={"epochs": 3, "eval_interval": 3}, optim={"clip_norm": clip_norm}
    )
    plain = fit(case.config("plain", run={"threads": 1}))
    scales = request.getfixturevalue("scales")
    scaled = fit(case.config("scaled", run={"threads": 1}))
    assert losses_of(scaled) == losses_of(plain)
    assert equal(state_of(scaled), state_of(plain))
    assert scales[-1] == LossScale(2 * 65536.0, 9 - GROWTH_INTERVAL, GROWTH_INTERVAL)


# -------------------------------- all or none


class Net(nn.Module):
    """A parameter of each form of gradient."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Parameter(torch.ones(2))
        self.table = DeclaredParameter(torch.ones(3, 2), Kind(Gradient.ROWS))
        self.labels = DeclaredParameter(torch.ones(3, 2), Kind(Gradient.FACTORS))

    def optimizers(self):
        groups = [{"name": name, "params": [p]} for name, p in self.named_parameters()]
        return build_optimizers(groups, OptimConfig(lr=0.1))

    def backward(self, runtime, size=1.0):
        """Leave gradients of about that size."""
        rows = torch.tensor([0, 2, 0])
        scores = (self.labels.detach()[rows].sum(1) * size).requires_grad_()
        known = self.dense * take_rows(self.table, rows)
        runtime.backward(known.sum() * size + scores.sum())
        self.labels.factors = OuterGradient(rows, rows * 0, scores.grad, torch.ones(1, 2))


def step(net, optimizers, runtime):
    """Unscale, and step if that may be; returns whether."""
    finite = runtime.unscale(list(net.parameters()))
    for optimizer in optimizers:
        if finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return finite


def state(net, optimizers):
    found = {name: value.clone() for name, value in net.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for values in optimizer.state.values():
            found |= {f"{number} {key}": value.clone() for key, value in values.items()}
    return found


def runtimes():
    accelerator = Accelerator(cpu=True)
    return Runtime(accelerator), Runtime(accelerator, loss_scale=LossScale(1024.0))


def spoilt(net, gradient, value):
    """Put a value into the gradient of one form."""
    if gradient is Gradient.DENSE:
        net.dense.grad[1] = value
    elif gradient is Gradient.ROWS:
        net.table.grad._values()[1, 0] = value
    else:
        net.labels.factors.values[2] = value


def test_gradients_of_every_form_are_unscaled_once():
    found = []
    for runtime in runtimes():
        net = Net()
        optimizers = net.optimizers()
        for size in (1.0, 3.0):
            net.backward(runtime, size)
            assert step(net, optimizers, runtime)
        found.append(state(net, optimizers))
    assert not torch.equal(found[0]["labels"], torch.ones(3, 2))
    assert equal(*found)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("gradient", Gradient)
def test_all_optimizers_step_or_none(gradient, value):
    runtime = runtimes()[1]
    net = Net()
    optimizers = net.optimizers()
    net.backward(runtime)
    assert step(net, optimizers, runtime)
    before = state(net, optimizers)
    net.backward(runtime)
    spoilt(net, gradient, value)
    assert not step(net, optimizers, runtime)
    assert equal(state(net, optimizers), before)
    assert runtime.loss_scale == LossScale(512.0, 0)
    net.backward(runtime)  # by the new scale
    assert step(net, optimizers, runtime)
    assert not torch.equal(net.dense, before["dense"])


def test_factors_that_share_their_values_are_unscaled_once():
    """As ELIAS's labels and their bias may."""
    runtime = runtimes()[1]
    net = Net()
    other = DeclaredParameter(torch.ones(3, 2), Kind(Gradient.FACTORS))
    net.backward(runtime)
    other.factors = net.labels.factors
    assert runtime.unscale([*net.parameters(), other])
    assert net.labels.factors.values.tolist() == other.factors.values.tolist() == [1.0, 1.0, 1.0]


def test_no_process_steps_where_one_cannot(monkeypatch):
    class Other(Exchange):
        """Another process, whose gradients are not finite."""

        def max(self, tensor):
            return tensor.clamp(min=1.0)

    runtime = runtimes()[1]
    net = Net()
    net.backward(runtime)
    monkeypatch.setattr(distributed, "loss_exchange", Other)
    assert not step(net, net.optimizers(), runtime)


def test_a_process_without_gradients_steps():
    """It owns none of few labels, on a frozen encoder."""
    assert runtimes()[1].unscale(list(Net().parameters()))


def test_gradients_that_no_scale_makes_finite_stop_the_run():
    runtime = runtimes()[1]
    runtime.loss_scale.value = 2 * SMALLEST
    net = Net()
    optimizers = net.optimizers()
    net.backward(runtime)
    spoilt(net, Gradient.ROWS, torch.nan)
    assert not step(net, optimizers, runtime)
    net.backward(runtime)
    spoilt(net, Gradient.ROWS, torch.nan)
    with pytest.raises(FloatingPointError, match="not finite at any loss scale"):
        step(net, optimizers, runtime)


# -------------------------------- in a run


def test_a_skipped_step_changes_nothing_but_the_scale(make_config, scales, monkeypatch):
    """The schedule goes on with the batches."""
    sum_gradients = trainer.sum_gradients
    seen = []

    def spoiling(parameters):
        sum_gradients(parameters)
        seen.append({number: p.detach().clone() for number, p in enumerate(parameters)})
        if len(seen) == 2:
            (table, *_) = of_gradient(parameters, Gradient.ROWS)
            table.grad._values()[0, 0] = torch.inf

    monkeypatch.setattr(trainer, "sum_gradients", spoiling)
    folder = fit(make_config(train={"epochs": 1}))
    assert not equal(seen[0], seen[1])
    assert equal(seen[1], seen[2])
    assert scales[0].value == 32768.0
    progress = json.loads((folder / "last" / "progress.json").read_text())
    assert (progress["step"], progress["skipped_steps"]) == (3, 1)
    assert "step 2 is skipped" in (folder / "train.log").read_text()


def test_a_resumed_run_has_the_scale_and_its_age(make_config, scales):
    stopped = make_config(train={"epochs": 3, "stop_epoch": 2}, run={"threads": 1})
    folder = fit(stopped)
    progress = json.loads((folder / "last" / "progress.json").read_text())
    assert (progress["loss_scale"], progress["steps_at_scale"]) == (65536.0, 6)
    fit(with_values(stopped, train={"stop_epoch": None}), resume=True)
    assert scales[0] == LossScale(65536.0, 6, GROWTH_INTERVAL)
    assert scales[1] == LossScale(2 * 65536.0, 2, GROWTH_INTERVAL)
