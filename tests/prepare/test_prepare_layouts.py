"""utils.prepare: folders with the names of published archives, each made here with a few rows."""

import json

import numpy as np
import pytest
from scipy import sparse

from tests.prepare.prepare_examples import (
    LABELS,
    TEXTS,
    Y_TRN,
    Y_TST,
    check,
    error_of,
    read,
    repository,
    rows_of,
    sparse_text,
    write,
)
from utils.errors import InputError
from utils.prepare.command import (
    SparseText,
    main,
    prepare_attention_xml,
    prepare_auto,
    prepare_pecos,
    prepare_sparse_text,
    prepare_xml_repository,
)

BOTH = (("trn", "train", Y_TRN), ("tst", "test", Y_TST))


def x_transformer(folder):
    """As X-Transformer publishes it, and as DEXML downloads its EURLex-4K."""
    folder.mkdir(parents=True)
    for split, long, matrix in BOTH:
        sparse.save_npz(folder / f"Y.{split}.npz", sparse.csr_matrix(matrix))
        sparse.save_npz(folder / f"X.{split}.npz", sparse.csr_matrix(np.eye(len(matrix), 6)))
        write(folder / f"{long}_raw_texts.txt", TEXTS[split])
    write(folder / "label_map.txt", LABELS)
    return folder


def attention_xml(folder, raw=True):
    """As AttentionXML and LightXML publish it; labels of the example by name, relevances are
    ones."""
    for split, long, matrix in BOTH:
        write(
            folder / f"{long}_labels.txt",
            [" ".join(LABELS[j] for j, _ in row) for row in rows_of(matrix)],
        )
        write(folder / f"{long}_texts.txt", [text.upper() for text in TEXTS[split]])
        if raw:
            write(folder / f"{long}_raw_texts.txt", TEXTS[split])
    return folder


def bag_of_words_rows(matrix):
    return [
        ",".join(str(j) for j, _ in row) + f" {i}:0.5 4:1" for i, row in enumerate(rows_of(matrix))
    ]


def prepared_by_dexa(folder, ids=True):
    """As DEXA's and NGAME's scripts leave it: relevance as text, padded ids of [CLS] text [SEP]."""
    from utils.pretrained.location import load_tokenizer

    tokenizer = load_tokenizer("minilm")
    for split, _, matrix in BOTH:
        rows = [" ".join(f"{j}:{v}" for j, v in row) for row in rows_of(matrix)]
        write(folder / f"{split}_X_Y.txt", [f"{len(rows)} 4", *rows])
    for stem, texts in (("trn_doc", TEXTS["trn"]), ("tst_doc", TEXTS["tst"]), ("lbl", LABELS)):
        if ids:
            coded = tokenizer(
                texts, padding="max_length", max_length=12, truncation=True, return_tensors="np"
            )
            np.save(folder / f"{stem}_input_ids.npy", coded["input_ids"])
            np.save(folder / f"{stem}_attention_mask.npy", coded["attention_mask"])
    return folder


# -------------------------------- the repository's raw data


@pytest.mark.parametrize(
    "data", ["caf\u00e9\nna\u00efve\nplain\n\u20ac".encode(), b"caf\xe9\nna\xefve\nplain\n\xa4"]
)
def test_label_names_in_place_of_label_records(tmp_path, data, caplog):
    folder = repository(tmp_path / "AmazonCat-13K.raw")
    (folder / "lbl.json.gz").unlink()
    (folder / "Yf.txt").write_bytes(data)
    out = prepare_xml_repository(folder, tmp_path / "out")
    check(out, labels=None)
    assert read(out / "raw" / "Y.txt")[:3] == ["caf\u00e9", "na\u00efve", "plain"]
    said = [record.message for record in caplog.records if "latin-1" in record.message]
    if b"\xe9" not in data:
        assert said == []
        return
    assert len(said) == 1
    assert "3 lines" in said[0]
    assert "line 1, 'caf\u00e9'" in said[0]


