"""engine/memory_plan.py and utils/plan/: sizes from headers, what each method says of its memory,
what is said where a run cannot fit, and measured runs."""

import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from accelerate import Accelerator
from transformers import BertConfig, BertModel

from benchmarks.plan import CONFIGS, REPOSITORY, measure
from engine import memory_plan
from engine.conformance.made import write_dataset
from engine.memory_plan import check_it_fits, plan, report
from engine.planning import with_resolved_encoder
from models.contract import Learner
from models.encoders.packing import Packing, learn_to_pack, packed_states
from tests.commands import run
from tests.conftest import with_values
from utils.config.config import Config, load_config, to_yaml
from utils.config.methods import method_class
from utils.data.batches import TextBatch
from utils.data.dataset import load_dataset
from utils.parameters import kind_of
from utils.plan import run_sizes, step
from utils.plan.parts import Part, peak
from utils.plan.run_sizes import RunSizes
from utils.plan.sizes import Assumed, data_shape, text_sizes
from utils.plan.verdict import advice, describe, impossible, least, machine
from utils.reading.matrices import matrix_header
from utils.runtime import Runtime

CPU = Runtime(Accelerator(cpu=True))
HAS = {"memory": 10 << 30, "swap": 0, "available": 8 << 30}


def debian(name="dexml.yaml", **sections) -> Config:
    sections.setdefault("data", {})["root"] = str(REPOSITORY / "Datasets")
    return load_config(CONFIGS / name, sections)


def files_below(folder):
    return sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*"))


# -------------------------------- sizes


@pytest.mark.parametrize("compressed", [True, False])
def test_matrix_header_equals_the_matrix(tmp_path, compressed):
    matrix = sp.random(7, 11, 0.3, "csr", np.float32, random_state=0)
    sp.save_npz(tmp_path / "Y.npz", matrix, compressed=compressed)
    assert matrix_header(tmp_path / "Y.npz") == (7, 11, matrix.nnz)


def test_a_damaged_or_missing_matrix_is_named(tmp_path):
    (tmp_path / "Y.npz").write_bytes(b"PK, but no archive")
    with pytest.raises(ValueError, match=r"Y\.npz: not a scipy sparse matrix"):
        matrix_header(tmp_path / "Y.npz")
    with pytest.raises(ValueError, match=r"Z\.npz: no such file"):
        matrix_header(tmp_path / "Z.npz")


@pytest.mark.parametrize(
    "encoder",
    [
        {},
        {"residual": False, "projection": 8},
        {"name": "tiny"},
        {"name": "tiny", "projection": 8, "layers": 1},
    ],
)
@pytest.mark.parametrize("method", ["dexml", "ova"])
def test_parameters_are_those_of_the_built_model(make_config, tiny_encoder, encoder, method):
    encoder = {**encoder, "name": tiny_encoder} if "name" in encoder else encoder
    config = make_config(encoder=encoder, method={"name": method})
    data = load_dataset(config, tiny_encoder)
    built = method_class(method)(config, data, None, CPU).module
    counted = plan(config).parameters
    assert sum(counted.values()) == sum(p.numel() for p in built.parameters())
    rows = sum(p.numel() for p in built.parameters() if kind_of(p).is_table)
    assert counted.get("row-sparse table", 0) == rows


def test_text_sizes_come_from_the_token_file_or_are_estimated(make_config, tiny_encoder, tmp_path):
    config = make_config(data={"token_cache": str(tmp_path / "tokens")})
    raw = config.dataset_folder / "raw" / "trn_X.txt"
    estimated = text_sizes(raw, 60, 16, tmp_path / "tokens")
    tokens = load_dataset(config, tiny_encoder).splits["trn"].tokens
    exact = text_sizes(raw, 60, 16, tmp_path / "tokens")
    assert (exact.tokens, exact.longest) == (len(tokens.ids), tokens.lengths.max())
    assert estimated.tokens == pytest.approx(exact.tokens, rel=0.4)
    assert estimated.longest == pytest.approx(exact.longest, abs=3)
    for info in (tmp_path / "tokens").glob("*.json"):
        info.write_text("{")  # half written
    assert text_sizes(raw, 60, 16, tmp_path / "tokens") == estimated


