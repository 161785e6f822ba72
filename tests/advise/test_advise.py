"""`python -m utils.advise`: the facts of made data sets, the arithmetic of costs, and what is
printed."""

import json

import numpy as np
import pytest
import scipy.sparse as sp

from engine.advising import offers
from engine.conformance.made import write_dataset
from utils.advise.__main__ import main
from utils.advise.costs import WORK, Costs, WorkSizes, features_seconds
from utils.advise.dataset_facts import (
    Spread,
    dataset_facts,
    duplicates,
    most_have_no_blanks,
)
from utils.advise.machine import Speed, calibrate
from utils.advise.tables import duration, facts_table, suiting
from utils.config.methods import METHODS
from utils.config.presets import PRESETS
from utils.data.facts import DataFacts
from utils.errors import InputError

SIZES = WorkSizes(9000, 1000, 5000, 40_000, 20.0, 10.0, 15.0, members=3)


def write_small(
    folder, texts=("a b", "A  b", "c", "d e f"), test=("a B", "new"), labels=("x", "y")
):
    """Four points, two labels: the second label is seen once, the last point has none."""
    (folder / "raw").mkdir(parents=True)
    (folder / "raw" / "trn_X.txt").write_text("".join(f"{text}\n" for text in texts))
    (folder / "raw" / "tst_X.txt").write_text("".join(f"{text}\n" for text in test))
    if labels:
        (folder / "raw" / "Y.txt").write_text("".join(f"{text}\n" for text in labels))
    relevance = np.array([[1, 0], [1, 1], [1, 0], [0, 0]], np.float32)
    sp.save_npz(folder / "Y.trn.npz", sp.csr_matrix(relevance))
    sp.save_npz(folder / "Y.tst.npz", sp.csr_matrix(relevance[:2]))
    return folder


@pytest.fixture
def small(tmp_path):
    return write_small(tmp_path / "small")


# -------------------------------- facts


def test_facts_of_a_small_data_set(small):
    facts = dataset_facts(small)
    assert (facts.training_points, facts.test_points, facts.labels) == (4, 2, 2)
    assert facts.unlabelled_points == 1 and facts.pairs == 4
    assert facts.labels_of_a_point == Spread(4 / 3, 1.0, 2)
    assert facts.points_of_a_label == Spread(2.0, 2.0, 3)
    assert (facts.never_seen, facts.seen_once, facts.seen_rarely) == (0, 0.5, 1)
    assert facts.words == Spread(2.0, 2.0, 3) and facts.label_words == Spread(1.0, 1.0, 1)
    assert facts.has_label_texts and not facts.has_no_blanks
    assert facts.test_in_training == 0.5  # blanks and case apart
    assert facts.repeated_training == 0.25
    assert not facts.features_given and not facts.filters_given


def test_facts_without_label_texts(tmp_path):
    facts = dataset_facts(write_small(tmp_path / "small", labels=()))
    assert not facts.has_label_texts and facts.label_words is None
    assert "no texts that can be read" in facts_table(facts, {})


def test_facts_of_features_alone(small):
    for path in (small / "raw").iterdir():
        path.unlink()
    facts = dataset_facts(small)
    assert facts.words is None and facts.test_in_training is None
    assert "features alone" in facts_table(facts, {})
    assert "best" not in suiting(facts)


def test_one_label_and_an_empty_text(tmp_path):
    folder = write_dataset(tmp_path / "one", points=5, test_points=3, labels=1)
    (folder / "raw" / "trn_X.txt").write_text("\n" * 5)
    facts = dataset_facts(folder)
    assert facts.labels == 1 and facts.words == Spread(0.0, 0.0, 0)
    assert facts.repeated_training == 0.8


def test_duplicates_of_nothing():
    assert duplicates([], []) == (0, 0)
    assert duplicates(["a"], []) == (0, 0)
    assert duplicates([], ["a"]) == (0, 0)


def test_tokens_that_an_encoder_has_no_word_for(small, make_config):
    config = make_config(data={"root": str(small.parent), "name": "small"})
    assert DataFacts.read(config).unknown_share("minilm") == 0
    (small / "raw" / "trn_X.txt").write_text("ᠠᠮᠠᠷ\n" * 4)
    share = DataFacts.read(config).unknown_share("minilm")
    assert share == pytest.approx(1 / 3)  # one between two special tokens
    facts = dataset_facts(small)
    assert "33.3 % of all" in facts_table(facts, {}, share)
    assert "unknown" not in facts_table(facts, {}, 0.0)