def test_utf_16_is_not_taken_for_latin_1(tmp_path):
    folder = repository(tmp_path / "in")
    (folder / "lbl.json.gz").unlink()
    (folder / "Yf.txt").write_bytes("a\nb\nc\nd\n".encode("utf-16"))
    with pytest.raises(InputError, match="Yf.txt: line 1 is not UTF-8"):
        prepare_xml_repository(folder, tmp_path / "out")


def test_raw_json_names_and_a_number_of_labels(tmp_path):
    folder = repository(tmp_path / "Wikipedia-500K.raw")
    for stem in ("trn", "tst", "lbl"):
        (folder / f"{stem}.json.gz").rename(folder / f"{stem}.raw.json.gz")
    check(prepare_xml_repository(folder, tmp_path / "out"))
    with pytest.raises(InputError, match="expected 5 labels, as given, got 4"):
        prepare_xml_repository(folder, tmp_path / "other", num_labels=5)
    (folder / "lbl.raw.json.gz").unlink()
    with pytest.raises(InputError, match="expected a file lbl.json or lbl.raw.json or Yf.txt"):
        prepare_xml_repository(folder, tmp_path / "other")
    main(["xml-repository", str(folder), "--labels", "4", "--out", str(tmp_path / "other")])
    check(tmp_path / "other", labels=None)
    assert not (tmp_path / "other" / "raw" / "Y.txt").exists()


@pytest.mark.parametrize(
    ("folder", "name", "text", "label"),
    [
        ("LF-AmazonTitles-131K", "mine", "a", "t"),
        ("download", "LF-WikiSeeAlsoTitles-320K", "a", "t"),
        ("LF-Amazon-131K", "LF-Amazon-131K", "a b", "t c"),
    ],
)
def test_titles_alone_where_the_name_says_titles(tmp_path, folder, name, text, label):
    point = json.dumps({"title": "a", "content": "b", "target_ind": [0], "target_rel": [1]})
    source = repository(
        tmp_path / folder,
        trn=[point],
        tst=[point],
        lbl=[json.dumps({"title": "t", "content": "c"})],
    )
    out = tmp_path / "Datasets" / name
    main(["xml-repository", str(source), "--out", str(out)])
    assert (read(out / "raw" / "trn_X.txt"), read(out / "raw" / "Y.txt")) == ([text], [label])
    assert json.loads((out / "stats.json").read_text())["fields"] == (
        "title" if text == "a" else "title+content"
    )
    out = prepare_xml_repository(source, out, "title+content", overwrite=True)
    assert read(out / "raw" / "trn_X.txt") == ["a b"]


# -------------------------------- matrices beside texts


def test_x_transformer(tmp_path):
    out = prepare_pecos(x_transformer(tmp_path / "Eurlex-4K"), tmp_path / "out")
    check(out)
    np.testing.assert_array_equal(sparse.load_npz(out / "X.trn.npz").toarray(), np.eye(3, 6))


def test_attention_xml(tmp_path, caplog):
    out = prepare_attention_xml(attention_xml(tmp_path / "in"), tmp_path / "out")
    names = [LABELS[j] for j in (1, 3, 0, 2)]  # by first appearance
    assert read(out / "raw" / "Y.txt") == read(out / "raw" / "Y_ids.txt") == names
    for split, _, matrix in BOTH:
        found = sparse.load_npz(out / f"Y.{split}.npz").toarray()
        np.testing.assert_array_equal(found, (matrix > 0)[:, [1, 3, 0, 2]])
        assert read(out / "raw" / f"{split}_X.txt") == TEXTS[split]
    assert any(
        "2 files were not read: test_texts.txt, train_texts.txt" in record.message
        for record in caplog.records
    )
    out = prepare_attention_xml(attention_xml(tmp_path / "tokens", raw=False), tmp_path / "other")
    assert read(out / "raw" / "tst_X.txt") == [text.upper() for text in TEXTS["tst"]]