# -------------------------------- formulas


def test_more_processes_share_labels_and_batch():
    for name, shared in (("dexml.yaml", "embeddings: labels"), ("ova.yaml", "weights: classifier")):
        one, four = plan(debian(name)), plan(debian(name), processes=4)
        assert four.parts[shared] == pytest.approx(one.parts[shared] / 4, rel=0.01)
        assert four.parts["scores"] == pytest.approx(one.parts["scores"] / 4, rel=0.01)
        assert four.parts["activations: queries"] == pytest.approx(
            one.parts["activations: queries"] / 4, rel=0.01
        )
        assert four.parts["weights: row-sparse table"] == one.parts["weights: row-sparse table"]
        assert four.parameters == one.parameters
        assert not one.exchanged
        # ring: a gather of n bytes sends 3/4 n, its backward's all-reduce twice that
        assert four.exchanged["queries gathered"] == 0.75 * 4 * 512 * 384
        assert four.exchanged["queries' gradient, all-reduce"] == 1.5 * 4 * 512 * 384


def test_soft_topk_alone_holds_the_score_matrix():
    whole = 4 * 8192 * 6491
    big = {"train": {"batch_size": 8192}}
    assert plan(debian("dexml-topk.yaml", **big)).parts["scores"] >= whole
    assert plan(debian("dexml-softmax.yaml", **big)).parts["scores"] <= 32 << 20


def test_micro_batches_bound_the_activations():
    def activations(size):
        config = debian("dexml-minilm.yaml", method={"pool": "all", "gc_batch_size": size})
        return sum(
            v for name, v in plan(config).parts.items() if name.startswith("activations: labels")
        )

    assert activations(256) == pytest.approx(activations(1024) / 4, rel=0.01)


def test_a_budget_of_tokens_bounds_the_activations():
    """As many as texts of the longest length, padded or not; a step of fewer tokens is whole."""

    def activations(packing=False, **method):
        config = debian(
            "dexml-minilm.yaml",
            method={"pool": "all", **method},
            encoder={"packing": packing},
        )
        parts = plan(config).parts
        return sum(v for name, v in parts.items() if name.startswith("activations: labels, hidden"))

    longest = plan_sizes().label_texts.longest
    texts = activations(gc_batch_size=256)
    for packing in (False, True):
        by_tokens = activations(packing, micro_batch_tokens=256 * longest)
        assert by_tokens == pytest.approx(texts, rel=0.01)
    # all labels at once, whose texts have so many tokens on average
    padded = activations(gc_batch_size=10**6)
    packed = activations(packing=True, gc_batch_size=10**6)
    labels = plan_sizes().label_texts
    assert packed / padded == pytest.approx(labels.tokens / labels.count / longest, rel=0.01)
    assert activations(packing=True, micro_batch_tokens=10**8) == pytest.approx(packed, rel=0.01)


@pytest.mark.parametrize("layers", [1, 2])
def test_packed_texts_are_padded_where_attention_keeps_them(layers):
    """Of texts of mixed length, as many bytes as autograd keeps for backward."""
    settings = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=96,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(settings, add_pooling_layer=False).train()
    assert not learn_to_pack(model, 0)
    texts = TextBatch(torch.ones(67, dtype=torch.int32), np.array([3] * 9 + [40]))
    padded = []

    def keep(tensor):
        if tensor.untyped_storage().nbytes() == 4 * 10 * 40 * 32:
            padded.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        packed_states(model, texts, Packing.of(texts))
    sizes = SimpleNamespace(
        config=debian("dexml-minilm.yaml"),
        encoder=SimpleNamespace(width=32, layers=layers, heads=2, ffn=96, dropout=0.0),
        unpadded=True,
        cuda=False,
    )
    (part,) = [
        part
        for part in step.activations(sizes, [step.Graph("texts", 10, 40, 67)], 10)
        if part.name.endswith("padded for attention")
    ]
    assert part.bytes == 4 * 10 * 40 * 32 * (len(set(padded)) + 4)  # 4 of backward itself
    assert len(set(padded)) == 4 * layers


