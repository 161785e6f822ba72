"""Runs leave as folders that other programs read, and encoders come in from other programs'
folders."""

import json
import pickle
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

import eval as evaluation
import train
from engine import exporter as exporting
from engine.exporter import EDGE_TEXTS, export
from models.encoders.building import build_encoder
from models.encoders.portable import embed
from models.loading import load_ranker
from utils.config.config import EncoderConfig, read_yaml
from utils.data.texts import ListTexts
from utils.export.__main__ import main as export_command
from utils.export.model_card import data_licence, found_metrics
from utils.pretrained.location import load_tokenizer, resolve
from utils.pretrained.source import resolve_encoder
from utils.run.finding import find_run
from utils.runtime import Runtime

TEXTS = ["the bash and photo tool", "socket", "unknownword ünïcödé 漢字", *EDGE_TEXTS]
FIRST = {"name": "encoder", "method": {"name": "dexml"}}
SETTINGS = {
    "bag": {},
    "bag-plain": {"encoder": {"residual": False}},
    "bag-projected": {"encoder": {"projection": 8}, "method": {"name": "ova", "tau": 0.5}},
    "surrogate": {"method": {"name": "surrogate", "num_clusters": 4, "tau": 0.1}},
    "xc": {
        "method": {"name": "xc", "pool": "all", "tau": 0.05, "batches": "random"},
        "stages": [FIRST, {"name": "classifiers"}],
    },
    "transformer": {"encoder": {"name": "TINY"}},
    "transformer-cls": {
        "encoder": {"name": "TINY", "pooling": "cls", "projection": 8, "normalize": False},
        "method": {"name": "ova"},
    },
}


@pytest.fixture(scope="module")
def made():
    return {}


@pytest.fixture
def runs(make_config, tiny_encoder, tmp_path_factory, made):
    """runs(name) -> folder of a finished run of SETTINGS; trained once for all tests, so not to be
    changed."""

    def get(name):
        if name not in made:
            made[name] = train.fit(
                configured(
                    make_config,
                    tiny_encoder,
                    SETTINGS[name],
                    dir=str(tmp_path_factory.mktemp("runs") / name),
                )
            )
        return made[name]

    return get


def configured(make_config, tiny_encoder, settings, **run):
    encoder = {
        k: tiny_encoder if v == "TINY" else v for k, v in settings.get("encoder", {}).items()
    }
    return make_config(
        **{**settings, "encoder": encoder, "run": {**run, "threads": 1}, "train": {"epochs": 2}}
    )


def loaded(run):
    folder, config = find_run(run)
    return load_ranker(config, folder, Runtime.start(config)), config


@pytest.mark.parametrize("name", SETTINGS)
def test_exported_encoders_and_label_vectors_are_the_runs_own(runs, tmp_path, name):
    faiss = pytest.importorskip("faiss")
    ranker, config = loaded(runs(name))
    expected = embed(ranker.reader.encoder, TEXTS, config.data.max_len).numpy()
    found = export(runs(name), tmp_path / "out")
    assert found["sentence-transformers"] < 1e-5
    model = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    for encode in (model.encode, model.encode_query, model.encode_document):
        np.testing.assert_allclose(encode(TEXTS, show_progress_bar=False), expected, atol=1e-5)
    np.testing.assert_allclose(model.encode(TEXTS[0]), expected[0], atol=1e-5)
    assert len((tmp_path / "out" / "model" / "labels.txt").read_text().splitlines()) == 20
    scores, ids = ranker.open(ListTexts(TEXTS)).best(5)
    kind, vectors = next(iter(ranker.vectors().items()))
    tensors = load_file(tmp_path / "out" / "labels.safetensors")
    if vectors.bias is None:
        ours = expected @ tensors[kind].T
        queries = expected
    else:
        ours = expected @ tensors[f"{kind}.weight"].T + tensors[f"{kind}.bias"]
        queries = np.pad(expected, ((0, 0), (0, 1)), constant_values=1)
    np.testing.assert_allclose(np.take_along_axis(ours, ids, 1), scores, rtol=1e-4, atol=1e-4)
    index = faiss.read_index(str(tmp_path / "out" / f"{kind}.faiss"))
    values, _ = index.search(queries, 5)
    np.testing.assert_allclose(values, scores, rtol=1e-4, atol=1e-4)