def test_label_names_that_are_numbers_are_named(tmp_path, caplog):
    for long, line in (("train", "17 4"), ("test", "4")):
        write(tmp_path / "in" / f"{long}_labels.txt", [line])
        write(tmp_path / "in" / f"{long}_raw_texts.txt", ["a"])
    prepare_attention_xml(tmp_path / "in", tmp_path / "out")
    assert any(
        "all 2 names of labels are numbers, e.g. '17'" in record.message
        for record in caplog.records
    )
    write(tmp_path / "in" / "test_raw_texts.txt", ["a", "b"])
    with pytest.raises(
        InputError, match="test_raw_texts.txt: expected 1 lines, one for each line of test_labels"
    ):
        prepare_attention_xml(tmp_path / "in", tmp_path / "other")


# -------------------------------- matrices as text


def test_libsvm_without_header(tmp_path):
    for _, long, matrix in BOTH:
        write(tmp_path / "in" / f"{long}.txt", bag_of_words_rows(matrix))
    command = ["sparse-text", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    main([*command, "--features", "5", "--labels", "4"])
    for split, _, matrix in BOTH:
        np.testing.assert_array_equal(
            sparse.load_npz(tmp_path / "out" / f"Y.{split}.npz").toarray(), matrix > 0
        )
        assert sparse.load_npz(tmp_path / "out" / f"X.{split}.npz").shape == (len(matrix), 5)
    for options, message in (
        ([], "of a file without one --features and --labels give F and L"),
        (["--features", "5"], "--features and --labels together"),
        (["--features", "4", "--labels", "4"], r"train.txt:1: expected an index in \[0, 4\)"),
        (["--features", "5", "--labels", "0"], "expected a number of labels from 1"),
    ):
        numbers = dict(zip(("num_features", "num_labels"), map(int, options[1::2]), strict=False))
        with pytest.raises(InputError, match=message):
            prepare_sparse_text(tmp_path / "in", tmp_path / "other", SparseText(**numbers))
    assert not (tmp_path / "other").exists()


def test_a_header_may_stand_beside_given_sizes_that_agree(tmp_path):
    for _, long, matrix in BOTH:
        write(
            tmp_path / "in" / f"eurlex_{long}.txt",
            [f"{len(matrix)} 5 4", *bag_of_words_rows(matrix)],
        )
    out = prepare_sparse_text(
        tmp_path / "in", tmp_path / "out", SparseText(num_features=5, num_labels=4)
    )
    assert sparse.load_npz(out / "Y.trn.npz").shape == (3, 4)
    with pytest.raises(InputError, match=r"eurlex_train.txt:1: expected a header with \[5, 9\]"):
        prepare_sparse_text(
            tmp_path / "in", tmp_path / "other", SparseText(num_features=5, num_labels=9)
        )


def test_one_file_with_columns_of_splits(tmp_path, caplog):
    rows = [*bag_of_words_rows(Y_TRN), *bag_of_words_rows(Y_TST), "0 2:9"]
    write(tmp_path / "in" / "Bibtex_data.txt", [f"{len(rows)} 5 4", *rows])
    write(tmp_path / "in" / "bibtex_trSplit.txt", ["5 1", "4 2", "1 3"])
    write(tmp_path / "in" / "bibtex_tstSplit.txt", ["2 4", "3 5"])
    out = prepare_sparse_text(tmp_path / "in", tmp_path / "out", SparseText(split=2))
    for split, _, matrix in BOTH:
        np.testing.assert_array_equal(sparse.load_npz(out / f"Y.{split}.npz").toarray(), matrix > 0)
    assert any("1 of 6 rows are in neither split" in record.message for record in caplog.records)
    first = prepare_auto(tmp_path / "in", tmp_path / "first")
    np.testing.assert_array_equal(sparse.load_npz(first / "Y.trn.npz").toarray()[0], Y_TST[1] > 0)
    for split, message in (
        (3, "trSplit.txt:1: expected at least 3 columns"),
        (0, "at least 1 columns for --split 0"),
    ):
        with pytest.raises(InputError, match=message):
            prepare_sparse_text(tmp_path / "in", tmp_path / "other", SparseText(split=split))
    for line, message in (
        ("2 7", r"tstSplit.txt:1: expected a row from 1 to 6, got 7"),
        ("2 x", "row numbers"),
        ("2 1", "rows in one split each, got 1 in both, e.g. 1"),
    ):
        write(tmp_path / "in" / "bibtex_tstSplit.txt", [line])
        with pytest.raises(InputError, match=message):
            prepare_sparse_text(tmp_path / "in", tmp_path / "other", SparseText(split=2))


@pytest.mark.parametrize("latin", [False, True])
def test_texts_that_scripts_of_dexa_extracted(tmp_path, latin):
    folder = prepared_by_dexa(tmp_path / "in")  # texts win over token ids
    for stem, texts in (("trn", TEXTS["trn"]), ("tst", TEXTS["tst"]), ("lbl", LABELS)):
        lines = "".join(f"{text}\n" for text in texts)
        (folder / f"{stem}.raw.txt").write_bytes(lines.encode("latin-1" if latin else "utf-8"))
    check(prepare_sparse_text(folder, tmp_path / "out"))


def test_token_ids_become_texts_with_the_same_ids(tmp_path, caplog):
    from utils.pretrained.location import load_tokenizer

    folder = prepared_by_dexa(tmp_path / "in")
    out = prepare_sparse_text(folder, tmp_path / "out")
    tokenizer = load_tokenizer("minilm")
    for stem, name, texts in (
        ("trn_doc", "trn_X", TEXTS["trn"]),
        ("tst_doc", "tst_X", TEXTS["tst"]),
        ("lbl", "Y", LABELS),
    ):
        lines = read(out / "raw" / f"{name}.txt")
        assert lines == [
            tokenizer.decode(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]
        ]
        ids, mask = (
            np.load(folder / f"{stem}_{kind}.npy") for kind in ("input_ids", "attention_mask")
        )
        assert tokenizer(lines)["input_ids"] == [
            row[kept > 0].tolist() for row, kept in zip(ids, mask, strict=True)
        ]
    assert not [record for record in caplog.records if "other ids" in record.message]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("trn_doc_input_ids", lambda a: a + 1, r"row 0: expected ids between \[101\] and \[102\]"),
        (
            "tst_doc_input_ids",
            lambda a: np.where(a == 102, 40_000, a),
            "row 0: expected ids from 0 to 30521",
        ),
        (
            "trn_doc_input_ids",
            lambda a: a[:2],
            r"expected integers of shape \(3, length\), got int64 \(2, 12\)",
        ),
        (
            "lbl_input_ids",
            lambda a: a.astype(float),
            r"expected integers of shape \(4, length\), got float64",
        ),
        (
            "lbl_attention_mask",
            lambda a: a[:, :5],
            r"expected shape \(4, 12\), that of lbl_input_ids.npy",
        ),
        ("lbl_attention_mask", lambda a: a * 0, r"row 0: expected ids between .* got \[\]"),
        (
            "tst_doc_attention_mask",
            None,
            "expected both of tst_doc_input_ids.npy and tst_doc_attention_mask.npy",
        ),
    ],
)
def test_token_ids_of_another_kind(tmp_path, name, change, message):
    folder = prepared_by_dexa(tmp_path / "in")
    path = folder / f"{name}.npy"
    if change is None:
        path.unlink()
    else:
        np.save(path, change(np.load(path)))
    with pytest.raises(InputError, match=message):
        prepare_sparse_text(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# -------------------------------- which is which


@pytest.mark.parametrize(
    "make", [repository, x_transformer, attention_xml, sparse_text, prepared_by_dexa]
)
def test_the_layout_is_found(tmp_path, make):
    folder = make(tmp_path / "in")
    main(["auto", str(folder), "--out", str(tmp_path / "out")])
    assert read(tmp_path / "out" / "raw" / "tst_X.txt") == TEXTS["tst"]


@pytest.mark.parametrize(
    ("make", "given", "kind"),
    [
        (repository, "sparse-text", "xml-repository"),
        (x_transformer, "attention-xml", "pecos"),
        (attention_xml, "pecos", "attention-xml"),
        (sparse_text, "xml-repository", "sparse-text"),
    ],
)
def test_the_wrong_format_is_hinted_at(tmp_path, make, given, kind):
    folder = make(tmp_path / "in")
    error = error_of([given, str(folder), "--out", str(tmp_path / "out")])
    assert f"its files look like `{kind}`" in error
    error = error_of([given, str(tmp_path), "--out", str(tmp_path / "out")])
    assert f"did you mean {folder}?" in error
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_error_inside_the_right_format_gets_no_hint(tmp_path):
    folder = repository(tmp_path / "in", trn=["oops"])
    write(folder / "train.txt", ["oops"])
    for given in ("xml-repository", "sparse-text", "auto"):
        assert "look like" not in error_of([given, str(folder), "--out", str(tmp_path / "out")])


def test_a_folder_of_nothing_known(tmp_path):
    write(tmp_path / "in" / "data.bin", ["x"])
    with pytest.raises(InputError, match="expected one of the files trn.json, .*, got none"):
        prepare_auto(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="in.zip: expected a folder, got a file; unpack it first"):
        prepare_auto(tmp_path / "in.zip", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "kind"), [("a.csv", "csv"), ("b.TSV.gz", "csv --delimiter"), ("c.jsonl", "jsonl")]
)
def test_a_file_where_a_folder_is_expected_gets_the_command_for_one_file(tmp_path, name, kind):
    write(tmp_path / "in" / name, ["x"])
    for given in (tmp_path / "in", tmp_path / "in" / name):
        said = error_of(["auto", str(given), "--out", str(tmp_path / "out")])
        assert f"python -m utils.prepare {kind}" in said
        assert f"--train {tmp_path / 'in' / name}" in said