def plan_sizes() -> RunSizes:
    return RunSizes(debian("dexml-minilm.yaml"), 1)


def test_settings_that_save_memory_do():
    base = debian("dexml-minilm.yaml")
    section = "encoder"
    for change in (
        {section: {"gradient_checkpointing": True}},
        {section: {"layers": 1}},
        {section: {"dropout": 0.0}},
        {"train": {"mixed_precision": "bf16"}},
        {"train": {"batch_size": 32}},
        {"data": {"max_len": 16}},
    ):
        assert plan(with_values(base, **change)).total < plan(base).total, change


def test_the_peak_is_the_largest_phase_and_small_blocks_stay():
    small, large = 1 << 20, 64 << 20
    parts = [
        Part("always", 5),
        Part("a", 10, ("step",), large),
        Part("b", 7, ("evaluation",), large),
        Part("c", 3, ("evaluation",), small),
        Part("d", 1, ("step",), small),
    ]
    assert peak(parts) == 5 + 10 + 3


def test_only_the_host_of_the_main_process_ever_has_all_label_vectors():
    """To save them: an evaluation ranks by the rows that each process has."""
    whole = 4 * 6491 * 384
    for name in ("ova.yaml", "dexml.yaml"):
        assert "saving: label vectors of all" not in plan(debian(name)).parts
        assert plan(debian(name), processes=2).parts["saving: label vectors of all"] == whole
    one, two = (plan(debian("dexml.yaml"), processes=count).parts for count in (1, 2))
    for part in ("evaluation: label embeddings", "evaluation: label embeddings, new"):
        assert two[part] == pytest.approx(one[part] / 2, rel=1e-3)


# -------------------------------- what is said


def test_description_has_every_part_and_a_verdict():
    found = plan(debian(), processes=2)
    text = describe(found, HAS)
    for name in (*found.parts, *found.parameters, *found.exchanged):
        assert name in text
    assert text.endswith("It fits.")
    assert "It does not fit now: the largest part is" in describe(
        found, {**HAS, "available": 1 << 20}
    )


def test_a_run_that_cannot_fit_is_refused_with_the_key_to_change(monkeypatch):
    monkeypatch.setattr(
        memory_plan, "machine", lambda: {"memory": 1 << 30, "swap": 0, "available": 1 << 30}
    )
    # not what the tests before it left in memory
    monkeypatch.setattr(run_sizes, "resident", lambda: 300 << 20)
    check_it_fits(debian())
    config = debian("ova.yaml", encoder={"projection": 100_000})
    with pytest.raises(
        ValueError,
        match=r"cannot fit: at least .* GB are needed and this machine has 1\.00 GB; "
        r"the largest part is '.*', .*(encoder\.projection|train\.batch_size)",
    ):
        check_it_fits(config)
    check_it_fits(with_values(debian("ova.yaml"), train={"batch_size": 10}), processes=1)


def test_swap_counts_before_a_run_is_refused():
    found = plan(debian())
    need = least(found.on_host)
    assert impossible(found, {"memory": need, "swap": 0}) is None
    assert impossible(found, {"memory": need - 2, "swap": 0})
    assert impossible(found, {"memory": need - 2, "swap": 2}) is None
    assert need < found.total


def test_a_card_is_refused_by_what_lies_on_it_alone():
    found = plan(debian(), assumed=Assumed(gpu=80))
    need = least(found.on_device)
    assert 0 < need < found.device
    assert impossible(found, {"memory": 1, "swap": 0, "gpu": need}) is None
    problem = impossible(found, {"memory": 1 << 60, "swap": 0, "gpu": need - 1})
    assert "are needed and a GPU has" in problem
    assert "program" not in problem


def test_advice_names_a_key_for_every_part():
    cases = [debian("dexml-minilm.yaml"), debian("ova.yaml"), debian("dexml-topk.yaml")]
    parts = {part.name: part for config in cases for part in plan(config, 2).memory}
    program = parts.pop("program and libraries")
    for name, part in parts.items():
        assert advice([program, part]).startswith(f"the largest part is '{name}'")
    assert "eval.label_block" in advice([parts["evaluation: score block"]])
    assert "method.gc_batch_size" in advice([parts["activations: labels, hidden"]])