def test_a_real_transformer_survives_the_trip(make_config, tiny_encoder, tmp_path):
    run = train.fit(
        make_config(
            encoder={"name": "minilm", "layers": 1}, train={"epochs": 0}, data={"max_len": 12}
        )
    )
    out = tmp_path / "out"
    assert export(run, out)["sentence-transformers"] < 1e-5
    assert SentenceTransformer(str(out), device="cpu").max_seq_length == 12
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 1


def code_of(card):
    return "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))


@pytest.mark.parametrize("name", ["bag", "transformer-cls"])
def test_the_cards_code_runs_and_its_header_is_yaml(runs, tmp_path, monkeypatch, capsys, name):
    export(runs(name), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "head.yaml").write_text(card.split("---\n")[1])
    head = read_yaml(tmp_path / "head.yaml")
    assert (
        head["library_name"] == "sentence-transformers"
        and head["pipeline_tag"] == "sentence-similarity"
    )
    assert head["license"] == "unknown" and "Data: unknown" in card
    measured = json.loads((runs(name) / "val_metrics.json").read_text())
    metrics = {m["type"]: m["value"] for m in head["model-index"][0]["results"][0]["metrics"]}
    assert metrics["P@1"] == round(measured["P@1"], 2) and "validation split" in card
    assert str(tmp_path.parent) not in card  # no path of this machine
    monkeypatch.chdir(tmp_path / "out")
    names = {}
    exec(code_of(card), names)
    assert len(capsys.readouterr().out.splitlines()) == 2
    best = (
        np.argsort(-names["scores"], axis=1)[:, :1] if "ids" not in names else names["ids"][:, :1]
    )
    ranker, _ = loaded(runs(name))
    expected = ranker.open(ListTexts(["a text", "another text"])).best(1)[1]
    assert best.tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["bag-projected", "transformer-cls"])
def test_onnx_gives_the_same_embeddings(runs, tmp_path, monkeypatch, name):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "out"
    assert export(runs(name), out, onnx=True)["onnx"] < 1e-5
    session = onnxruntime.InferenceSession(str(out / "encoder.onnx"))
    assert [(i.name, i.type) for i in session.get_inputs()] == [
        ("input_ids", "tensor(int64)"),
        ("attention_mask", "tensor(int64)"),
    ]
    monkeypatch.chdir(out)
    names = {}
    exec(code_of((out / "README.md").read_text()), names)
    np.testing.assert_allclose(names["embeddings"], names["queries"], atol=1e-5)


@pytest.mark.parametrize("name", ["bag", "bag-projected", "transformer-cls"])
def test_exports_and_models_of_runs_are_encoders_again(runs, make_config, tmp_path, name):
    # ova has no classifier before it is trained: compare as dexml
    run = runs(name)
    method = {"name": "dexml"}
    if name == "bag":
        expected = evaluation.evaluate(run)
    out = tmp_path / "out"
    export(run, out)
    results = []
    for number, source in enumerate((out, run / "model")):
        config = make_config(
            encoder={"name": str(source), "init": "minilm"},
            method=method,
            train={"epochs": 0},
            run={"dir": str(tmp_path / str(number)), "threads": 1},
        )
        again = train.fit(config)
        results.append(evaluation.evaluate(again))
        saved = read_yaml(again / "config.yaml")["encoder"]
        before = read_yaml(run / "config.yaml")["encoder"]
        assert [saved[k] for k in ("pooling", "projection", "normalize")] == [
            before[k] or {"pooling": "mean"}.get(k) for k in ("pooling", "projection")
        ] + [before["normalize"]]
        ours, theirs = (embed(loaded(r)[0].reader.encoder, TEXTS, 16) for r in (again, run))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert results[0] == pytest.approx(results[1])
    if name == "bag":
        assert results[0] == pytest.approx(expected)


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    runs, make_config, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        export(runs("bag"), out)
    with pytest.raises(ValueError, match="not a run folder"):
        export(tmp_path / "none", tmp_path / "new")
    copy = tmp_path / "unfinished"
    shutil.copytree(runs("bag"), copy)
    (copy / "finished").unlink()
    with pytest.raises(ValueError, match="not finished"):
        export(copy, tmp_path / "new")
    wrong = exporting.read_back
    monkeypatch.setattr(exporting, "read_back", lambda *a: wrong(*a) + 1e-3)
    with pytest.raises(ValueError, match="gives other embeddings: they differ by 1.0e-03"):
        export(runs("bag"), tmp_path / "new")
    assert not [p for p in tmp_path.iterdir() if "new" in p.name]
    assert [p.name for p in out.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": False}, "encoder.normalize is false"),
        ({"residual": False, "projection": 4}, "encoder.residual is false"),
    ],
)
def test_what_other_programs_cannot_read_answers_all_the_same(
    make_config, tmp_path, warned, options, message
):
    run = train.fit(make_config(encoder=options, train={"epochs": 0}))
    assert [*export(run, tmp_path / "new")] == ["XMCKit"]
    assert message in warned[0] and not (tmp_path / "new" / "modules.json").exists()
    assert "sentence" not in (tmp_path / "new" / "README.md").read_text()


