"""What is seen of a run while it trains: log lines where there is no terminal, records by step, and
the caller's look at each evaluation."""

import json
import logging
import math
import sys
from types import SimpleNamespace

import pytest
import torch

import train
from engine import callbacks
from engine.callbacks import EpochEvaluation, asks_to_stop
from models.dual.dexml import Dexml
from tests.conftest import with_values
from utils import compiling, progress
from utils.compiling import CompileClock, working_time
from utils.parameters import DeclaredParameter, Gradient, Kind, sparse_rows
from utils.progress import ProgressBar, followed
from utils.run.metric_log import MetricLog
from utils.training.gradients import gradient_norms
from utils.training.pace import Pace

STAGES = [
    {"name": "first"},
    {
        "name": "tree",
        "method": {"name": "xr-linear", "max_leaf": 4},
        "run": {"start_from": None},
    },
]


def records(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


class Kept(logging.Handler):
    """Keeps messages; training takes the handlers of the root logger away."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


@pytest.fixture
def lines(monkeypatch):
    """Progress lines, one at every chance."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    kept = Kept()
    progress.log.addHandler(kept)
    monkeypatch.setattr(progress.log, "level", logging.INFO)
    yield lambda: kept.messages
    progress.log.removeHandler(kept)


# -------------------------------- lines


def test_without_a_terminal_a_bar_is_a_line_a_minute(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="utils.progress")
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "working_time", lambda: now[0])
    with ProgressBar(40, "rankers", "clusters", note=lambda: "all well") as bar:
        for _ in range(30):
            now[0] += 5
            bar.update()
    assert bar.n == 30
    assert [record.getMessage() for record in caplog.records] == [
        "rankers: 12 of 40 clusters (30 %), 0.2 clusters/s, 02:20 left; all well",
        "rankers: 24 of 40 clusters (60 %), 0.2 clusters/s, 01:20 left; all well",
        "rankers: 30 clusters in 02:30",
    ]


def test_short_or_hidden_work_says_nothing(lines, monkeypatch):
    with ProgressBar(3, "x", "steps", hidden=True) as bar:
        bar.update(3)
    assert bar.n == 3
    monkeypatch.setattr(progress, "LINE_SECONDS", 60.0)
    with ProgressBar(3, "x", "steps") as bar:
        bar.update(3)
    assert lines() == []


def test_an_unknown_total_and_done_before(lines, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress, "working_time", lambda: now[0])
    for number in followed(range(2000), "read", "texts"):
        now[0] = number // 1000 + 1
    assert lines() == [
        "read: 1.02k texts, 512 texts/s",
        "read: 2.00k texts, 1.00k texts/s",
        "read: 2.00k texts in 00:02",
    ]


def test_on_a_terminal_there_are_no_lines(lines, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "NOTE_SECONDS", 0.0)
    with ProgressBar(2, "epoch 1", "steps", note=lambda: "loss 0.5") as bar:
        bar.update()
        bar.refresh()
    assert lines() == []
    assert "epoch 1:  50%" in capsys.readouterr().err


def test_what_is_left_of_a_run_counts_its_evaluations():
    pace = Pace("stage rows", steps=100, evaluations=10, evaluation_seconds=30.0)
    # 60 steps of 2 s and 6 evaluations of 30 s
    assert pace.left(40, 2.0) == "stage rows: step 40 of 100, 05:00 left"
    assert Pace("run", 0, 1).left(0, 1.0) == "run: step 0 of 0, 00:00 left"


def test_training_says_step_loss_rate_and_time_left(make_config, lines):
    config = make_config(stages=STAGES, train={"epochs": 2, "batch_size": 20})
    folder = train.fit(config)
    epochs = [line for line in lines() if line.startswith("epoch 2: 2 of 3 steps")]
    assert len(epochs) == 1
    assert "(67 %), " in epochs[0] and " steps/s, 00:00 left; loss " in epochs[0]
    assert epochs[0].endswith(" points/s; stage first: step 5 of 6, 00:00 left")
    assert any("rankers of level 1 of " in line and " clusters (" in line for line in lines())
    assert "epoch 2: 2 of 3 steps" in (folder / "stages" / "first" / "train.log").read_text()


# -------------------------------- records by step