def test_processes_are_one_at_least(make_config):
    with pytest.raises(ValueError, match="at least one process"):
        plan(make_config(), processes=0)


def test_every_stage_is_planned(make_config):
    config = make_config(stages=({"name": "warm"}, {"name": "main", "method": {"name": "ova"}}))
    text = report(config, 1)
    assert "dexml on tiny, stage warm" in text and "ova on tiny, stage main" in text


def test_this_machine_has_memory():
    has = machine()
    assert 0 < has["available"] <= has["memory"]


# -------------------------------- a data set and a card that are not here


def test_a_plan_needs_no_data(make_config):
    config = make_config()
    shape = data_shape(config)
    tokens = shape.texts["trn_X"].tokens / shape.points
    here = plan(config)
    elsewhere = with_values(config, data={"root": "/nowhere"})
    there = plan(elsewhere, assumed=Assumed(shape.points, shape.labels, tokens))
    assert there.parameters == here.parameters
    assert there.parts["optimizer state: encoder, dense"] > 0
    more = plan(elsewhere, assumed=Assumed(shape.points, 3 * shape.labels, tokens))
    assert more.parts["embeddings: labels"] == 3 * there.parts["embeddings: labels"]
    longer = plan(elsewhere, assumed=Assumed(shape.points, shape.labels, 2 * tokens))
    assert longer.parts["token files"] > there.parts["token files"]


def test_a_card_that_is_not_here():
    found = plan(debian(), assumed=Assumed(gpu=80))
    assert 0 < found.device < found.total
    assert machine(Assumed(gpu=80))["gpu"] == 80 << 30
    assert "of 80.00 GB" in report(debian(), 1, Assumed(gpu=80))
    with pytest.raises(ValueError, match=r"cannot fit: .* and a GPU has 51\.2 MB"):
        report(debian(), 1, Assumed(gpu=0.05))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"points": 3}, "go together; missing: --labels, --tokens"),
        ({"points": 0, "labels": 3, "tokens": 4}, "--points: expected a number above 0, got 0"),
        ({"gpu": -1}, "--gpu: expected a number above 0, got -1"),
        ({"gpu": float("nan")}, "--gpu: expected a number above 0, got nan"),
    ],
)
def test_what_is_said_of_elsewhere_is_checked(words, message):
    with pytest.raises(ValueError, match=message):
        Assumed(**words)


def test_methods_without_gradients_say_that_they_have_no_plan(make_config):
    stages = [{"name": "one"}, {"name": "two", "method": {"name": "xr-linear"}}]
    text = report(make_config(stages=stages), 1)
    assert "dexml on tiny, stage one" in text
    assert "\nxr-linear on tiny, stage two: fitted without gradients: it has no plan" in text
    solved = make_config(method={"name": "overlap"}, data={"root": "/nowhere"})
    assert not plan(solved).memory  # and no file is read
    check_it_fits(solved)


# -------------------------------- what each method says


def planned(make_config, processes=1, **sections):
    """Plan of a method on 1,000 points, 3,000 labels, 10 tokens a text."""
    config = make_config(**sections)
    return plan(config, processes, Assumed(1000, 3000, 10))


def trained_bytes(found, name):
    return [found.parts.get(f"{kind}: {name}", 0) for kind in ("weights", "optimizer state")]


def test_auxiliary_vectors_are_planned(make_config):
    ngame = planned(make_config, method={"name": "ngame"})
    dexa = planned(make_config, method={"name": "dexa", "num_vectors": 64})
    dim = ngame.parts["evaluation: label embeddings"] // (4 * 3000)
    assert dexa.parameters == {**ngame.parameters, "auxiliary vectors": 64 * dim}
    assert dexa.parts["weights: auxiliary vectors"] == 4 * 64 * dim
    each = planned(make_config, method={"name": "dexa", "num_vectors": "labels"})
    assert each.parameters["auxiliary vectors"] == 3000 * dim
    many = planned(make_config, 2, method={"name": "dexa", "num_vectors": 64})
    assert "gradients, auxiliary vectors, at most" in many.exchanged