@pytest.fixture
def warned(monkeypatch):
    lines = []
    monkeypatch.setattr(exporting.log, "warning", lambda text, *words: lines.append(text % words))
    return lines


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(exporting.log, "info", lambda text, *values: lines.append(text % values))
    return lines


def test_methods_without_inner_products_give_their_encoder(make_config, tmp_path, said):
    run = train.fit(
        make_config(
            method={"name": "elias-1", "max_leaf": 5}, loss={"name": "bce"}, train={"epochs": 1}
        )
    )
    export(run, tmp_path / "out")
    assert (
        "method elias-1 ranks labels by no inner product: other programs read its encoder alone"
        in said
    )
    assert (
        not list((tmp_path / "out").glob("labels*"))
        and (tmp_path / "out" / "modules.json").is_file()
    )


def test_missing_packages_are_named(runs, tmp_path, monkeypatch, said):
    monkeypatch.setitem(sys.modules, "faiss", None)
    export(runs("bag"), tmp_path / "out")
    assert any("pip install faiss-cpu" in line for line in said)
    assert not list((tmp_path / "out").glob("*.faiss"))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match="pip install onnx onnxruntime onnxscript"):
        export(runs("bag"), tmp_path / "new", onnx=True)
    assert not (tmp_path / "new").exists()


def test_command(runs, tmp_path, capsys):
    export_command([str(runs("bag-plain")), str(tmp_path / "out")])
    assert capsys.readouterr().out == f"exported: {tmp_path / 'out'}\n"
    with pytest.raises(SystemExit, match="error: .*new or empty folder"):
        export_command([str(runs("bag-plain")), str(tmp_path / "out")])


def test_cards_tell_licence_and_metrics(tmp_path):
    for text, expected in (
        ("Source  x\nLicense   a free\n          one\nMade by  me\n", "a free one"),
        ("# Data\n\n## Licence\n\nCC-BY-4.0,\nsee there.\n\n## More\n", "CC-BY-4.0, see there."),
        ("Nothing is said.\n", None),
    ):
        (tmp_path / "README.txt").write_text(text)
        assert data_licence(tmp_path) == expected
    assert found_metrics(tmp_path) is None
    (tmp_path / "val_metrics.json").write_text('{"P@1": 1.0}')
    (tmp_path / "tst_metrics.json").write_text('{"P@1": 2.0, "seconds": 3}')
    assert found_metrics(tmp_path) == ("tst", {"P@1": 2.0})


# -------------------------------- encoders from elsewhere


def built(folder, **options):
    return build_encoder(EncoderConfig(name=str(folder), **options), None).eval()


def from_sentence_transformers(folder, *modules):
    SentenceTransformer(modules=list(modules), device="cpu").save(
        str(folder), create_model_card=False
    )
    return folder


@pytest.fixture
def stock(tiny_encoder):
    """The modules of sentence-transformers, and a Transformer of the tiny encoder."""
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

    return {
        "Dense": Dense,
        "Normalize": Normalize,
        "Pooling": Pooling,
        "StaticEmbedding": StaticEmbedding,
        "transformer": Transformer(tiny_encoder),
    }


@pytest.mark.parametrize(
    ("mode", "dense", "unit"), [("mean", False, True), ("cls", True, False), ("cls", True, True)]
)
def test_folders_of_sentence_transformers(stock, tmp_path, mode, dense, unit):
    torch.manual_seed(1)
    modules = [stock["transformer"], stock["Pooling"](16, pooling_mode=mode)]
    modules += [stock["Dense"](16, 6, activation_function=torch.nn.Identity())] if dense else []
    modules += [stock["Normalize"]()] if unit else []
    folder = from_sentence_transformers(tmp_path / "st", *modules)
    encoder = built(folder)
    assert (encoder.config.pooling, encoder.config.normalize) == (mode, unit)
    expected = SentenceTransformer(str(folder), device="cpu").encode(
        TEXTS[:6], show_progress_bar=False
    )
    np.testing.assert_allclose(embed(encoder, TEXTS[:6], 64), expected, atol=1e-5)
    # who says so gets it
    assert built(folder, pooling="mean", normalize=True).config.pooling == "mean"