def test_texts_without_blanks():
    chinese = "自然语言处理是计算机科学领域与人工智能领域中的一个重要方向"
    assert most_have_no_blanks([chinese, chinese, "plain words"])
    assert not most_have_no_blanks([chinese, "plain words"])
    assert not most_have_no_blanks([])


def test_a_damaged_data_set_is_one_error(small):
    (small / "raw" / "trn_X.txt").write_text("one line\n")
    with pytest.raises(InputError, match="has 4 rows but .* has 1 lines"):
        dataset_facts(small)


# -------------------------------- costs


def test_every_method_that_presets_use_has_costs(small):
    known = [offer for offer in offers(small, dataset_facts(small), Speed()) if offer.stages]
    assert known
    for offer in known:
        assert set(offer.stages.values()) <= set(WORK)
        assert offer.seconds is not None and offer.seconds > 0
        assert offer.bytes is not None and offer.bytes > 0
    assert set(WORK) <= set(METHODS)


def learner(make_config, **train):
    return make_config(
        method={"name": "ova"}, train={"epochs": 8, "batch_size": 256, "patience": None} | train
    )


def test_work_grows_with_the_data(make_config):
    config = learner(make_config)
    seconds = Costs(config, SIZES, Speed()).seconds()
    twice = WorkSizes(18_000, 1000, 5000, 80_000, 20.0, 10.0, 15.0)
    assert 1.5 * seconds < Costs(config, twice, Speed()).seconds() < 2.2 * seconds
    more_labels = WorkSizes(9000, 1000, 50_000, 40_000, 20.0, 10.0, 15.0)
    assert Costs(config, more_labels, Speed()).seconds() > 5 * seconds


def test_a_slow_machine_takes_longer_and_threads_help(make_config):
    config = learner(make_config)
    seconds = Costs(config, SIZES, Speed()).seconds()
    assert Costs(config, SIZES, Speed(2, 2, 2)).seconds() == pytest.approx(2 * seconds)
    assert Costs(config, SIZES, Speed(threads=2)).seconds() < seconds
    assert features_seconds(SIZES, Speed(loops=3)) == 3 * features_seconds(SIZES, Speed())


def test_epochs_end_before_the_last_where_patience_ends_them(make_config):
    whole = Costs(learner(make_config, epochs=100), SIZES, Speed()).seconds()
    assert Costs(learner(make_config, epochs=100, patience=2), SIZES, Speed()).seconds() < whole / 5


def test_a_method_outside_has_no_costs(make_config):
    config = make_config(
        method={"name": "fused"},
        stages=[{"name": "a", "method": {"name": "dexml"}}, {"name": "fused"}],
    )
    assert Costs(config, SIZES, Speed()).seconds() is None
    assert duration(None) == "unknown"


def test_calibration_measures_this_machine():
    speed = calibrate(2)
    assert speed.threads == 2 and 1 < speed.together < 2
    for value in (speed.products, speed.passes, speed.loops):
        assert 0.01 < value < 100


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 s"), (99, "99 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations_are_said_shortly(seconds, said):
    assert duration(seconds) == said


# -------------------------------- the command


def test_tables_and_json_of_the_command(tiny_root, capsys):
    main([str(tiny_root / "tiny"), "--threads", "1"])
    told = capsys.readouterr().out
    assert "60 training, 20 test" in told and "(1 thread, " in told
    for preset in PRESETS:
        assert f"\n{preset} " in told
    assert "fewer than 250 labelled points" in told
    assert f"--data.name tiny --data.root {tiny_root}" in told
    assert "xr-linear  " in told.split("On this machine")[1]
    main([str(tiny_root / "tiny"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["data"]["labels"] == 20
    assert [offer["preset"] for offer in found["presets"]] == [*PRESETS]
    assert found["data"]["share_cut_at"]["32"] == 0


def test_no_threads_are_refused(tiny_root):
    with pytest.raises(SystemExit, match="error: --threads: expected at least 1, got 0"):
        main([str(tiny_root / "tiny"), "--threads", "0"])


def test_a_folder_that_is_no_data_set_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "none")])
    assert "no such data set" in str(stop.value) and "\n" not in str(stop.value)