def test_clustered_batches_keep_embeddings_of_queries(make_config):
    method = {"name": "ngame", "curr_epochs": [0]}
    name = "query embeddings"
    found = planned(make_config, method=method)
    assert found.parts[name] > 0
    assert name not in planned(make_config, method={**method, "batches": "random"}).parts


def test_a_surrogate_trains_rows_of_clusters(make_config):
    ova = planned(make_config, method={"name": "ova"})
    surrogate = planned(make_config, method={"name": "surrogate", "num_clusters": 30})
    assert ova.parameters["classifier"] == 100 * surrogate.parameters["classifier"]
    assert trained_bytes(ova, "classifier")[1] == 100 * trained_bytes(surrogate, "classifier")[1]
    assert ova.parts["scores"] == 100 * surrogate.parts["scores"]


def test_a_frozen_encoder_has_no_optimizer_state_and_no_activations(make_config):
    frozen = planned(make_config, 2, method={"name": "xc"})
    free = planned(make_config, 2, method={"name": "xc", "freeze": False})
    assert frozen.parameters == free.parameters
    encoder = "row-sparse table"
    assert trained_bytes(frozen, encoder)[0] == trained_bytes(free, encoder)[0] > 0
    assert trained_bytes(frozen, encoder)[1] == 0 < trained_bytes(free, encoder)[1]
    assert "activations: queries" in free.parts and "activations: queries" not in frozen.parts
    assert "embeddings: all queries" in frozen.parts
    assert "queries' gradient, all-reduce" not in frozen.exchanged


def test_gradients_of_micro_batches_are_added_up_in_a_buffer_of_all_rows(make_config):
    found = planned(make_config, encoder={"name": "bag"})
    buffer = found.parts["sums of gradients: row-sparse table"]
    assert buffer == found.parts["weights: row-sparse table"] > 0
    elias = planned(make_config, method={"name": "elias-1"})
    assert "sums of gradients: classifier" not in elias.parts


def test_in_batch_a_step_holds_gradients_of_the_pool_alone(make_config):
    pool = {"name": "xc", "pool": "in-batch"}
    small, all_labels = (
        planned(make_config, method=method, train={"batch_size": 8})
        for method in (pool, {**pool, "pool": "all"})
    )
    assert small.parameters == all_labels.parameters
    name = "gradients: classifier"
    assert 5 * small.parts[name] < all_labels.parts[name]
    assert small.parts["scores"] < all_labels.parts["scores"]


def test_losses_of_whole_rows_gather_labels(make_config):
    method = {"name": "ngame"}
    found = planned(make_config, 2, method=method, loss={"name": "triplet"})
    assert "embeddings: labels, gathered" in found.parts
    assert "labels gathered" in found.exchanged and "queries gathered" not in found.exchanged


def test_elias_plans_its_parameters_and_says_what_is_left_out(make_config):
    found = planned(make_config, method={"name": "elias-1"})
    more = planned(make_config, method={"name": "elias-1", "swa": True})
    assert more.parts["average of the weights"] == 4 * sum(found.parameters.values())
    assert "left out: the graph" in describe(found, HAS)
    assert "What was planned fits" in describe(found, HAS)


class Rows(Learner):
    """A method that says nothing of its memory, and trains more than its encoder."""

    @classmethod
    def group_names(cls, config):
        return super().group_names(config) | {"rows"}


def test_other_learners_have_the_three_largest_terms(make_config):
    config = with_resolved_encoder(make_config())
    sizes = RunSizes(config, 1, Assumed(1000, 3000, 10))
    needs = Rows.needs(config, sizes)
    names = {part.name for part in needs.parts if part.bytes}
    dim = sizes.encoder.dim
    assert needs.parameters["classifier"] == 3000 * (dim + 1)
    assert {"optimizer state: row-sparse table", "optimizer state: classifier"} <= names
    assert "evaluation: score block" in names and "evaluation: label embeddings" not in names
    assert not any(part.sure for part in needs.parts if "classifier" in part.name)
    vectors = Learner.needs(config, sizes)
    assert "evaluation: label embeddings" in {part.name for part in vectors.parts}
    assert needs.left_out and needs.messages == {}