def test_static_embeddings(stock, tmp_path):
    torch.manual_seed(1)
    table = torch.randn(30522, 4)
    static = stock["StaticEmbedding"](load_tokenizer("minilm"), embedding_weights=table)
    folder = from_sentence_transformers(tmp_path / "unit", static, stock["Normalize"]())
    texts = [t for t in TEXTS if "[SEP]" not in t and len(t) < 100]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts, show_progress_bar=False)
    np.testing.assert_allclose(embed(built(folder), texts, 64), expected, atol=1e-5)
    bare = from_sentence_transformers(tmp_path / "mean", static)
    with pytest.raises(ValueError, match="takes the mean of its token vectors"):
        built(bare)
    np.testing.assert_allclose(embed(built(bare, normalize=True), texts, 64), expected, atol=1e-5)


def test_modules_without_counterpart_are_refused(stock, tmp_path):
    transformer = stock["transformer"]
    pool = stock["Pooling"](16)
    for number, (modules, message) in enumerate(
        (
            (
                [transformer, stock["Pooling"](16, pooling_mode="max")],
                "pooling max, expected cls or mean",
            ),
            (
                [transformer, pool, stock["Dense"](16, 6)],
                "expected activation torch.nn.modules.linear.Identity",
            ),
            (
                [transformer, pool, stock["Normalize"](), stock["Normalize"]()],
                "have no counterpart",
            ),
        )
    ):
        folder = from_sentence_transformers(tmp_path / str(number), *modules)
        with pytest.raises(ValueError, match=re.escape(message)):
            built(folder)
    folder = from_sentence_transformers(
        tmp_path / "dense",
        transformer,
        pool,
        stock["Dense"](16, 6, activation_function=torch.nn.Identity()),
    )
    with pytest.raises(ValueError, match="encoder.projection is 7, but .* has a projection to 6"):
        built(folder, projection=7)
    (folder / "modules.json").write_text("{}")
    with pytest.raises(ValueError, match=r"modules\.json: expected a list of modules"):
        built(folder)


@pytest.fixture
def released(tiny_encoder, tmp_path):
    """A checkpoint as the released DEXML code saves it: state dict, flat config, no tokenizer."""
    from safetensors.torch import load_file as load

    folder = tmp_path / "released"
    folder.mkdir()
    torch.manual_seed(2)
    state = {
        f"module.tf.{n}": t
        for n, t in load(f"{tiny_encoder}/model.safetensors").items()
        if not n.startswith("pooler.")
    }
    state |= {
        "module.bottleneck.weight": torch.randn(6, 16),
        "module.bottleneck.bias": torch.randn(6),
    }
    torch.save(state, folder / "model.pt")
    (folder / "config.yaml").write_text(
        f"tf: {tiny_encoder}\ntf_pooler: cls\nbottleneck_dim: 6\nnorm_embs: true\n"
        "net: dist-de-all\n"
    )
    return folder, state


def test_released_checkpoints(released, tiny_encoder, make_config, tmp_path):
    folder, state = released
    encoder = built(folder)
    plain = built(tiny_encoder, pooling="cls", normalize=False)
    expected = (
        embed(plain, TEXTS, 32) @ state["module.bottleneck.weight"].T
        + state["module.bottleneck.bias"]
    )
    torch.testing.assert_close(
        embed(encoder, TEXTS, 32), torch.nn.functional.normalize(expected, dim=1)
    )
    run = train.fit(make_config(encoder={"name": str(folder)}, train={"epochs": 0}))
    ours = embed(loaded(run)[0].reader.encoder, TEXTS, 32)
    torch.testing.assert_close(ours, torch.nn.functional.normalize(expected, dim=1))
    assert 0 <= evaluation.evaluate(run)["P@1"] <= 100
    # names with prefixes in safetensors; the architecture here
    shutil.copy(f"{tiny_encoder}/config.json", folder)
    (folder / "model.pt").unlink()
    save_file(
        {n.removeprefix("module."): t for n, t in state.items()}, folder / "model.safetensors"
    )
    torch.testing.assert_close(embed(built(folder), TEXTS, 32), ours)