def test_steps_are_recorded_at_the_interval(make_config):
    folder = train.fit(
        make_config(train={"epochs": 2, "batch_size": 20}, run={"log_every": 2})  # 3 steps an epoch
    )
    found = records(folder, "step")
    assert [(record["step"], record["epoch"]) for record in found] == [(2, 1), (4, 2), (6, 2)]
    for record in found:
        assert set(record) == {
            "kind",
            "step",
            "epoch",
            "loss",
            "points_per_second",
            "lr",
            "gradient_norm",
            "gradient_norm_tables",
        }
        assert record["gradient_norm"] > 0 and record["points_per_second"] > 0
    of_epoch = records(folder, "train")[1]["loss"]  # of steps 4 to 6
    assert (found[1]["loss"] + 2 * found[2]["loss"]) / 3 == pytest.approx(of_epoch)
    assert found[1]["lr"] > found[2]["lr"] > 0


@pytest.mark.parametrize("every", [None, 1000])
def test_no_records_of_steps(make_config, every):
    folder = train.fit(make_config(train={"epochs": 1}, run={"log_every": every}))
    assert records(folder, "step") == []
    assert len(records(folder, "train")) == 1


def test_rates_of_groups_and_the_norm_without_clipping(make_config, tmp_path):
    run = {"log_every": 1}
    train_ = {"epochs": 1, "batch_size": 20}
    clipped = train.fit(make_config(train=train_, run=run, optim={"group_lr": {"table": 0.01}}))
    first = records(clipped, "step")[0]
    assert {key for key in first if key.startswith("lr")} == {"lr_encoder", "lr_table"}
    assert first["lr_encoder"] == pytest.approx(5 * first["lr_table"])
    again = make_config(
        train=train_,
        run={**run, "dir": str(tmp_path / "free")},
        optim={"group_lr": {"table": 0.01}, "clip_norm": None},
    )
    free = records(train.fit(again), "step")
    assert free[0]["gradient_norm"] == first["gradient_norm"]


def test_resuming_neither_doubles_nor_loses_a_record(make_config, tmp_path, monkeypatch):
    config = make_config(
        train={"epochs": 3, "batch_size": 20}, run={"log_every": 2, "save_minutes": 1e-9}
    )
    whole = train.fit(config)
    cut = with_values(config, run={"dir": str(tmp_path / "cut")})
    original = Dexml.backward
    calls = []

    def die(self, batch):
        calls.append(1)
        if len(calls) == 6:
            raise MemoryError
        return original(self, batch)

    monkeypatch.setattr(Dexml, "backward", die)
    with pytest.raises(MemoryError):
        train.fit(cut)
    # a later step's record, which a killed process wrote after its checkpoint, and half a line
    with open(cut.run_folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"kind": "step", "step": 6, "epoch": 2, "loss": 9.0}) + '\n{"kind"')
    train.fit(cut, resume=True)

    def told(folder):
        return [(r["step"], r["loss"], r["gradient_norm"]) for r in records(folder, "step")]

    assert told(cut.run_folder) == told(whole)
    assert [r["epoch"] for r in records(cut.run_folder, "train")] == [1, 2, 3]


