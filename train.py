"""Train one config, start to finish; the one training loop of all methods.

    python train.py configs/LF-DebianTitles-small/dexml.yaml
    python train.py CONFIG --train.epochs 3 --run.seed 1       # any key of any section
    # go on with, or replace, the run in the folder
    python train.py CONFIG --resume | --overwrite
    # will it fit? Prints memory and messages, loads nothing
    python train.py CONFIG --plan [--processes 4]
    accelerate launch --config_file configs/accelerate.yaml --num_processes 4 train.py CONFIG

Prints `run: <folder>` as its last line; then `python eval.py <folder>`. All keys: `python -m
utils.config`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils.config.command_line import parse_words
from utils.config.plugins import add_plugin_option


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "config", help="YAML config; flat YAML of DEXML and ELIAS and JSON of NGAME and DEXA too"
    )
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint, if there is one"
    )
    folder.add_argument(
        "--overwrite", action="store_true", help="replace the run that the folder holds"
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print the memory and messages that a run needs, and stop",
    )
    parser.add_argument(
        "--processes", type=int, help="with --plan: processes to plan for (default 1)"
    )
    add_plugin_option(parser)
    options, overrides = parse_words(parser)
    if options.processes is not None and not options.plan:
        parser.error(
            "--processes goes with --plan; to train on several processes use accelerate launch"
        )
    return options, overrides


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the imports below, so that --help is instant

import dataclasses  # noqa: E402
import logging  # noqa: E402
import math  # noqa: E402
import time  # noqa: E402
from dataclasses import dataclass  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from accelerate.utils import set_seed  # noqa: E402

from eval import check_ks, metric_ks, score_split  # noqa: E402
from models.loading import load_method  # noqa: E402
from models.method import Method, progress  # noqa: E402
from models.recipe import plan_recipe  # noqa: E402
from utils import distributed  # noqa: E402
from utils.config.config import Config, ConfigError  # noqa: E402
from utils.config.methods import method_class  # noqa: E402
from utils.data.batches import Batch, steps_per_epoch, training_batches  # noqa: E402
from utils.data.dataset import Dataset, labels_hash, load_dataset  # noqa: E402
from utils.data.held_out import saved_validation_rows  # noqa: E402
from utils.data.sizes import DataSizes, read_once  # noqa: E402
from utils.files import folder_written_whole, write_json, written_whole  # noqa: E402
from utils.metrics import NAMES  # noqa: E402
from utils.plan import check_it_fits  # noqa: E402
from utils.plan import report as plan_report  # noqa: E402
from utils.pretrained.location import load_tokenizer  # noqa: E402
from utils.run.environment import check_same_data, peak_memory, write_environment  # noqa: E402
from utils.run.folder import (
    MetricLog,
    check_folders,
    find_run,
    is_begun,
    is_finished,
    locked,
    open_run,
    start_logging,
)  # noqa: E402
from utils.run.reopened import load_training_config  # noqa: E402
from utils.run.stages import Runs, member_stages, of_stage, stage_configs  # noqa: E402
from utils.training.checkpoint import Progress, load_checkpoint, save_checkpoint  # noqa: E402
from utils.training.gradients import clip_gradients, sum_gradients  # noqa: E402
from utils.training.interrupt import Interrupted, SaveClock, stopped_by_sigterm  # noqa: E402
from utils.training.optim import (
    build_optimizers,
    learning_rate_factor,
    prepare_optimizers,
    set_learning_rates,
)  # noqa: E402

log = logging.getLogger("train")
CHECK_EVERY = 20  # steps between two looks at the losses: each look is one host sync


def fit(config: Config, resume: bool = False, overwrite: bool = False) -> Path:
    """Train `config` (all its stages) and return the run folder, which then holds the best model on
    validation.

    Args:
        resume: go on from the folder's last checkpoint, if there is one.
        overwrite: replace the run that the folder holds, once the new one has been set up.
    """
    config = member_stages(config)
    distributed.check_training_launch()
    distributed.start("no")  # the number of processes is known from here on
    stages = plan(config, resume, overwrite)
    for number, name in enumerate(stages):
        current = at_present(stages[name], config, name)
        done = bool(name) and resume and is_finished(current)
        if name:
            log.info(
                "stage %s (%d of %d)%s", name, number + 1, len(stages), ": finished" if done else ""
            )
        if not done:  # the first one replaces all of an older run
            fit_stage(current, config, resume, overwrite and number == 0)
    return config.run_folder


def plan(config: Config, resume: bool, overwrite: bool) -> dict[str, Config]:
    """The stages of a config by name, after all that can be refused before the first one starts."""
    sizes = read_once()
    stages = plan_recipe(config, sizes)
    for name, stage in stages.items():
        with of_stage(name):
            check_settings(stage, sizes(stage))
            distributed.check_launcher(stage.train.mixed_precision)
            check_it_fits(stage, distributed.world_size())
    check_folders([*stages.values()], resume, overwrite)
    return stages


def at_present(stage: Config, config: Config, name: str) -> Config:
    """A stage, when its turn has come: `best:NAME` is known."""
    if not name:
        return stage
    return dataclasses.replace(stage, train=stage_configs(config)[name].train)


def fit_stage(
    config: Config, recipe: Config, resume: bool = False, overwrite: bool = False
) -> Path:
    """One training run: read data, build the method, loop over epochs, keep the best checkpoint.

    Args:
        config: of one stage, planned: the settings of its encoder are resolved, its group rates its
        own.
        recipe: of the whole run.
    """
    accelerator = distributed.start(config.train.mixed_precision)
    in_effect = distributed.precision(accelerator)
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, mixed_precision=in_effect)
    )
    torch.set_num_threads(distributed.cpu_threads(config.run.threads))
    set_seed(config.run.seed)
    source = method_class(config.method.name).tokenizer_source(config)
    if source is not None:
        source = load_tokenizer(source, config.encoder.trust_remote_code)
    data = load_dataset(
        config, source, saved_validation_rows(config.run_folder, config.data) if resume else None
    )
    # its sizes are exact now
    method_class(config.method.name).check(config, DataSizes.of(data), Runs())
    if resume and is_begun(config.run_folder):
        check_same_data(config.run_folder, data)
    method = method_class(config.method.name).build(config, data).to(accelerator.device)
    if config.run.start_from:
        try:
            start, before = find_run(config.run.start_from)
        except ValueError as error:
            raise ConfigError(
                f"run.start_from: {error}; train that run first, or name another"
            ) from error
        method.start_from(load_method(before, start).to(accelerator.device))
    # only now: what fails before leaves nothing behind
    folder = open_run(config, recipe, resume, overwrite)
    start_logging(folder)
    if distributed.is_main():
        computing = {"device": accelerator.device.type, "mixed_precision": in_effect}
        write_environment(folder, data, labels_hash(data.folder), computing)
        with written_whole(folder / "val_rows.npy") as partial, open(partial, "wb") as file:
            np.save(file, data.splits["val"].rows)
    log.info(
        "on %s, mixed precision %s, processes: %d, threads of each: %d",
        accelerator.device.type,
        in_effect,
        distributed.world_size(),
        torch.get_num_threads(),
    )
    log.info(
        "%s: %d training, %d validation, %d test points, %d labels, data %s",
        data.name,
        *(len(data.splits[s]) for s in ("trn", "val", "tst")),
        data.num_labels,
        data.hash,
    )
    if data.label_stand_ins:
        log.warning("%s", data.label_stand_ins)
    distributed.separate_random_states(config.run.seed)
    with locked(folder):
        return _train(config, method, data, folder, accelerator, resume)


def _train(
    config: Config,
    method: Method,
    data: Dataset,
    folder: Path,
    accelerator: Accelerator,
    resume: bool,
) -> Path:
    groups = method.parameter_groups()
    assert {group["name"] for group in groups} == method.group_names(config), (
        "groups are not those known on paper"
    )
    optimizers = prepare_optimizers(build_optimizers(groups, config.optim), accelerator)
    state = (
        load_checkpoint(folder, method, optimizers, accelerator) if resume else None
    ) or Progress()
    metric_log = MetricLog(folder, config, state.step, state.epoch)
    run = Run(config, method, data, optimizers, state, folder, accelerator, metric_log)
    if method.epochs == 0 and resume and (folder / "finished").exists():
        log.info("the run has finished already")
        return folder
    if state.step == 0:
        started = time.perf_counter()
        with stopped_by_sigterm():
            method.prepare(folder, accelerator)
        state.seconds += time.perf_counter() - started
    elif state.epoch >= min(method.epochs, config.train.stop_epoch or method.epochs):
        log.info("the run has finished already")
    else:
        log.info("resumed at epoch %d, step %d", state.epoch + 1, state.step)
    every = 1 if accelerator.device.type == "cpu" else CHECK_EVERY
    with SaveClock(config.run.save_minutes, every) as clock:
        last = min(method.epochs, config.train.stop_epoch or method.epochs)
        while state.epoch < last and not _out_of_patience(state, config):
            if state.epoch_step == 0:
                method.on_epoch_start(state.epoch, accelerator)
            loss = train_epoch(run, clock)
            state.epoch = state.epoch + 1
            state.epoch_step = 0
            state.loss_sum = 0.0
            if state.epoch % config.train.eval_interval == 0 or state.epoch == last:
                keep_best(run, loss)
                save_checkpoint(folder, method, optimizers, state, accelerator)
                clock.saved()
    if method.epochs == 0:
        keep_best(run, 0.0)
    metric_log.close()
    method.on_finish(folder)
    if distributed.is_main():
        write_json(
            folder / "finished",
            {
                "epochs": state.epoch,
                "best_epoch": state.best_epoch,
                "train_seconds": round(state.seconds, 1),
            },
        )
    distributed.barrier()  # a later stage may ask for the best epoch
    log.info("best epoch %s; %.1f s of training", state.best_epoch, state.seconds)
    return folder


@dataclass
class Run:
    """What the loop works on."""

    config: Config
    method: Method
    data: Dataset
    optimizers: list[torch.optim.Optimizer]
    state: Progress
    folder: Path
    accelerator: Accelerator
    metric_log: MetricLog


def train_epoch(run: Run, clock: SaveClock) -> float:
    """One epoch from `state.epoch_step` on; returns the mean loss of all its steps."""
    config = run.config
    method = run.method
    state = run.state
    accelerator = run.accelerator
    split = run.data.splits["trn"]
    steps = steps_per_epoch(split, config.train.batch_size)
    parameters = [
        p
        for optimizer in run.optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    meter = EpochMeter(run)
    method.train()
    batches = training_batches(
        split, method.batch_order(state.epoch), config, state.epoch, state.epoch_step
    )
    with progress(steps, f"epoch {state.epoch + 1}") as bar:
        bar.update(state.epoch_step)
        for batch in batches:
            set_learning_rates(
                run.optimizers,
                learning_rate_factor(state.step, steps * method.epochs, config.optim),
            )
            loss = method.backward(batch.to(accelerator.device), accelerator)
            sum_gradients(parameters)
            if config.optim.clip_norm is not None:
                accelerator.unscale_gradients(run.optimizers)
                clip_gradients(parameters, config.optim.clip_norm)
            for optimizer in run.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            state.step, state.epoch_step = state.step + 1, state.epoch_step + 1
            meter.add(loss, batch)
            bar.update()
            if clock.due():
                meter.settle()  # a loss that is not finite must never reach a checkpoint
                save_checkpoint(run.folder, method, run.optimizers, state, accelerator)
                clock.saved()
    return meter.close()


class EpochMeter:
    """Losses, time and throughput of an epoch.

    Losses stay on the device and are looked at every few steps, so that the loop does not wait for
    the device.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._pending = []
        self._points = self._tokens = 0
        self._begin = self._mark = time.perf_counter()

    def add(self, loss: torch.Tensor, batch: Batch) -> None:
        self._pending.append(loss)
        self._points += len(batch.points)
        self._tokens += int(batch.queries.host_lengths.sum())
        if len(self._pending) >= CHECK_EVERY:
            self.settle()

    def settle(self) -> None:
        """Bring `state` up to date; FloatingPointError if a loss is not finite."""
        state = self._run.state
        values = torch.stack(self._pending).tolist() if self._pending else []
        for offset, value in enumerate(values):
            if not math.isfinite(value):
                step = state.step - len(values) + offset + 1
                raise FloatingPointError(
                    f"the loss became {value} at step {step} (epoch {state.epoch + 1}); training "
                    "stops. "
                    + (
                        f"The last good checkpoint is kept in {self._run.folder}. "
                        if state.best_epoch is not None
                        else "There is no checkpoint yet. "
                    )
                    + "A new run with a lower optim.lr or optim.clip_norm may help."
                )
            state.loss_sum += value
        self._pending = []
        now = time.perf_counter()
        state.seconds = state.seconds + now - self._mark
        self._mark = now

    def close(self) -> float:
        """Log the epoch; returns its mean loss."""
        self.settle()
        state = self._run.state
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        loss = state.loss_sum / max(state.epoch_step, 1)
        values = {
            "epoch": state.epoch + 1,
            "loss": loss,
            "points_per_second": self._points / seconds,
            "tokens_per_second": distributed.total(self._tokens) / seconds,
            "seconds": state.seconds,
            **peak_memory(self._run.accelerator.device),
        }
        report = self._run.method.epoch_report()
        values |= report
        log.info(
            "epoch %d: loss %.5f, %.0f points/s, %.0f tokens/s, %.0f MB, %.1f s%s",
            state.epoch + 1,
            loss,
            values["points_per_second"],
            values["tokens_per_second"],
            values["memory_mb"],
            state.seconds,
            "".join(f", {name} {value:.4f}" for name, value in report.items()),
        )
        self._run.metric_log.write("train", state.step, values)
        return loss


