"""Every shipped config, checked on paper as it is published and trained whole on a toy data set of
its name.

    # all, a few seconds each; ends with an error if any fails
    python -m benchmarks.recipes
    python -m benchmarks.recipes amazon-670k      # those whose path contains a word

On paper: `engine.planning.plan_recipe` with the published numbers of points and labels. Trained:
all stages in order, with a small encoder in place of the hub's, two epochs, and every size cut to
the toy's, so that the code that runs is the code that would. The last column is P@1 on the toy's
24 test points.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from engine.planning import plan_recipe
from eval import evaluate
from train import fit
from utils.config.config import Config, build_config, to_mapping
from utils.config.legacy_yaml import load_any_config
from utils.config.methods import method_options
from utils.data.held_out import held_out_points
from utils.data.sizes import DataSizes
from utils.pretrained.location import load_tokenizer
from utils.run.logs import start_logging
from utils.run.stages import Runs, member_stages

CONFIGS = Path(__file__).parent.parent / "configs"
POINTS, TEST_POINTS, LABELS = 96, 24, 24


@dataclass(frozen=True)
class Published:
    """Sizes of a published data set: training points, labels, whether the labels have texts."""

    points: int
    labels: int
    label_texts: bool = True


DATA_SETS = {
    "Debtags": Published(23_451, 573),
    "EURLex-4K": Published(15_449, 3_956),
    "LF-AmazonTitles-1.3M": Published(2_248_619, 1_305_265),
    "LF-AmazonTitles-131K": Published(294_805, 131_073),
    "LF-DebianTitles": Published(33_238, 16_409),
    "LF-DebianTitles-small": Published(10_000, 6_491),
    "LF-WikiSeeAlso-320K": Published(693_082, 312_330),
    "LF-Wikipedia-500K": Published(1_813_391, 501_070),
    "amazon-3m": Published(1_717_899, 2_812_281, False),
    "amazon-670k": Published(490_449, 670_091, False),
    "amazoncat-13k": Published(1_186_239, 13_330, False),
    "eurlex-4k-pecos": Published(15_449, 3_956, False),
    "wiki-500k": Published(1_779_881, 501_070, False),
    "wiki10-31k": Published(14_146, 30_938, False),
}


def shipped(words: tuple[str, ...] = ()) -> list[Path]:
    """The configs that can be run, those first that others start from.

    Args:
        words: parts of paths, any of which must occur; none = all.
    """
    paths = [
        path
        for path in CONFIGS.glob("*/*.yaml")
        if path.name != "dataset.yaml" and path.parent.name != "presets"
    ]
    last = ("elias-1.yaml", "elias-2.yaml")
    paths.sort(
        key=lambda path: (
            path.parent.name,
            last.index(path.name) if path.name in last else -1,
            path.name,
        )
    )
    return [
        path
        for path in paths
        if not words or any(word in f"{path.parent.name}/{path.name}" for word in words)
    ]


# -------------------------------- a toy in place of data and encoder


@dataclass(frozen=True)
class Toys:
    """Folders: data sets, runs, and the encoder in place of every pretrained one."""

    data: Path
    runs: Path
    encoder: Path

    @classmethod
    def make(cls, folder: Path) -> Toys:
        """Write the encoder and all data sets into an empty folder."""
        toys = cls(folder / "Datasets", folder / "Results", folder / "encoder")
        _write_encoder(toys.encoder)
        for name, published in DATA_SETS.items():
            _write_data(toys.data / name, published.label_texts)
        return toys


def _write_encoder(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    settings = BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=512,
    )
    BertModel(settings).save_pretrained(folder)
    load_tokenizer("minilm").save_pretrained(folder)


def _write_data(folder: Path, label_texts: bool) -> None:
    """A data set whose texts say their labels; features as of a download where the labels have no
    texts."""
    rng = np.random.default_rng(0)
    (folder / "raw").mkdir(parents=True)
    names = [f"label{chr(97 + i)} word{chr(97 + i % 5)}" for i in range(LABELS)]
    if label_texts:
        _write_lines(folder / "raw" / "Y.txt", names)
    for split, long, count in (("trn", "train", POINTS), ("tst", "test", TEST_POINTS)):
        relevance = np.zeros((count, LABELS), np.float32)
        for row in range(count):
            relevance[row, rng.choice(LABELS, rng.integers(1, 4), replace=False)] = 1
            relevance[row, row % LABELS] = 1
        texts = [" and ".join(names[label] for label in np.flatnonzero(row)) for row in relevance]
        _write_lines(folder / "raw" / f"{split}_X.txt", texts)
        sp.save_npz(folder / f"Y.{split}.npz", sp.csr_matrix(relevance))
        if label_texts:
            absent = [
                f"{row} {np.flatnonzero(relevance[row] == 0)[0]}" for row in range(0, count, 7)
            ]
            _write_lines(folder / f"filter_labels_{long}.txt", absent)
        else:
            sp.save_npz(
                folder / f"X.{split}.npz", sp.csr_matrix(relevance * rng.uniform(0.5, 1, LABELS))
            )


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# -------------------------------- cutting a config to the toy's size


def _at_most(limit: int) -> Callable[[Any], Any]:
    return lambda value: (
        min(value, limit) if isinstance(value, int) and not isinstance(value, bool) else value
    )


def _vectors(value: Any) -> Any:
    """Auxiliary vectors: eight clusters, and two head labels where there are some."""
    return value if value in (0, "labels") else 8


# Each value that depends on the size of the data, of the encoder or of the machine; all others stay
# as they are.
CUTS: Mapping[str, Callable[[Any], Any]] = {
    "data.max_len": _at_most(16),
    "data.label_max_len": _at_most(16),
    "data.val_fraction": lambda v: v and 0.25,
    "data.val_group_size": _at_most(4),
    "encoder.layers": lambda v: v and 1,
    "encoder.projection": _at_most(8),
    "method.num_vectors": _vectors,
    "method.num_head_vectors": lambda v: v and 4,
    "method.num_clusters": _at_most(8),
    "method.max_leaf": _at_most(4),
    "method.splits": _at_most(4),
    "method.beam": _at_most(4),
    "method.kappa": _at_most(12),
    "method.beta": lambda v: v and 2.0,
    "method.K": _at_most(20),
    "method.wl_dim": _at_most(8),
    "method.swa_start": _at_most(0),
    "method.swa_step": _at_most(2),
    "method.hard_neg_start": _at_most(1),
    "method.refresh_interval": _at_most(1),
    "method.shortlist_size": _at_most(5),
    "method.cluster_size": _at_most(4),
    "method.curr_epochs": lambda v: [0, 1],
    "method.cluster_interval": _at_most(1),
    "method.candidates": _at_most(20),
    "method.negatives": _at_most(20),
    "method.min_leaf": _at_most(5),
    "method.memory_neighbours": _at_most(5),
    "optim.warmup": lambda v: min(v, 2),
    "optim.lr": lambda v: max(v, 5e-3),
    "train.epochs": _at_most(2),
    "train.batch_size": _at_most(16),
    "train.eval_interval": _at_most(1),
    "train.stop_epoch": _at_most(2),
    "eval.top_k": _at_most(LABELS),
}


def on_toys(config: Config, toys: Toys) -> Config:
    """The config as it is, on the folder of the toys, and with theirs in place of each pretrained
    encoder.

    A bag stays a bag.
    """

    def change(
        section: str,
        key: str,
        value: Any,
    ) -> Any:
        if (section, key) == ("data", "root"):
            return str(toys.data)
        pretrained = (section, key) == ("encoder", "init") or (
            (section, key) == ("encoder", "name") and value != "bag"
        )
        return str(toys.encoder) if pretrained else value

    return _changed(config, change)


def cut(config: Config, toys: Toys) -> Config:
    """The config as it is trained on the toy."""
    places = {"run.root": str(toys.runs), "run.tensorboard": False, "run.threads": 1}

    def change(
        section: str,
        key: str,
        value: Any,
    ) -> Any:
        name = f"{section}.{key}"
        if name in places:
            return places[name]
        if name == "run.start_from" and value and value.startswith("Results/"):
            return str(toys.runs / value.removeprefix("Results/"))
        return CUTS[name](value) if name in CUTS and value is not None else value

    return _changed(on_toys(config, toys), change)


def _changed(config: Config, change: Callable[[str, str, Any], Any]) -> Config:
    """The config with change(section, key, value) for each value, those of its stages too."""

    def of_section(section: str, content: Any) -> Any:
        if not isinstance(content, Mapping):  # the name of a stage
            return content
        return {key: change(section, key, value) for key, value in content.items()}

    def all_of(sections: Mapping[str, Any]) -> dict[str, Any]:
        return {section: of_section(section, content) for section, content in sections.items()}

    values = to_mapping(config)
    stages = values.pop("stages", ())
    changed = [all_of(_with_defaults(stage, config)) for stage in stages]
    return build_config(all_of(values), {}, changed)


def _with_defaults(stage: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """A stage that says all of its method, where it has another than the config: its defaults are
    to be cut too."""
    own = dict(stage.get("method") or {})
    name = own.get("name", config.method.name)
    if name == config.method.name:
        return dict(stage)
    defaults = to_mapping(
        dataclasses.replace(config, method=method_options(name)(name=name), stages=())
    )["method"]
    return {**stage, "method": {**defaults, **own}}


# -------------------------------- what is done with a config


def published_sizes(config: Config) -> DataSizes:
    """The sizes of the published data set of a stage, in place of those of its files."""
    data = config.data
    published = DATA_SETS[data.name]
    held_out = held_out_points(published.points, data)
    problem = "" if published.label_texts else f"{data.name}: the labels have no texts"
    return DataSizes(
        data.name,
        config.dataset_folder,
        published.labels,
        published.points - held_out,
        held_out,
        published.labels,
        problem,
    )


class Paper:
    """Checks configs at their published size; a config may start from one that was checked
    before."""

    def __init__(self, toys: Toys) -> None:
        self._toys = toys
        self._known: dict[str, Config] = {}

    def check(self, config: Config) -> dict[str, Config]:
        """The stages of a config as it is shipped; ConfigError for what could not be trained."""
        stages = plan_recipe(on_toys(config, self._toys), published_sizes, Runs(self._known))
        for stage in stages.values():
            self._known[str(stage.run_folder)] = stage
        return stages


def load(path: Path) -> Config:
    """A shipped config, with stages for the config files that a fusion names."""
    return load_any_config(path, expand=member_stages)


def recipe_key(config: Config) -> str:
    """Equal for cut configs whose training is the same but for names."""
    values = to_mapping(config)
    name = values["data"].pop("name")
    for key in ("propensity_a", "propensity_b"):
        values["data"].pop(key)
    for key in ("project", "expname"):
        values["run"].pop(key)
    return repr((DATA_SETS[name].label_texts, values)).replace(f"/{name}/", "/")


def distinct(paths: list[Path], toys: Toys) -> list[Path]:
    """One config of each kind that is trained alike, and those that they start from; in order."""
    configs = {path: cut(load(path), toys) for path in paths}
    kept: dict[str, Path] = {}
    for path, config in configs.items():
        kept.setdefault(recipe_key(config), path)
    chosen = set(kept.values())
    for path in reversed(paths):  # a config comes after those that it starts from
        start = configs[path].run.start_from
        if path in chosen and start:
            chosen |= {
                other
                for other, config in configs.items()
                if Path(start).is_relative_to(config.run_folder)
            }
    return [path for path in paths if path in chosen]


def train_whole(config: Config) -> float:
    """P@1 on the test split of what all stages of a cut config train."""
    return evaluate(fit(config, overwrite=True))["P@1"]


def rows(paths: list[Path], toys: Toys) -> Iterator[tuple[Path, int, float, float | Exception]]:
    """(config, stages, seconds, P@1 or what went wrong) of each config."""
    paper = Paper(toys)
    for path in paths:
        started = time.perf_counter()
        stages = 0
        try:
            config = load(path)
            stages = len(paper.check(config))
            found: float | Exception = train_whole(cut(config, toys))
        except Exception as error:  # the table says which configs fail
            found = error
        yield path, stages, time.perf_counter() - started, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="parts of paths below configs/; none = all")
    chosen = shipped(tuple(parser.parse_args().words))
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        toys = Toys.make(Path(folder))
        print("| config | stages | s | P@1 |\n| --- | --- | --- | --- |")
        for path, stages, seconds, found in rows(chosen, toys):
            start_logging()  # away from the run's files, which are to be deleted
            said = (
                f"{found:.2f}" if isinstance(found, float) else f"{type(found).__name__}: {found}"
            )
            print(
                f"| {path.parent.name}/{path.stem} | {stages} | {seconds:.1f} | {said} |",
                flush=True,
            )
            failed += [path] * isinstance(found, Exception)
    if failed or not chosen:
        sys.exit(f"{len(failed)} of {len(chosen)} configs failed")


if __name__ == "__main__":
    main()