@pytest.mark.parametrize("name", ["filter_labels_test.txt", "filter_labels_text.txt"])
def test_filters_by_either_name_and_those_that_are_not_read(tmp_path, name, caplog):
    folder = repository(tmp_path / "in")
    write(folder / name, ["1 3"])
    write(folder / "filter_labels_dev.txt", ["0 0"])
    out = prepare_xml_repository(folder, tmp_path / "out")
    assert read(out / "filter_labels_test.txt") == ["1 3"]
    assert any(
        record.message.endswith("1 files were not read: filter_labels_dev.txt")
        for record in caplog.records
    )


@pytest.mark.parametrize("make", [sparse_text, prepared_by_dexa])
def test_filters_beside_sparse_text(tmp_path, make):
    folder = make(tmp_path / "in")
    write(folder / "filter_labels_train.txt", ["2 3"])
    write(folder / "filter_labels_test.txt", ["1 3"])
    out = prepare_auto(folder, tmp_path / "out")
    assert [read(out / f"filter_labels_{split}.txt") for split in ("train", "test")] == [
        ["2 3"],
        ["1 3"],
    ]


def test_filters_beside_bags_of_words(tmp_path):
    for split, matrix in (("train", Y_TRN), ("test", Y_TST)):
        write(
            tmp_path / "in" / f"mine_{split}.txt",
            [f"{len(matrix)} 7 4", *bag_of_words_rows(matrix)],
        )
        write(tmp_path / "in" / f"filter_labels_{split}.txt", ["1 3"])
    out = prepare_auto(tmp_path / "in", tmp_path / "out")
    assert read(out / "filter_labels_train.txt") == ["1 3"]


def test_an_endless_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.prepare.lines.LONGEST_LINE", 1000)
    folder = repository(tmp_path / "in", trn=["x" * 5000])
    with pytest.raises(InputError, match=r"trn.json.gz:1: expected lines of at most 1,000 bytes"):
        prepare_xml_repository(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
