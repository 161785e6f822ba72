"""Train a config, start to finish: its stages, and for each of them the one training loop.

    folder = fit(config)      # the run folder, which holds the best model on validation

Read `fit`, `fit_stage`, `train_learner` and `train_epoch` in this order to follow a run.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from engine.callbacks import EpochEvaluation, OnEvaluation, asks_to_stop
from engine.choosing import chosen
from engine.deciding import decider_of, log_decider, save_decider, told
from engine.memory_plan import check_it_fits, training_memory
from engine.planning import plan_recipe, tokenizer_of
from models.contract import Learner, Ranker, Recipe, Solver
from models.encoders.compiling import check_compiler, compile_encoders
from models.evaluation import Evaluation, evaluate, headline
from models.loading import start_of
from utils import distributed
from utils.compiling import compile_seconds, watch_numba, watch_torch, working_time
from utils.config.config import Config
from utils.config.methods import method_class
from utils.data.batches import ready_batches, steps_per_epoch, training_batches
from utils.data.dataset import Dataset, labels_hash, load_dataset
from utils.data.held_out import saved_validation_rows
from utils.data.sizes import DataSizes
from utils.files import folder_written_whole, write_json, written_whole
from utils.pretrained.location import load_tokenizer
from utils.run.environment import check_same_data, write_environment
from utils.run.folder import drop_progress, is_begun
from utils.run.lock import locked
from utils.run.logs import start_logging
from utils.run.metric_log import MetricLog
from utils.run.model_files import complete_model, models_near
from utils.run.opening import check_folders, is_finished, open_run
from utils.run.stages import Runs, member_stages, of_stage, stage_configs
from utils.runtime import Runtime, progress, tensor_cores
from utils.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from utils.training.gradients import clip_gradients, gradient_norms, sum_gradients
from utils.training.interrupt import SaveClock, stopped_by_sigterm
from utils.training.meter import CHECK_EVERY, EpochMeter
from utils.training.optim import (
    build_optimizers,
    learning_rate_factor,
    learning_rates,
    set_learning_rates,
)
from utils.training.pace import Pace
from utils.training.profiling import Profile, profiled
from utils.training.row_sums import RowSums

log = logging.getLogger("train")
SHOWN = ("P@1", "P@5", "nDCG@5", "PSP@1")  # validation metrics in the log


# -------------------------------- a run and its stages


def fit(
    config: Config,
    resume: bool = False,
    overwrite: bool = False,
    on_evaluation: OnEvaluation | None = None,
) -> Path:
    """Train a config with all its stages; a collective.

    Args:
        resume: go on from the folder's last checkpoint, if there is one.
        overwrite: replace the run that the folder holds, once the new one has been set up.
        on_evaluation: is told of each evaluation on the validation split, once its checkpoint is
            saved. A true answer ends the stage there, with its best model; an error ends the run,
            which `resume` goes on with. The main process alone calls it.
    Returns:
        the run folder, which then holds the best model on validation.
    Raises:
        InputError: the config, the data or the machine does not allow it; before anything is
            written.
        FloatingPointError: the loss is not finite; the last good checkpoint is kept.
        Interrupted: by SIGTERM or Ctrl-C; the checkpoint has been written.
    """
    config = member_stages(config)
    distributed.check_training_launch()
    distributed.start("no")  # the number of processes is known from here on
    config = chosen(config)
    watch_numba()
    stages = plan(config, resume, overwrite)
    done = False
    for number, name in enumerate(stages):
        current = at_present(stages[name], config, name)
        done = resume and is_finished(current)
        if name:
            ended = ": finished" if done else ""
            log.info("stage %s (%d of %d)%s", name, number + 1, len(stages), ended)
        if done:
            tidy(current)
        else:  # the first one replaces all of an older run
            with training_memory(current, distributed.world_size()):
                fit_stage(current, config, resume, overwrite and number == 0, on_evaluation)
    if done:
        log.info("%s: the run has finished already, nothing is trained", config.run_folder)
    return config.run_folder


def tidy(config: Config) -> None:
    """Remove what a finished run could go on from, unless `run.keep_last`; a collective."""
    with locked(config.run_folder):
        if distributed.is_main() and not config.run.keep_last:
            drop_progress(config.run_folder)
    distributed.barrier()


def plan(
    config: Config,
    resume: bool,
    overwrite: bool,
) -> dict[str, Config]:
    """The stages of a config by name, after all that can be refused before the first one starts."""
    stages = plan_recipe(config, processes=distributed.world_size())
    for name, stage in stages.items():
        with of_stage(name):
            check_compiler(stage)
            distributed.check_launcher(stage.train.mixed_precision)
            check_it_fits(stage, distributed.world_size())
    check_folders([*stages.values()], resume, overwrite)
    return stages


def at_present(
    stage: Config,
    config: Config,
    name: str,
) -> Config:
    """A stage, when its turn has come: `best:NAME` is known."""
    if not name:
        return stage
    return dataclasses.replace(stage, train=stage_configs(config)[name].train)


def fit_stage(
    config: Config,
    whole: Config,
    resume: bool = False,
    overwrite: bool = False,
    on_evaluation: OnEvaluation | None = None,
) -> Path:
    """One training run: read the data, make the recipe, train or fit it, keep the best model.

    Args:
        config: of one stage, planned: the settings of its encoder are resolved, its group rates its
            own.
        whole: of the whole run.
        on_evaluation: as of `fit`.
    """
    runtime = Runtime.start(config)
    train = dataclasses.replace(config.train, mixed_precision=runtime.precision)
    config = dataclasses.replace(config, train=train)
    set_seed(config.run.seed)
    data = read_data(config, resume)
    kind = method_class(config.method.name)
    kind.check(config, DataSizes.of(data), Runs())  # its sizes are exact now
    if resume and is_begun(config.run_folder):
        check_same_data(config.run_folder, data)
    recipe = kind(config, data, start_of(config, runtime), runtime)
    # only now: what fails before leaves nothing behind
    folder = open_run(config, whole, resume, overwrite)
    start_logging(folder)
    describe(folder, data, runtime)
    distributed.separate_random_states(config.run.seed)
    watched = Watched(stage_name(config, whole), on_evaluation)
    with locked(folder):
        if isinstance(recipe, Solver):
            solve(recipe, folder, watched)
        else:
            assert isinstance(recipe, Learner)
            train_learner(recipe, folder, resume, watched)
    tidy(config)
    return folder


def stage_name(config: Config, whole: Config) -> str:
    """The name of a stage; "" of a run without stages."""
    if not whole.stages:
        return ""
    is_last = config.run_folder == whole.run_folder
    return whole.stages[-1]["name"] if is_last else config.run_folder.name


def read_data(config: Config, resume: bool) -> Dataset:
    """The data set of a stage, its texts cut into tokens where the recipe trains on these."""
    tokenizer: Any = tokenizer_of(config)
    if tokenizer is not None:
        tokenizer = load_tokenizer(tokenizer, config.encoder.trust_remote_code)
    held_out = saved_validation_rows(config.run_folder, config.data) if resume else None
    return load_dataset(config, tokenizer, held_out)


def describe(
    folder: Path,
    data: Dataset,
    runtime: Runtime,
) -> None:
    """Say in the log and in the run folder what is trained on what."""
    if distributed.is_main():
        computing = {"device": runtime.device.type, "mixed_precision": runtime.precision}
        write_environment(folder, data, labels_hash(data.folder), computing)
        with written_whole(folder / "val_rows.npy") as partial, open(partial, "wb") as file:
            np.save(file, data.splits["val"].rows)
    log.info(
        "on %s, mixed precision %s, processes: %d, threads of each: %d",
        runtime.device.type,
        runtime.precision,
        distributed.world_size(),
        torch.get_num_threads(),
    )
    log.info(
        "%s: %d training, %d validation, %d test points, %d labels, data %s",
        data.name,
        *(len(data.splits[split]) for split in ("trn", "val", "tst")),
        data.num_labels,
        data.hash,
    )
    if data.label_stand_ins:
        log.warning("%s", data.label_stand_ins)


# -------------------------------- one stage


@dataclass(frozen=True)
class Watched:
    """The name of a stage, and who is told of its evaluations."""

    stage: str
    on_evaluation: OnEvaluation | None


@dataclass
class Run:
    """What the loop works on."""

    recipe: Recipe
    optimizers: list[torch.optim.Optimizer]
    state: Progress
    folder: Path
    metric_log: MetricLog
    watched: Watched
    pace: Pace
    compiled_before: float = field(default_factory=compile_seconds)

    @property
    def config(self) -> Config:
        return self.recipe.config

    @property
    def data(self) -> Dataset:
        return self.recipe.data

    def save(self, learner: Learner) -> None:
        """Replace `last/` by the present state."""
        save_checkpoint(self.folder, learner, self.optimizers, self.state, learner.runtime)


def solve(
    recipe: Solver,
    folder: Path,
    watched: Watched,
) -> None:
    """Fit a recipe without gradients and keep its model."""
    state = Progress()
    metric_log = MetricLog(folder, recipe.config, 0, 0)
    run = Run(recipe, [], state, folder, metric_log, watched, pace_of(recipe, watched))
    started = working_time()
    with stopped_by_sigterm():
        recipe.fit(folder)
    state.seconds += working_time() - started
    found = keep_best(run, 0.0)
    finish(run)
    asks_to_stop(watched.on_evaluation, found)


def train_learner(
    learner: Learner,
    folder: Path,
    resume: bool,
    watched: Watched,
) -> None:
    """The loop over epochs: train, validate, keep the best model and a checkpoint."""
    config = learner.config
    if config.train.compile:
        compile_encoders(learner.module)
        watch_torch()
    groups = learner.groups()
    names = {group["name"] for group in groups}
    known = learner.group_names(config)
    assert names == known, (
        f"groups() has {sorted(names)}, but group_names(), which is asked on paper, {sorted(known)}"
    )
    optimizers = build_optimizers(groups, config.optim)
    state = load_checkpoint(folder, learner, optimizers, learner.runtime) if resume else None
    state = state or Progress()
    metric_log = MetricLog(folder, config, state.step, state.epoch)
    run = Run(learner, optimizers, state, folder, metric_log, watched, pace_of(learner, watched))
    last = last_epoch(config)
    prepare_or_resume(run, learner, last)
    first = state.epoch
    every = 1 if learner.runtime.device.type == "cpu" else CHECK_EVERY
    with SaveClock(config.run.save_minutes, every) as clock:
        while state.epoch < last and not out_of_patience(state, config):
            if state.epoch_step == 0:
                learner.begin(state.epoch)
            is_profiled = config.run.profile and state.epoch == first
            with profiled(folder, is_profiled and distributed.is_main()) as profile:
                loss = train_epoch(run, learner, clock, profile)
            state.epoch += 1
            state.epoch_step = 0
            state.loss_sum = 0.0
            state.loss_sum_noted = 0.0
            if state.epoch % config.train.eval_interval == 0 or state.epoch == last:
                found = keep_best(run, loss)
                run.save(learner)
                clock.saved()
                if asks_to_stop(watched.on_evaluation, found):
                    log.info("stopped after epoch %d, as on_evaluation asked", state.epoch)
                    break
    if config.train.epochs == 0:
        asks_to_stop(watched.on_evaluation, keep_best(run, 0.0))
    finish(run)


def pace_of(recipe: Recipe, watched: Watched) -> Pace:
    """What a stage has before it, nothing of it done."""
    config = recipe.config
    name = f"stage {watched.stage}" if watched.stage else "run"
    if not recipe.has_epochs:
        return Pace(name, steps=0, evaluations=1)
    epochs = last_epoch(config)
    steps = steps_per_epoch(recipe.data.splits["trn"], config.train.batch_size)
    return Pace(name, epochs * steps, evaluations=-(-epochs // config.train.eval_interval))


def last_epoch(config: Config) -> int:
    """How many epochs are trained."""
    stop = config.train.stop_epoch
    assert not isinstance(stop, str), "`best:NAME` is resolved when a stage begins"
    return min(config.train.epochs, stop or config.train.epochs)


def prepare_or_resume(
    run: Run,
    learner: Learner,
    last: int,
) -> None:
    """Prepare a run that begins; of one that goes on say where it stands."""
    state = run.state
    if state.step == 0:
        started = working_time()
        with stopped_by_sigterm():
            learner.prepare(run.folder)
        state.seconds += working_time() - started
    elif state.epoch >= last:
        log.info("all epochs of the run were trained already")
    else:
        log.info("resumed at epoch %d, step %d", state.epoch + 1, state.step)


def finish(run: Run) -> None:
    """Say that a run has ended."""
    state = run.state
    run.metric_log.close()
    if distributed.is_main():
        run.recipe.finish(run.folder)
        summary = {
            "epochs": state.epoch,
            "best_epoch": state.best_epoch,
            "train_seconds": round(state.seconds, 1),
        }
        log_decider(run.folder / "model", run.data.num_labels, run.config.eval)
        write_json(run.folder / "finished", summary)
    distributed.barrier()  # a later stage may ask for the best epoch
    compiled = compile_seconds() - run.compiled_before
    log.info(
        "best epoch %s; %.1f s of training%s",
        state.best_epoch,
        state.seconds,
        f", after {compiled:.1f} s of compiling kernels" if compiled >= 0.1 else "",
    )


def train_epoch(
    run: Run,
    learner: Learner,
    clock: SaveClock,
    profile: Profile,
) -> float:
    """One epoch from `state.epoch_step` on; returns the mean loss of all its steps."""
    config = run.config
    state = run.state
    split = run.data.splits["trn"]
    steps = steps_per_epoch(split, config.train.batch_size)
    total = steps * config.train.epochs
    every = config.run.log_every or total + 1  # never
    groups = [group for optimizer in run.optimizers for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    row_sums = RowSums(parameters)
    meter = EpochMeter(state, run.folder)
    learner.module.train()
    order = learner.order(state.epoch)
    batches = training_batches(split, order, config, state.epoch, state.epoch_step)
    batches = ready_batches(batches, learner.ahead, learner.runtime.device)
    with (
        progress(
            steps,
            f"epoch {state.epoch + 1}",
            "steps",
            done=state.epoch_step,
            note=partial(meter.note, run.pace),
        ) as bar,
        tensor_cores(config.train.tf32),
    ):
        for batch in batches:
            factor = learning_rate_factor(state.step, total, config.optim)
            set_learning_rates(run.optimizers, factor)
            with row_sums:
                loss = learner.backward(batch)
            is_noted = (state.step + 1) % every == 0
            norms = take_step(run, learner.runtime, parameters, is_noted)
            state.step += 1
            state.epoch_step += 1
            meter.add(loss, batch)
            if is_noted:
                note_step(run, meter.step_values(every), norms)
            profile.step()
            bar.update()
            if clock.due():
                meter.settle()  # a loss that is not finite must never reach a checkpoint
                run.save(learner)
                clock.saved()
    loss_of_epoch, values = meter.close(learner.report(), learner.runtime.device)
    run.metric_log.write("train", state.step, {**values, **profile.values()})
    return loss_of_epoch


def note_step(
    run: Run,
    values: dict[str, float],
    norms: dict[str, Tensor],
) -> None:
    """Note the last steps where metrics are kept.

    Args:
        norms: of the gradient; {} of a step that was not taken.
    """
    values |= learning_rates(run.optimizers)
    values |= {name: float(norm) for name, norm in norms.items()}
    run.metric_log.write("step", run.state.step, values)


def take_step(
    run: Run,
    runtime: Runtime,
    parameters: list[nn.Parameter],
    is_noted: bool,
) -> dict[str, Tensor]:
    """Let all optimizers take a step by the gradients that `backward` left; a collective.

    Where fp16 made a gradient that is not finite none of them does, on no process: parameters,
    moments and the optimizers' counts of steps stay, the schedule goes on with the batches.

    Args:
        is_noted: the gradient's norms are wanted.
    Returns:
        these, before it is clipped; {} where they are not wanted, or no step was taken.
    """
    norms: dict[str, Tensor] = {}
    sum_gradients(parameters)
    if runtime.unscale(parameters):
        clip_norm = run.config.optim.clip_norm
        if is_noted:
            norms = gradient_norms(parameters)
        if clip_norm is not None:
            clip_gradients(parameters, clip_norm)
        for optimizer in run.optimizers:
            optimizer.step()
    else:
        assert runtime.loss_scale is not None, "without one every step is taken"
        run.state.skipped_steps += 1
        log.info(
            "step %d is skipped: fp16 made a gradient that is not finite; the loss scale is now %g",
            run.state.step + 1,
            runtime.loss_scale.value,
        )
    for optimizer in run.optimizers:
        optimizer.zero_grad(set_to_none=True)
    return norms


def keep_best(run: Run, loss: float) -> EpochEvaluation:
    """Evaluate on the validation split and save the model if it is the best so far."""
    state = run.state
    started = working_time()
    ranker = run.recipe.ranker()
    found: dict[str, float] = {}
    evaluation = None
    if len(run.data.splits["val"]):
        evaluation = evaluate(ranker, run.data, "val")
        found = distributed.broadcast(evaluation.metrics)
        facts = evaluation.facts
    else:
        facts = ranker.facts({})
    tracked = tracked_metric(run.config, found) if found else ""
    if found:
        log.info("validation after epoch %d: %s", state.epoch, headline(found, SHOWN))
        run.metric_log.write("val", state.step, {"epoch": state.epoch, **found, **facts})
    # without a validation split the training loss decides
    value = found[tracked] if found else -loss
    is_best = state.best is None or value > state.best
    if is_best:
        state.best = value
        state.best_epoch = state.epoch
        state.evaluations_without_better = 0
        save_model(run, ranker, {"epoch": state.epoch, **found, **facts}, evaluation)
    else:
        state.evaluations_without_better += 1
    run.pace.evaluation_seconds = working_time() - started
    return EpochEvaluation(
        stage=run.watched.stage,
        epoch=state.epoch,
        step=state.step,
        loss=loss,
        metrics=found,
        tracked=tracked,
        is_best=is_best,
        folder=run.folder,
    )


def save_model(
    run: Run,
    ranker: Ranker,
    found: dict[str, float],
    evaluation: Evaluation | None,
) -> None:
    """Put a model into the run folder, with what was found of it; a collective.

    Args:
        found: for val_metrics.json.
        evaluation: of the validation points; None where there are none.
    """
    whole = ranker.whole()
    with folder_written_whole(run.folder / "model") as partial:
        if distributed.is_main():
            assert whole is not None, "the main process has the whole model"
            decider = decider_of(run.recipe, ranker, evaluation)
            whole.save(partial)
            save_decider(decider, partial)
            complete_model(partial, run.data.folder, models_near(run.folder))
    if distributed.is_main():
        write_json(run.folder / "val_metrics.json", {**found, **told(decider, run.config.eval)})


def tracked_metric(config: Config, found: dict[str, float]) -> str:
    """Name of the metric that selects the checkpoint."""
    if config.train.track_metric:
        return config.train.track_metric
    computed = [int(name.partition("@")[2]) for name in found if name.startswith("nDCG@")]
    usual = [k for k in computed if k <= 5]
    return f"nDCG@{max(usual, default=min(computed))}"


def out_of_patience(state: Progress, config: Config) -> bool:
    """Whether too many evaluations in a row were no better than the best."""
    patience = config.train.patience
    stop = patience is not None and state.evaluations_without_better >= patience
    if stop:
        log.info(
            "stopping early: %d evaluations without a better one", state.evaluations_without_better
        )
    return stop