# -------------------------------- files, speed, measured runs


def test_planning_is_quick_and_leaves_no_file_and_no_random_number(make_config, tmp_path):
    config = make_config(data={"token_cache": str(tmp_path / "none")}, encoder={"name": "minilm"})
    before = files_below(config.dataset_folder)
    state = torch.get_rng_state()
    begin = time.perf_counter()
    plan(config, processes=3)
    assert time.perf_counter() - begin < 10  # a second; the imports are slow on a busy machine
    assert torch.equal(torch.get_rng_state(), state)
    assert files_below(config.dataset_folder) == before
    assert not config.run_folder.exists() and not (tmp_path / "none").exists()


def run_train(*words):
    return run("train.py", *words, check=False)


def test_command_prints_the_plan_and_makes_no_run(tmp_path):
    folder = tmp_path / "run"
    done = run_train(
        str(CONFIGS / "ova.yaml"), "--plan", "--processes", "2", "--run.dir", str(folder)
    )
    assert done.returncode == 0, done.stderr
    assert (
        "ova on LF-DebianTitles-small, 2 processes" in done.stdout
        and done.stdout.rstrip().endswith("It fits.")
    )
    assert not folder.exists()


def test_command_plans_for_elsewhere(tmp_path):
    words = ["--points", "3000000", "--labels", "1300000", "--tokens", "20", "--gpu", "80"]
    config = str(CONFIGS / "ova.yaml")
    done = run_train(config, "--plan", *words, "--data.root", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "classifier" in done.stdout and "of 80.00 GB" in done.stdout
    said = (
        "(as if of 3,000,000 points, 1,300,000 labels, 20 tokens a text, GPUs of 80 GiB), 1 process"
    )
    assert said in done.stdout.splitlines()[0]
    done = run_train(config, *words)
    assert done.returncode == 2 and "--points goes with --plan" in done.stderr


def test_command_refuses_what_training_would_refuse(make_config, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(make_config(eval={"ks": [1, 21]})))
    done = run_train(path, "--plan")
    assert done.returncode == 1 and done.stdout.startswith("dexml on tiny")
    problem = "error: eval.ks is 21, larger than the number of labels of tiny"
    assert done.stderr.splitlines()[-1].startswith(problem)
    elsewhere = ["--points", "99", "--labels", "30", "--tokens", "5"]
    assert run_train(path, "--plan", *elsewhere).returncode == 0


def test_command_refuses_a_card_that_is_too_small():
    done = run_train(str(CONFIGS / "dexml.yaml"), "--plan", "--gpu", "0.05")
    assert done.returncode == 1
    assert "cannot fit" in done.stderr and "a GPU has 51.2 MB" in done.stderr


def test_command_refuses_what_cannot_fit(tmp_path):
    folder = tmp_path / "run"
    done = run_train(
        str(CONFIGS / "ova.yaml"),
        "--plan",
        "--processes",
        "1000",
        "--encoder.projection",
        "100000",
        # terabytes: each process has an encoder of its own
        "--run.dir",
        str(folder),
    )
    assert done.returncode == 1
    assert "error: " in done.stderr and "cannot fit" in done.stderr
    assert "Traceback" not in done.stderr and not folder.exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident sizes are Linux's")
@pytest.mark.skipif(torch.cuda.is_available(), reason="measures a CPU run")
@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("dexml.yaml", []),
        ("ova.yaml", ["--train.batch_size", "1024"]),
        (
            "dexml-minilm.yaml",
            ["--method.pool", "in-batch", "--data.name", "made", "--train.batch_size", "256"],
        ),
    ],
)
def test_planned_memory_is_within_a_fifth_of_the_measured(config, words, tmp_path):
    if "made" in words:
        write_dataset(tmp_path / "made", points=560, labels=600)
        words = ["--data.root", str(tmp_path), *words]
    planned, measured = measure(CONFIGS / config, ["--train.epochs", "1", *words], tmp_path / "run")
    assert planned == pytest.approx(measured, rel=0.2)