def keep_best(run: Run, loss: float) -> None:
    """Evaluate on the validation split and save the model if it is the best so far."""
    config = run.config
    method = run.method
    state = run.state
    accelerator = run.accelerator
    method.prepare_scoring(accelerator)
    metrics = (
        score_split(config, method, run.data, "val", accelerator)[0]
        if len(run.data.splits["val"])
        else {}
    )
    metrics = distributed.broadcast(metrics)
    facts = method.facts()
    value = -loss  # without a validation split the training loss decides
    if metrics:
        value = metrics[tracked_metric(config, metrics)]
        log.info(
            "validation after epoch %d: %s",
            state.epoch,
            ", ".join(
                f"{m} {metrics[m]:.2f}" for m in ("P@1", "P@5", "nDCG@5", "PSP@1") if m in metrics
            ),
        )
        run.metric_log.write("val", state.step, {"epoch": state.epoch, **metrics, **facts})
    if state.best is not None and value <= state.best:
        state.evaluations_without_better += 1
        return
    state.best = value
    state.best_epoch = state.epoch
    state.evaluations_without_better = 0
    with folder_written_whole(run.folder / "model") as partial:
        method.save(partial, accelerator)
    if distributed.is_main():
        write_json(run.folder / "val_metrics.json", {"epoch": state.epoch, **metrics, **facts})


