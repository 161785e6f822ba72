"""What --try says of a key, and what of it is refused."""

import pytest

from utils.config.config import ConfigError
from utils.sweep.ranges import Choices, Range, as_words, combinations, parse_tries


def test_values_and_ranges_are_read():
    words = [
        "optim.lr=1e-3, 2e-3",
        "method.tau=log:0.01:0.1",
        "encoder.dropout=lin:0:0.3",
        "train.epochs=int:5:20",
        "stages.main.method.tau=0.1",
        "eval.ks=[1,3],[5]",
    ]
    assert parse_tries(words) == {
        "optim.lr": Choices(("1e-3", "2e-3")),
        "method.tau": Range(0.01, 0.1, is_log=True),
        "encoder.dropout": Range(0.0, 0.3),
        "train.epochs": Range(5, 20, is_whole=True),
        "stages.main.method.tau": Choices(("0.1",)),
        "eval.ks": Choices(("[1,3]", "[5]")),
    }


@pytest.mark.parametrize(
    "word, message",
    [
        ("optim.lr", "--try optim.lr: expected section.key=VALUES"),
        ("lr=1", "--try lr=1: expected section.key=VALUES"),
        ("optim.lr=1,,2", "got an empty one"),
        ("optim.lr=1,2,1", "1 stands twice"),
        ("optim.lr=log:0:1", "a log range starts above 0, got 0"),
        ("optim.lr=log:1", "expected log:LOW:HIGH"),
        ("optim.lr=lin:2:1", "the smaller one first"),
        ("optim.lr=lin:0:nan", "expected two numbers"),
        ("train.epochs=int:1.5:3", "expected whole numbers, got 1.5:3"),
        (f"train.epochs=int:1:{'9' * 400}", "expected numbers up to 1e+15"),
        ("optim.lr=lin:0:inf", "expected numbers up to 1e+15"),
        ("data.val_fraction=0.1,0.2", "is the same in all trials: trials would be measured on"),
        ("run.dir=a,b", "is the same in all trials: the sweep places its trials"),
        ("stages.a.run.dir=a,b", "is the same in all trials"),
    ],
)
def test_what_is_no_range_is_one_line(word, message):
    with pytest.raises(ConfigError) as found:
        parse_tries([word])
    assert message in str(found.value) and "\n" not in str(found.value)


def test_nothing_to_try_and_a_key_twice():
    with pytest.raises(ConfigError, match="expected --try section.key=VALUES at least once"):
        parse_tries([])
    with pytest.raises(ConfigError, match="optim.lr stands twice"):
        parse_tries(["optim.lr=1,2", "optim.lr=3"])


def test_a_drawn_number_is_written_with_four_digits_inside_of_its_range():
    tau = Range(0.012345, 0.1, is_log=True)
    assert tau.written(0.0200049) == "0.02"
    assert tau.written(0.0123451) == "0.01235"
    assert tau.written(0.0999999) == "0.1"
    assert Range(0.012349, 0.1).written(0.012349) == "0.01235"
    assert Range(0.012351, 0.1).written(0.0123511) == "0.012351"  # 0.01235 is outside
    assert tau.ends == ("0.012345", "0.1")
    assert Range(1, 9, is_whole=True).written(4) == "4"


def test_combinations_are_all_or_none():
    tries = parse_tries(["optim.lr=1,2", "method.tau=3,4"])
    assert combinations(tries) == [
        {"optim.lr": "1", "method.tau": "3"},
        {"optim.lr": "1", "method.tau": "4"},
        {"optim.lr": "2", "method.tau": "3"},
        {"optim.lr": "2", "method.tau": "4"},
    ]
    assert combinations(parse_tries(["optim.lr=1,2", "method.tau=lin:3:4"])) is None
    assert as_words({"optim.lr": "1", "method.tau": "-3"}) == ["--optim.lr=1", "--method.tau=-3"]
