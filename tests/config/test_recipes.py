"""Every shipped config is sound at its published size, and its whole recipe trains on a toy of its
data set."""

import pytest

from benchmarks.recipes import (
    CONFIGS,
    DATA_SETS,
    Paper,
    Toys,
    cut,
    distinct,
    load,
    shipped,
    train_whole,
)


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return Toys.make(tmp_path_factory.mktemp("toys"))


@pytest.fixture(scope="module")
def chosen(toys):
    """One config of each kind, in the order in which they start from each other."""
    return distinct(shipped(), toys)


def test_every_config_is_sound_on_paper_at_its_published_size(toys):
    paper = Paper(toys)
    paths = shipped()
    for path in paths:
        config = load(path)
        assert list(paper.check(config)) == ([stage["name"] for stage in config.stages] or [""])
    assert {path.parent.name for path in paths} == set(DATA_SETS)
    others = [CONFIGS / "presets", *CONFIGS.glob("*/dataset.yaml")]
    files = [path for path in CONFIGS.glob("*/*.yaml") if not {path, path.parent} & {*others}]
    assert len(paths) == len(files)


@pytest.mark.parametrize("data", sorted(DATA_SETS))
def test_whole_recipes_train(toys, chosen, data):
    """`python -m benchmarks.recipes` trains all; here those of the data set that no other is
    like."""
    for path in chosen:
        if path.parent.name == data:
            assert 0 <= train_whole(cut(load(path), toys)) <= 100, path
