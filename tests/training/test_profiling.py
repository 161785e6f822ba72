"""A profile of a few steps: a trace to open, and what it says of a step."""

import json
from dataclasses import dataclass

import pytest
import torch

import train
from engine import trainer
from tests.conftest import with_values
from utils.training.profiling import KEPT, SKIPPED, TRACE, WARMING, of_steps


@dataclass
class Span:
    start: float
    end: float


@dataclass
class Event:
    name: str
    time_range: Span


def logged(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "train"]


def test_a_step_is_told_with_its_waits():
    events = [
        Event("ProfilerStep#4", Span(0, 3000)),
        Event("ProfilerStep#5", Span(3000, 8000)),
        Event("cudaStreamSynchronize", Span(1000, 1500)),
        Event("cudaDeviceSynchronize", Span(4000, 5500)),
        Event("cudaEventSynchronize", Span(7000, 7100)),
        Event("cudaStreamSynchronize", Span(9000, 9900)),  # behind the last step
        Event("aten::mm", Span(3100, 3200)),
    ]
    assert of_steps(events) == pytest.approx({"step_ms": 4.0, "host_ms": 2.95, "waits": 1.5})
    assert of_steps([]) == {}


def test_a_profiled_run_has_a_trace_and_says_what_a_step_takes(make_config):
    steps = SKIPPED + WARMING + KEPT
    config = make_config(train={"batch_size": 48 // steps, "epochs": 2}, run={"profile": True})
    folder = train.fit(config)
    names = {event.get("name") for event in json.loads((folder / TRACE).read_text())["traceEvents"]}
    assert any(str(name).startswith("ProfilerStep") for name in names)
    first, second = logged(folder)
    assert first["step_ms"] == first["host_ms"] > 0  # a CPU waits for no GPU
    assert first["waits"] == 0
    assert "step_ms" not in second
    plain = train.fit(
        with_values(config, run={"profile": False, "dir": str(folder.with_name("plain"))})
    )
    assert [record["loss"] for record in logged(plain)] == [first["loss"], second["loss"]]
    assert not (plain / TRACE).exists()


@pytest.mark.parametrize("steps", [1, SKIPPED + WARMING + 2])
def test_an_epoch_that_is_too_short_says_so(make_config, capsys, steps):
    config = make_config(train={"epochs": 1, "batch_size": 48 // steps}, run={"profile": True})
    folder = train.fit(config)
    assert "step_ms" not in logged(folder)[0]
    assert not (folder / TRACE).exists()
    assert "run.profile: an epoch of fewer than 9 steps is not profiled" in capsys.readouterr().err


@pytest.mark.parametrize("allowed", [True, False])
def test_products_may_be_rounded_in_steps_alone(make_config, monkeypatch, allowed):
    products = torch.backends.cuda.matmul
    seen = {"step": set(), "evaluation": set()}
    step = trainer.take_step
    evaluate = trainer.evaluate

    def in_step(*arguments):
        seen["step"].add(products.allow_tf32)
        step(*arguments)

    def in_evaluation(*arguments):
        seen["evaluation"].add(products.allow_tf32)
        return evaluate(*arguments)

    monkeypatch.setattr(trainer, "take_step", in_step)
    monkeypatch.setattr(trainer, "evaluate", in_evaluation)
    train.fit(make_config(train={"epochs": 2, "tf32": allowed}))
    assert seen == {"step": {allowed}, "evaluation": {False}}