def test_what_is_kept_of_a_log(tmp_path, make_config):
    entries = [
        {"kind": "step", "step": 2, "epoch": 1},
        {"kind": "train", "step": 3, "epoch": 1},
        {"kind": "step", "step": 4, "epoch": 2},
        {"kind": "step", "step": 6, "epoch": 2},
        {"kind": "train", "step": 6, "epoch": 2},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    MetricLog(tmp_path, make_config(), step=4, epoch=1)
    assert [json.loads(line) for line in path.read_text().splitlines()] == entries[:3]


def test_a_run_that_goes_on_is_the_same_run_at_wandb(tmp_path, make_config, monkeypatch):
    made = []
    fake = SimpleNamespace(
        init=lambda **settings: made.append(settings) or SimpleNamespace(log=None, finish=None)
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = make_config(run={"wandb": True})
    MetricLog(tmp_path, config)
    MetricLog(tmp_path, config, step=5, epoch=1)
    MetricLog(tmp_path, config)
    ids = [settings["id"] for settings in made]
    assert ids[0] == ids[1] != ids[2]
    assert {settings["resume"] for settings in made} == {"allow"}


# -------------------------------- evaluations


def test_every_evaluation_is_told(make_config):
    found = []
    config = make_config(stages=STAGES, train={"epochs": 2})
    folder = train.fit(config, on_evaluation=found.append)
    assert [(one.stage, one.epoch, one.step) for one in found] == [
        ("first", 1, 3),
        ("first", 2, 6),
        ("tree", 0, 0),
    ]
    assert found[0].is_best and found[0].tracked == "nDCG@5"
    assert found[0].value == found[0].metrics["nDCG@5"]
    assert found[1].folder == folder / "stages" / "first"
    saved = json.loads((folder / "val_metrics.json").read_text())
    assert saved.items() >= found[2].metrics.items()


def test_a_true_answer_ends_the_stage_with_its_best_model(make_config):
    config = make_config(train={"epochs": 4})
    folder = train.fit(config, on_evaluation=lambda found: found.epoch == 2)
    assert json.loads((folder / "finished").read_text())["epochs"] == 2
    assert "stopped after epoch 2, as on_evaluation asked" in (folder / "train.log").read_text()


def test_an_error_of_the_callback_leaves_a_run_to_go_on_with(make_config):
    class Pruned(Exception):
        pass

    def prune(found):
        raise Pruned(found.epoch)

    config = make_config(train={"epochs": 2})
    with pytest.raises(Pruned, match="1"):
        train.fit(config, on_evaluation=prune)
    folder = train.fit(config, resume=True)
    assert [record["epoch"] for record in records(folder, "train")] == [1, 2]


@pytest.mark.parametrize("answer, stops", [(None, False), (0, False), (True, True), ("yes", True)])
def test_the_main_process_alone_is_asked(monkeypatch, answer, stops):
    found = EpochEvaluation("", 1, 3, 0.25)
    assert asks_to_stop(lambda _: answer, found) is stops
    assert not asks_to_stop(None, found)
    calls = []
    monkeypatch.setattr(callbacks.distributed, "is_main", lambda: False)
    monkeypatch.setattr(callbacks.distributed, "broadcast", lambda own: (False, stops))
    assert asks_to_stop(calls.append, found) is stops
    monkeypatch.setattr(callbacks.distributed, "broadcast", lambda own: (True, False))
    with pytest.raises(RuntimeError, match="on_evaluation raised an error on the main process"):
        asks_to_stop(calls.append, found)
    assert calls == []


def test_without_validation_points_the_loss_is_told():
    found = EpochEvaluation("", 1, 3, 0.25)
    assert found.value == -0.25


# -------------------------------- kernels


def test_compiling_is_told_once_and_is_no_working_time(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="utils.compiling")
    now = [10.0]
    monkeypatch.setattr(compiling.time, "perf_counter", lambda: now[0])
    clock = CompileClock()
    monkeypatch.setattr(compiling, "CLOCK", clock)
    assert working_time() == 10.0
    for _ in range(2):
        clock.start()
        clock.start()  # a kernel that another one calls
        now[0] += 3
        clock.end()
        assert working_time() == 10.0 or clock.seconds() > 3
        now[0] += 1
        clock.end()
    assert clock.seconds() == 8.0
    assert working_time() == 10.0
    now[0] += 5
    assert working_time() == 15.0
    assert [record.getMessage() for record in caplog.records] == [
        "compiling kernels: a first run waits for it, and it is no training time"
    ]


def test_what_numba_compiles_is_counted():
    import numba

    compiling.watch_numba()
    before = compiling.compile_seconds()
    started = working_time()

    @numba.njit
    def twice(x):
        return 2 * x

    assert twice(2.5) == 5.0
    spent = compiling.compile_seconds() - before
    assert spent > 0.01
    assert working_time() - started < spent
    assert math.isclose(twice(3.5), 7.0)
    assert compiling.compile_seconds() - before == spent  # compiled once


def test_what_torch_compiles_is_counted():
    compiling.watch_torch()
    before = compiling.compile_seconds()
    twice = torch.compile(lambda x: 2 * x, backend="eager")
    assert twice(torch.ones(3)).tolist() == [2, 2, 2]
    spent = compiling.compile_seconds() - before
    assert spent > 0
    assert twice(torch.zeros(3)).tolist() == [0, 0, 0]
    assert compiling.compile_seconds() - before == spent


def test_norms_are_those_of_dense_gradients_and_of_tables():
    dense = torch.nn.Parameter(torch.zeros(2, 2))
    dense.grad = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    table = DeclaredParameter(torch.zeros(4, 2), Kind(Gradient.ROWS))
    values = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    table.grad = sparse_rows(torch.tensor([1, 3]), values, table.shape)
    norms = {name: float(norm) for name, norm in gradient_norms([dense, table]).items()}
    assert norms == {"gradient_norm": 5.0, "gradient_norm_tables": 5.0}
    assert [*gradient_norms([table])] == ["gradient_norm_tables"]
    table.grad = None
    assert gradient_norms([table]) == {"gradient_norm_tables": 0.0}
    assert gradient_norms([]) == {}