def test_checkpoints_that_do_not_fit_are_refused(released, tmp_path):
    folder, state = released
    torch.save({n: t for n, t in state.items() if "word_embeddings" not in n}, folder / "model.pt")
    with pytest.raises(
        ValueError,
        match=r"lack 1 of the model's tensors, such as embeddings\.word_embeddings\.weight",
    ):
        built(folder)
    torch.save({**state, "strange.weight": torch.zeros(1)}, folder / "model.pt")
    with pytest.raises(ValueError, match=r"strange\.weight"):
        built(folder)
    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return open, (str(marker), "w")

    (folder / "model.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="not a state dict of tensors"):
        built(folder)
    torch.save({"tf.x": Bomb()}, folder / "model.pt")
    with pytest.raises(ValueError, match="not a state dict of tensors"):
        built(folder)
    assert not marker.exists()
    (folder / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"expected config\.json, or config\.yaml with the key tf"):
        built(folder)


def test_published_encoders_without_a_tokenizer_need_its_name(tiny_encoder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(f"{tiny_encoder}/{name}", tmp_path)
    with pytest.raises(
        ValueError, match=r"has no tokenizer; name that of .* by encoder\.tokenizer"
    ):
        built(tmp_path)
    encoder = built(tmp_path, tokenizer="minilm")
    torch.testing.assert_close(embed(encoder, TEXTS, 32), embed(built(tiny_encoder), TEXTS, 32))


def test_a_models_random_weights_are_refused(tiny_encoder, tmp_path):
    from safetensors.torch import load_file as load

    shutil.copytree(tiny_encoder, tmp_path / "enc")
    weights = load(f"{tiny_encoder}/model.safetensors")
    save_file(
        {f"strange.{n}": t for n, t in weights.items()},
        tmp_path / "enc" / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match="its weights lack"):
        built(tmp_path / "enc")


def test_nulls_are_filled_by_the_model_then_by_defaults(runs, tiny_encoder, tmp_path):
    assert resolve_encoder(EncoderConfig(name=tiny_encoder)) == EncoderConfig(
        name=tiny_encoder, pooling="mean", normalize=True
    )
    assert resolve_encoder(EncoderConfig(name="minilm", normalize=False)).normalize is False
    inside = resolve_encoder(EncoderConfig(name=str(runs("bag-projected") / "model")))
    assert (inside.name, inside.init, inside.projection) == (
        "bag",
        str(runs("bag-projected") / "model"),
        8,
    )
    fresh = resolve_encoder(EncoderConfig(name="bag", init=str(runs("transformer-cls") / "model")))
    # only token embeddings are taken
    assert (fresh.projection, fresh.normalize) == (None, True)
    shutil.copytree(runs("transformer-cls") / "model", tmp_path / "model")
    with pytest.raises(ValueError, match=r"config\.yaml is missing"):
        resolve_encoder(EncoderConfig(name=str(tmp_path / "model")))
    with pytest.raises(ValueError, match="it is a run, name .*model"):
        resolve_encoder(EncoderConfig(name=str(runs("bag"))))


def test_older_folders_keep_their_transformer_inside(tiny_encoder, tmp_path):
    shutil.copytree(tiny_encoder, tmp_path / "0_Transformer")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (tmp_path / "modules.json").write_text(
        json.dumps(
            [
                {"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"},
                {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
            ]
        )
    )
    assert resolve(str(tmp_path)) == str(tmp_path / "0_Transformer")
    encoder = built(tmp_path)
    assert (encoder.config.pooling, encoder.config.normalize) == ("cls", False)
    torch.testing.assert_close(
        embed(encoder, TEXTS, 32),
        embed(built(tiny_encoder, pooling="cls", normalize=False), TEXTS, 32),
    )


def test_a_run_may_score_otherwise_than_its_encoder_was_made(runs, make_config, tmp_path):
    """What the user says wins over what the model says, and is what the run keeps."""
    config = make_config(
        encoder={"name": str(runs("transformer-cls") / "model"), "normalize": True},
        train={"epochs": 0},
        run={"dir": str(tmp_path / "again")},
    )
    ranker, _ = loaded(train.fit(config))
    torch.testing.assert_close(
        embed(ranker.reader.encoder, TEXTS, 16).norm(dim=1), torch.ones(len(TEXTS))
    )
