"""`python -m benchmarks.gpu`: a dry run on the CPU, and what becomes of cases that fail."""

import json
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from benchmarks.gpu import (
    card,
    correctness,
    loss_speed,
    prepare,
    report,
    sections,
    step_speed,
    working,
)
from benchmarks.gpu.__main__ import NAMES, main
from benchmarks.gpu.cases import CASES, case_config
from benchmarks.gpu.flops import Texts, encoder_forward, streamed_loss
from benchmarks.gpu.made import write_set, write_tokenizer
from benchmarks.gpu.place import Place
from benchmarks.gpu.sizes import FULL, TINY, EncoderSize, StepSize
from benchmarks.gpu.training import Enough
from engine.planning import plan_recipe
from losses import LOSSES, Positives, stream
from utils.config.methods import METHODS
from utils.errors import InputError

ONE = {  # a case of each section
    "equality": "dexml, transformer",
    "resume": "dexa: deterministic",
    "precision": "ova: clipped",
    "losses": "decoupled-softmax, float32",
    "dexml": "DEXML, bf16",
    "ngame": "NGAME, bf16",
    "elias": "ELIAS-2, bf16",
}
SMALL = ("--method.gc_batch_size", "5")
COMPUTED = ("dexml, transformer", "xr-linear")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder of tiny sizes, with the results of two cases."""
    folder = tmp_path_factory.mktemp("gpu") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "CASES", {name: CASES[name] for name in COMPUTED})
        prepare.prepare(folder, tiny=True)
    return folder


@pytest.fixture
def short(monkeypatch):
    """One case a section."""
    for name, case in ONE.items():
        section = sections.SECTIONS[name]
        assert case in section.cases
        monkeypatch.setitem(sections.SECTIONS, name, replace(section, cases=(case,)))


def exit_of(capsys, *words):
    """Run the command: its exit code or message, and what it printed."""
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code, capsys.readouterr().out
    return 0, capsys.readouterr().out


# -------------------------------- the command


def test_a_dry_run_measures_every_section(prepared, short, capsys):
    code, printed = exit_of(capsys, "run", prepared, "--device", "cpu")
    assert code == 0
    told = json.loads((prepared / "gpu.json").read_text())
    assert told["machine"]["card"] == "none: a dry run on the CPU"
    assert told["machine"]["torch"] == torch.__version__
    rows = {name: own[0] for name, own in told["sections"].items()}
    assert {name: row["case"] for name, row in rows.items()} == ONE
    assert rows["equality"]["worst difference of a loss"] == 0 and rows["equality"]["steps"] == 6
    assert rows["resume"]["other tensors"] == 0 and rows["resume"]["steps"] == 3
    assert 0 < rows["losses"]["gradient error"] < 1e-5
    assert all(rows[name]["s/step"] > 0 for name in ("dexml", "ngame", "elias"))
    assert (prepared / "gpu.md").read_text() in printed
    assert "| DEXML, bf16 |" in printed and "target met (250 TFLOP/s, H100)" in printed


def test_a_key_of_the_command_line_reaches_the_steps_that_are_timed(prepared, short, capsys):
    words = ("run", prepared, "--device", "cpu", "--only", "dexml")
    code, printed = exit_of(capsys, *words, "--method.tau", "-1")
    assert code == "1 case is wrong or failed"
    assert "| DEXML, bf16 | failed: ConfigError: command line: method.tau" in printed
    code, printed = exit_of(capsys, *words, "--metod.tau", "1")
    assert "failed: ConfigError: command line: unknown section 'metod'" in printed


def test_cases_are_chosen_by_their_names(prepared, capsys):
    words = ("run", prepared, "--device", "cpu", "--only", "equality", "--case", "xr-lin")
    code, printed = exit_of(capsys, *words)
    assert code == 0 and "| xr-linear | 0 | 0 |" in printed


def test_without_a_card_one_sentence_says_so(prepared, capsys):
    code, _ = exit_of(capsys, "run", prepared)
    assert code == "error: no CUDA card computes here; --device cpu is a dry run, at tiny sizes"


def test_folders_that_do_not_serve(prepared, tmp_path, capsys):
    code, _ = exit_of(capsys, "run", tmp_path, "--device", "cpu")
    assert code.startswith(f"error: {tmp_path}: no made.json, which `python -m benchmarks.gpu prep")
    Place(tmp_path, tiny=False).close()
    code, _ = exit_of(capsys, "run", tmp_path, "--device", "cpu")
    assert "has the sizes of a card; `prepare OTHER --tiny` makes those of a dry run" in code
    code, _ = exit_of(capsys, "prepare", prepared)
    assert code == f"error: {prepared}: expected a new or an empty folder"


def test_sections_are_those_of_the_command():
    assert tuple(sections.SECTIONS) == NAMES
    assert sum(section.seconds for section in sections.SECTIONS.values()) <= 360


# -------------------------------- cases


def test_every_method_has_a_case(prepared):
    assert set().union(*(case.methods for case in CASES.values())) == METHODS.keys()
    place = Place.open(prepared)
    for name, case in CASES.items():
        stages = plan_recipe(case_config(place, name, "planned"))
        assert {stage.method.name for stage in stages.values()} <= case.methods


def test_other_losses_than_a_cpus_are_wrong(prepared, tmp_path, monkeypatch):
    place = Place.open(prepared)
    expected = json.loads(place.expected_file.read_text())
    found = dict(expected["dexml, transformer"])
    monkeypatch.setattr(correctness, "computed", lambda *_: found)
    assert correctness.equality(place, "dexml, transformer")["ok"]
    found["losses"] = [loss * 1.002 for loss in found["losses"]]
    row = correctness.equality(place, "dexml, transformer")
    assert row["worst difference of a loss"] == pytest.approx(0.002) and not row["ok"]
    found["losses"] = expected["dexml, transformer"]["losses"][:-1]
    assert not correctness.equality(place, "dexml, transformer")["ok"]
    found.update(expected["dexml, transformer"])
    assert correctness.equality(place, "dexml, transformer")["ok"]
    found["P@5"] += 4
    assert not correctness.equality(place, "dexml, transformer")["ok"]


def test_a_compiled_case_is_compiled_where_it_is_run_alone(prepared, monkeypatch):
    place = Place.open(prepared)
    told = json.dumps({"dexml, compiled": {"losses": [1.0], "P@5": 50.0}})
    monkeypatch.setattr(Place, "expected_file", SimpleNamespace(read_text=lambda: told))
    asked = []

    def trained(config):
        asked.append(config.train.compile)
        return config.run_folder, [1.0]

    monkeypatch.setattr(correctness, "trained", trained)
    monkeypatch.setattr(correctness, "evaluate_run", lambda _: {"P@5": 50.0})
    assert correctness.equality(place, "dexml, compiled")["ok"]
    correctness.computed(place, "dexml, compiled", "expected")
    assert asked == [True, False]


@pytest.mark.parametrize("size", [FULL.exact, TINY.exact])
def test_gradients_are_checked_over_several_chunks(size, monkeypatch):
    real = stream.cut
    cut = []
    monkeypatch.setattr(stream, "cut", lambda *given: cut.append(real(*given)) or cut[-1])
    loss_speed.gradient_error("softmax", replace(size, dim=2))
    assert len(cut) == 2 and all(len(chunks) >= 3 for chunks in cut)


# -------------------------------- cases that fail


def test_a_case_that_fails_is_reported_and_the_others_go_on(prepared, monkeypatch, capsys):
    def measure(place, case):
        if case == "bad":
            raise InputError("too | large")
        return {"s/step": 1.5, "ok": True}

    section = sections.Section(60, ("one", "bad", "two"), measure)
    monkeypatch.setitem(sections.SECTIONS, "dexml", section)
    (prepared / "gpu.json").unlink(missing_ok=True)
    code, printed = exit_of(capsys, "run", prepared, "--device", "cpu", "--only", "dexml")
    assert code == "1 case is wrong or failed"
    assert "| one | 1.5 | yes |\n| bad | failed: InputError: too / large (" in printed
    assert "| two | 1.5 | yes |" in printed


def test_the_next_process_goes_on_behind_a_case_that_killed_one(prepared):
    asked = []

    def worker(place, name, cases, seconds):
        asked.append(list(cases))
        return [] if cases[0] == "b" else [{"case": cases[0]}], "exit code -11"

    rows = working.computed(Place.open(prepared), "dexml", ("a", "b", "c"), worker)
    assert asked == [["a", "b", "c"], ["b", "c"], ["c"]]
    assert rows == [{"case": "a"}, {"case": "b", "failed": "exit code -11"}, {"case": "c"}]


def test_another_process_does_what_it_is_told(prepared, monkeypatch, capsys):
    commands = []

    def asked(command, log, seconds):
        commands.append(command)
        return [], ""

    def measure(place, case):
        parts = {"data": {"name": "check"}, "method": {"name": "dexml"}}
        return {"tau": place.config(case, parts, words=place.words).method.tau}

    section = sections.Section(60, ("a", "b", "c"), measure)
    monkeypatch.setitem(sections.SECTIONS, "dexml", section)
    monkeypatch.setattr(working, "asked", asked)
    place = Place.open(prepared, ["--method.tau", "0.25"])
    working.elsewhere(place, "dexml", ["b", "c"], 60)
    ((python, *words),) = commands
    assert python == sys.executable and words[:2] == ["-m", "benchmarks.gpu"]
    code, printed = exit_of(capsys, *words[2:])
    rows = [json.loads(line) for line in printed.splitlines()]
    assert code == 0 and rows == [{"case": "b", "tau": 0.25}, {"case": "c", "tau": 0.25}]


def test_a_section_ends_in_time(prepared, monkeypatch):
    section = sections.Section(0.0, ("a", "b"), lambda *_: {})
    monkeypatch.setitem(sections.SECTIONS, "dexml", section)
    rows = working.computed(Place.open(prepared), "dexml", section.cases, working.here)
    assert [row["failed"] for row in rows] == ["not reached within the 0 s of the section"] * 2


def test_a_process_that_hangs_is_ended_and_its_rows_are_kept(tmp_path):
    program = 'import time; print(\'{"case": "a"}\', flush=True); time.sleep(60)'
    rows, ended = working.asked([sys.executable, "-c", program], tmp_path / "log", 2)
    assert rows == [{"case": "a"}]
    assert ended == "did not end within the 2 s that were left of the section"
    rows, ended = working.asked([sys.executable, "-c", "exit(7)"], tmp_path / "log", 60)
    assert rows == [] and ended.startswith("the process ended with exit code 7; ")


def test_a_fault_of_a_kernel_ends_the_process(prepared, monkeypatch, capsys):
    def measure(place, case):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setitem(sections.SECTIONS, "dexml", sections.Section(60, ("a", "b"), measure))
    assert working.work(Place.open(prepared), "dexml", ["a", "b"]) == working.BROKEN
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["failed"].startswith("RuntimeError: CUDA error: an illegal")


# -------------------------------- what is measured


def test_waits_of_the_host_are_counted(monkeypatch):
    modes = []
    monkeypatch.setattr(card, "gpu_computes", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    waits = card.Waits()
    waits.start()
    for _ in range(3):
        warnings.warn("called a synchronizing CUDA operation (Triggered internally)", stacklevel=1)
    warnings.warn("something else", stacklevel=1)
    assert waits.stop() == 3
    assert modes == ["warn", "default"]


def test_steps_are_warmed_up_counted_and_timed(monkeypatch):
    clock = iter([10.0, 10.5, 11.5, 12.0])
    monkeypatch.setattr(step_speed.time, "perf_counter", lambda: next(clock))
    watch = step_speed.Stopwatch(StepSize(8, warm=2, timed=2))
    for steps in (1, 2, 3, 4):
        watch(steps)
    with pytest.raises(Enough):
        watch(5)
    assert watch.seconds == 1.0  # from 10.0 on, two steps


def test_flops_of_an_encoder_are_those_that_torch_counts():
    size = EncoderSize(16, 2, 2, 24, words=50)
    model = BertModel(
        BertConfig(
            vocab_size=size.words,
            hidden_size=size.width,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=size.inner,
            attn_implementation="eager",
        ),
        add_pooling_layer=False,
    )
    ids = torch.randint(size.words, (3, 7))
    with FlopCounterMode(display=False) as counter:
        states = model(input_ids=ids).last_hidden_state
    assert counter.get_total_flops() == 3 * encoder_forward(size, 7)
    with FlopCounterMode(display=False) as counter:
        states.sum().backward()
    once = Texts(3, 7, cached=False).flops(size)
    assert counter.get_total_flops() == once - 3 * encoder_forward(size, 7)
    assert Texts(3, 7, cached=True).flops(size) == once + 3 * encoder_forward(size, 7)


def test_flops_of_a_streamed_loss_are_those_that_torch_counts():
    queries = torch.randn(4, 8, requires_grad=True)
    labels = torch.randn(30, 8, requires_grad=True)
    rows = torch.arange(4)
    positives = Positives.build(rows, rows * 3, 4)

    def product(into, left, right, **_):
        return 2 * left[0] * left[1] * right[1]

    in_place = {torch.ops.aten.addmm_: product}  # torch leaves it out
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        LOSSES["decoupled-softmax"](
            queries=queries, labels=labels, positives=positives, tau=0.05, chunk=10
        ).backward()
    assert counter.get_total_flops() == streamed_loss(4, 30, 8)


def test_flops_of_a_step_follow_its_config(prepared):
    place = Place.open(prepared)
    parts = {"data": {"name": "titles"}, "method": {"name": "dexml", "gc_batch_size": 12}}
    whole = place.config("flops", parts, {"train": {"batch_size": 6}})
    size = TINY.distil
    loss = streamed_loss(6, TINY.titles.labels, size.width)
    # labels in two micro-batches, queries in one
    texts = 3 * 6 + 4 * TINY.titles.labels
    expected = loss + texts * encoder_forward(size, 32)
    assert step_speed.dexml_flops(whole, TINY) == pytest.approx(expected)
    smaller = place.config("flops", parts, {"train": {"batch_size": 6}}, words=SMALL)
    expected += 6 * encoder_forward(size, 32)
    assert step_speed.dexml_flops(smaller, TINY) == pytest.approx(expected)


def test_a_batch_that_leaves_no_step_to_time_is_refused(prepared, capsys):
    words = ("run", prepared, "--device", "cpu", "--only", "dexml", "--case", "tf32")
    code, printed = exit_of(capsys, *words, "--train.batch_size", "30")
    assert code == "1 case is wrong or failed"
    assert "train.batch_size 30, expected at most 8" in printed


def test_a_text_has_as_many_tokens_as_its_step_says(tmp_path):
    from transformers import AutoTokenizer

    from benchmarks.gpu.made import vocabulary

    write_set(tmp_path / "titles", TINY.titles, TINY.distil.words)
    (tmp_path / "tokenizer").mkdir()
    write_tokenizer(tmp_path / "tokenizer", vocabulary(TINY.distil.words))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    for name in ("trn_X", "Y"):
        texts = (tmp_path / "titles" / "raw" / f"{name}.txt").read_text().splitlines()
        ids = tokenizer(texts)["input_ids"]
        assert {len(row) for row in ids} == {32}
        assert tokenizer.unk_token_id not in {token for row in ids for token in row}
    assert FULL.titles.words == FULL.titles.label_words == 30
    assert len(set(vocabulary(FULL.distil.words))) == FULL.distil.words


# -------------------------------- the report


def test_rows_of_the_same_machine_stay_until_they_are_measured_again(tmp_path):
    report.write(tmp_path, {"card": "a"}, {"dexml": [{"case": "x", "ms": 1.0}]})
    report.write(
        tmp_path, {"card": "a"}, {"dexml": [{"case": "y", "ms": 2.0}], "elias": [{"case": "z"}]}
    )
    report.write(tmp_path, {"card": "a"}, {"dexml": [{"case": "x", "ms": 3.0}]})
    told = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert told["dexml"] == [{"case": "x", "ms": 3.0}, {"case": "y", "ms": 2.0}]
    assert told["elias"] == [{"case": "z"}]
    report.write(tmp_path, {"card": "b"}, {"dexml": [{"case": "y", "ms": 4.0}]})
    told = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert told == {"dexml": [{"case": "y", "ms": 4.0}]}


def test_cells():
    shown = [report.text_of(value) for value in (None, True, 12345.6, 0.00012345, 3, "a")]
    assert shown == ["-", "yes", "12,346", "0.0001234", "3", "a"]