def tracked_metric(config: Config, metrics: dict[str, float]) -> str:
    """Name of the metric that selects the checkpoint."""
    if config.train.track_metric:
        return config.train.track_metric
    computed = [int(m.partition("@")[2]) for m in metrics if m.startswith("nDCG@")]
    return f"nDCG@{max([k for k in computed if k <= 5], default=min(computed))}"


def _out_of_patience(state: Progress, config: Config) -> bool:
    stop = (
        config.train.patience is not None
        and state.evaluations_without_better >= config.train.patience
    )
    if stop:
        log.info(
            "stopping early: %d evaluations without a better one", state.evaluations_without_better
        )
    return stop


def check_settings(config: Config, data: DataSizes) -> None:
    """Settings that only the data or the number of processes can refute."""
    if config.train.batch_size < distributed.world_size():
        raise ConfigError(
            f"train.batch_size is {config.train.batch_size}, smaller than the number of "
            f"processes, {distributed.world_size()}; each needs a query of every batch"
        )
    if isinstance(config.train.stop_epoch, str):
        raise ConfigError(
            f"train.stop_epoch is '{config.train.stop_epoch}', expected a whole number; "
            "`best:NAME` is for stages"
        )
    check_ks(config, data)
    computed = [f"{name}@{k}" for name in NAMES for k in metric_ks(config, data)]
    if config.train.track_metric not in (None, *computed):
        raise ConfigError(
            f"train.track_metric '{config.train.track_metric}' is not computed; computed: "
            f"{', '.join(computed)}"
        )


def main(options: argparse.Namespace, words: list[str]) -> None:
    start_logging()
    try:
        config = load_training_config(options.config, words, member_stages)
        if options.plan:
            return print(plan_report(config, 1 if options.processes is None else options.processes))
        folder = fit(config, options.resume, options.overwrite)
    except (ValueError, FloatingPointError, OSError) as error:
        sys.exit(f"error: {error}")
    except Interrupted as stop:
        if distributed.is_main():
            print(stop, file=sys.stderr)
        sys.exit(128 + stop.signal_number)
    except KeyboardInterrupt:
        print(
            "interrupted at once; --resume goes on from the last checkpoint, if there is one",
            file=sys.stderr,
        )
        sys.exit(130)
    if distributed.is_main():
        print(f"run: {folder}")
    distributed.stop()


if __name__ == "__main__":
    main(*ARGUMENTS)
