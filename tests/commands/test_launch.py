"""What accelerate is set to is done, said and written to the run, or refused by name."""

import json

import pytest
import yaml

import train
from tests.helpers import equal, weights
from utils import distributed
from utils.errors import InputError


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
            "4",
            "STEPS is 4: gradients are not accumulated .* expected 1",
        ),
        (
            "ACCELERATE_USE_DEEPSPEED",
            "true",
            "ACCELERATE_USE_DEEPSPEED is true: accelerate is set to DeepSpeed",
        ),
        (
            "ACCELERATE_USE_FSDP",
            "1",
            "ACCELERATE_USE_FSDP is 1: accelerate is set to FSDP, which is not supported",
        ),
        ("ACCELERATE_USE_MEGATRON_LM", "True", "set to Megatron-LM"),
        (
            "ACCELERATE_DYNAMO_BACKEND",
            "INDUCTOR",
            "ACCELERATE_DYNAMO_BACKEND is INDUCTOR: .* expected NO",
        ),
        (
            "ACCELERATE_MIXED_PRECISION",
            "fp8",
            "ACCELERATE_MIXED_PRECISION is fp8, expected one of no, fp16, bf16",
        ),
    ],
)
def test_what_is_not_done_is_refused_by_name(make_config, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    config = make_config()
    with pytest.raises(InputError, match=message):
        train.fit(config)
    assert not config.run_folder.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),
        ("ACCELERATE_USE_DEEPSPEED", "false"),
        ("ACCELERATE_USE_FSDP", "0"),
        ("ACCELERATE_DYNAMO_BACKEND", "NO"),
        ("ACCELERATE_MIXED_PRECISION", "no"),
    ],
)
def test_the_values_that_a_launcher_sets_by_itself_change_nothing(
    make_config, monkeypatch, tmp_path, name, value
):
    plain = weights(
        train.fit(make_config(train={"epochs": 1}, run={"dir": str(tmp_path / "plain")}))
    )
    monkeypatch.setenv(name, value)
    assert equal(plain, weights(train.fit(make_config(train={"epochs": 1}))))


def test_accumulation_that_scoring_is_launched_with_is_not_applied(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8")
    assert distributed.start().gradient_accumulation_steps == 1


def test_a_launch_of_several_processes_that_starts_one_is_refused(make_config, monkeypatch):
    """What `accelerate launch --cpu --num_processes 2` leaves in the environment of its only
    process."""
    for name in distributed.OWN_RANKS:
        monkeypatch.delenv(name, raising=False)
    for name, value in (
        ("ACCELERATE_USE_CPU", "True"),
        ("ACCELERATE_MIXED_PRECISION", "no"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "29500"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(
        InputError,
        match=r"several processes and started one .*--config_file configs/accelerate_cpu",
    ):
        train.fit(make_config())
    monkeypatch.delenv("MASTER_ADDR")  # of one process
    train.fit(make_config(train={"epochs": 1}))


@pytest.mark.parametrize(
    ("wanted", "launcher", "found"),
    [
        ("fp16", "no", "no"),
        ("bf16", "no", "bf16"),
        (None, "bf16", "bf16"),
        (None, "fp16", "no"),
        ("no", "bf16", "no"),
    ],
)
def test_the_precision_in_effect_is_said_and_written(
    make_config, monkeypatch, wanted, launcher, found
):
    """On a CPU: accelerate keeps the name fp16 there and computes in float32."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    folder = train.fit(make_config(train={"epochs": 1, "mixed_precision": wanted}))
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["mixed_precision"] == found
    environment = json.loads((folder / "environment.json").read_text())
    assert (environment["mixed_precision"], environment["device"]) == (found, "cpu")
    assert f"on cpu, mixed precision {found}, processes: 1" in (folder / "train.log").read_text()


def test_another_precision_goes_on_and_is_said(make_config):
    folder = train.fit(make_config(train={"epochs": 3, "stop_epoch": 1}))
    train.fit(
        make_config(train={"epochs": 3, "stop_epoch": 2, "mixed_precision": "bf16"}), resume=True
    )
    resumed = json.loads((folder / "environment.json").read_text())["resumed"]
    assert resumed[0]["mixed_precision"] == "bf16"
    assert (
        yaml.safe_load((folder / "config.yaml").read_text())["train"]["mixed_precision"] == "bf16"
    )
