"""utils.prepare csv: cells of labels, quotation marks, and what is said of odd data."""

import csv
import json
import time

import pytest

from tests.prepare.prepare_examples import error_of, named, read, write
from utils.errors import InputError
from utils.prepare.cells import LabelCells
from utils.prepare.command import Columns, Source, main, prepare_csv, prepare_jsonl

LISTS = [
    ["x", "y"],
    [],
    ["it's", 'say "hi"'],
    ["a, b", "c|d"],
    ["caf\u00e9", "\u732b"],
    [1, 2.5],
    ["back\\slash", "]"],
]


def names_of(cell, separator="|"):
    _, pairs = LabelCells(Columns(separator=separator)).parse(("text", cell))
    return [name for name, _ in pairs]


def said(caplog, *parts):
    """The one line of the log that holds these parts."""
    found = [
        record.message for record in caplog.records if all(part in record.message for part in parts)
    ]
    assert len(found) == 1, [record.message for record in caplog.records]
    return found[0]


def table(path, texts, cells, **settings):
    """A CSV file with the columns text and labels."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n", **settings)
        writer.writerow(["text", "labels"])
        writer.writerows(zip(texts, cells, strict=True))
    return path


@pytest.mark.parametrize("items", LISTS)
@pytest.mark.parametrize(
    "form",
    [
        str,
        repr,
        lambda items: str(tuple(items)),
        json.dumps,
        lambda items: json.dumps(items, ensure_ascii=False),
    ],
)
@pytest.mark.parametrize("separator", [",", "|", ";"])
def test_a_list_is_read_as_its_items(items, form, separator):
    if form(items)[0] == "(" and type(items[:1]) is list and items and type(items[0]) is not str:
        return  # (1, 2) may be a name
    assert names_of(form(items), separator) == [str(item) for item in items]


def test_sets_and_lists_by_hand():
    assert sorted(names_of(str({"x", "y"}))) == ["x", "y"]
    assert (
        names_of("set()")
        == names_of("()")
        == names_of("[ ]")
        == names_of("")
        == names_of(" | ")
        == []
    )
    assert names_of("  [ 'x' ,\n 'y', ] ") == ["x", "y"]
    assert names_of(r"['\d', '\u00e9']") == [r"\d", "\u00e9"]


@pytest.mark.parametrize(
    "cell",
    [
        "['x' 'y']",
        "['x', 'y'",
        "[x, y]",
        "['x', ['y']]",
        "['x', None]",
        "[np.str_('x'), np.str_('y')]",
        "array(['x', 'y'], dtype=object)",
        "{'x': 1}",
        '["x", {"y": 2}]',
        "['x', y]",
        "['x'; 'y']",
        "[b'x', b'y']",
        "['a\\x']",
        "[" + "'x', " * 300_000 + "]",
    ],
)
def test_what_only_looks_like_a_list_is_refused(tmp_path, cell):
    path = table(tmp_path / "a.csv", ["t", "u"], ["x", cell])
    with pytest.raises(InputError, match=r"a.csv:3: .*expected a list"):
        prepare_csv(Source(path), tmp_path / "out", Columns(separator=","))
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    "cell",
    [
        "['x'," + " " * 1_000_000 + "y",
        "(" + ",'" * 500_000,
        "[" + "'x'," * 250_000 + "'y",
        "[" * 1_000_000,
    ],
)
def test_long_cells_are_refused_at_once(cell):
    start = time.process_time()
    with pytest.raises(InputError, match="expected a list"):
        names_of(cell + "]", ",")
    assert time.process_time() - start < 2


def test_names_with_brackets_stay_names(tmp_path, caplog):
    assert names_of("[SOLVED]") == ["[SOLVED]"] and names_of("[a]|[b]") == ["[a]", "[b]"]
    assert names_of("(old)|new (2)|{x}") == ["(old)", "new (2)", "{x}"] and names_of("(1, 2)") == [
        "(1, 2)"
    ]
    assert names_of("x [y]") == ["x [y]"]
    prepare_csv(
        Source(table(tmp_path / "a.csv", "abcde", ["[SOLVED]", "x|y", *"zzz"])), tmp_path / "out"
    )
    said(caplog, "1 cells in brackets are no lists", "'[SOLVED]'")


def test_what_pandas_writes(tmp_path, caplog):
    lists = [["x", "y"], ["y"], [], ["it's"], ["z, w"], ["x"]]
    table(tmp_path / "a.csv", "abcdef", map(str, lists))  # as DataFrame.to_csv does
    caplog.set_level("INFO")
    out = prepare_csv(
        Source(tmp_path / "a.csv", tmp_path / "a.csv"), tmp_path / "out", Columns(separator=",")
    )
    assert read(out / "raw" / "Y_ids.txt") == ["x", "y", "it's", "z, w"]
    said(caplog, "12 of 12 cells are read as lists")
    assert not [record for record in caplog.records if "separator" in record.message]


def test_lists_beside_names_are_said(tmp_path, caplog):
    prepare_csv(
        Source(table(tmp_path / "a.csv", "abcde", ["['x', 'y']", "x|z", *"yyy"])), tmp_path / "out"
    )
    assert "1 of 5 cells are read as lists, e.g. \"['x', 'y']\"" in said(caplog, "read as lists")


@pytest.mark.parametrize(
    ("cells", "separator", "parts"),
    [
        (
            ["news", "a, b", "sport"],
            "|",
            ("'|' occurs in none of 3 cells", "'a, b'", "--separator ','"),
        ),
        (["a;b", "c"], ",", ("',' occurs in none of 2 cells", "'a;b'", "--separator ';'")),
        (["one", "two", ""], "|", ("'|' occurs in none of 2 cells", "'one'")),
    ],
)
def test_a_separator_that_never_occurs(tmp_path, caplog, cells, separator, parts):
    train = table(tmp_path / "a.csv", [str(i) for i in range(len(cells))], cells)
    test = table(tmp_path / "b.csv", ["test"], [""])
    prepare_csv(Source(train, test), tmp_path / "out", Columns(separator=separator))
    assert ("--separator" in said(caplog, *parts)) == (len(parts) == 3)


def test_a_separator_that_occurs_is_not_named(tmp_path, caplog):
    prepare_csv(
        Source(table(tmp_path / "a.csv", "abcde", ["x|y", "a, b", *"xxx"])), tmp_path / "out"
    )
    assert not [record for record in caplog.records if "separator" in record.message]


# -------------------------------- odd texts and labels


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_labels_of_several_spellings(tmp_path, caplog, kind):
    names = ["News", "news", "caf\u00e9", "cafe\u0301", "Sport", "STRASSE", "stra\u00dfe", "other"]
    if kind == "csv":
        out = prepare_csv(Source(table(tmp_path / "a.csv", "abcdefgh", names)), tmp_path / "out")
    else:
        points = [json.dumps({"text": name, "labels": [name]}) for name in names]
        out = prepare_jsonl(Source(write(tmp_path / "a.jsonl", points)), tmp_path / "out")
    said(caplog, "3 names of labels come in several spellings")
    assert read(out / "raw" / "Y_ids.txt") == names  # nothing is changed


def test_texts_that_repeat_are_empty_or_in_both_splits(tmp_path, caplog):
    texts = ["one", "two", "one", "", "two", "three", " ", "one"]
    # `one` has other labels each time, `two` the same twice
    cells = ["x", "y", "z", "x", "y", "x", "x", "w"]
    train = table(tmp_path / "a.csv", texts, cells)
    test = table(tmp_path / "b.csv", ["four", "three", "", "one"], "xxxx")
    out = prepare_csv(Source(train, test), tmp_path / "out")
    said(
        caplog,
        "1 training texts come in several rows with other labels",
        "lines 1 and 3 of trn_X.txt: 'one'",
    )
    said(caplog, "2 of 8 texts of trn_X.txt are empty, e.g. line 4")
    said(caplog, "1 of 4 texts of tst_X.txt are empty, e.g. line 3")
    said(
        caplog,
        "2 of 4 test texts stand among the training texts too",
        "line 2 of tst_X.txt: 'three'",
    )
    assert read(out / "raw" / "trn_X.txt") == [text.strip() for text in texts]


def test_nothing_is_said_of_sound_data(tmp_path, caplog):
    prepare_csv(
        Source(table(tmp_path / "a.csv", list("abcdef"), ["x|y", "y", "x", "x", "", "y"])),
        tmp_path / "out",
    )
    prepare_jsonl(
        named(
            tmp_path / "in",
            trn=['{"text": "a", "labels": ["n0"]}', '{"text": "a", "labels": ["n0"]}'],
        ),
        tmp_path / "other",
    )
    assert not caplog.records


# -------------------------------- quotation marks


def tsv(folder, lines):
    return write(folder / "a.tsv", ["text\tlabels", *lines])


LONE = ["a\tx", '"5 inch disk\tx', "b\ty", 'c"\ty', "d\tx", "e\tz"]


def test_a_lone_mark_in_a_tab_separated_file(tmp_path):
    path = tsv(tmp_path, LONE)
    command = [
        "csv",
        "--train",
        str(path),
        "--test",
        str(path),
        "--delimiter",
        "\\t",
        "--out",
        str(tmp_path / "out"),
    ]
    error = error_of(command)
    assert "a.tsv:3: a quoted field spans lines" in error and "--quote none" in error
    assert not (tmp_path / "out").exists()
    main([*command, "--quote", "none"])
    assert read(tmp_path / "out" / "raw" / "trn_X.txt") == [line.split("\t")[0] for line in LONE]


@pytest.mark.parametrize("lines", [["a\tx", '"b\tx'], ['"a" b\tx', "c\ty"], ['"a\tx\t"', "b\tx"]])
def test_other_marks_in_a_tab_separated_file_are_refused_with_the_cure(tmp_path, lines):
    with pytest.raises(InputError, match=r"a.tsv:\d: .*--quote none"):
        prepare_csv(Source(tsv(tmp_path, lines)), tmp_path / "out", Columns(delimiter="\t"))


def test_fields_may_span_lines_where_the_mark_is_given(tmp_path):
    path = tsv(tmp_path, ['"two', 'lines"\tx', "b\ty"])
    out = prepare_csv(Source(path, path), tmp_path / "out", Columns(delimiter="\t", quote='"'))
    assert read(out / "raw" / "trn_X.txt") == ["two lines", "b"]
    path = write(tmp_path / "b.csv", ["text,labels", "'a, \"b\"',x", "c,y"])
    out = prepare_csv(Source(path, path), tmp_path / "other", Columns(quote="'"))
    assert read(out / "raw" / "trn_X.txt") == ['a, "b"', "c"]


def test_a_comma_separated_field_that_swallows_rows_is_named(tmp_path, caplog):
    path = write(
        tmp_path / "a.csv",
        ["text,labels", "a,x", '"5 inch disk,x', "b,y", 'monitor of 17",z', "c,x"],
    )
    out = prepare_csv(Source(path, path), tmp_path / "out")
    assert len(read(out / "raw" / "trn_X.txt")) == 3
    found = [
        record.message
        for record in caplog.records
        if "look like rows of their own" in record.message
    ]
    assert (
        len(found) == 2
        and "a.csv: 1 rows" in found[0]
        and "lines 3 to 5" in found[0]
        and "--quote none" in found[0]
    )
    caplog.clear()
    prepare_csv(Source(path, path), tmp_path / "other", Columns(quote="none"))
    assert len(read(tmp_path / "other" / "raw" / "trn_X.txt")) == 5
    assert not [record for record in caplog.records if "look like rows" in record.message]


def test_honest_fields_of_several_lines_are_not_named(tmp_path, caplog):
    path = table(tmp_path / "a.csv", ["one\ntwo\nthree", "a, b, c\nd", "e"], ["x|y", "y", "x"])
    prepare_csv(Source(path, path), tmp_path / "out")
    assert not [record for record in caplog.records if "rows" in record.message]


@pytest.mark.parametrize("quote", ["", "ab", ",", "\n"])
def test_marks_that_are_none(quote):
    with pytest.raises(InputError, match="expected --quote none or one character"):
        Columns(quote=quote)


def test_another_delimiter_is_hinted_at(tmp_path):
    with pytest.raises(
        InputError, match=r"a.tsv:1: expected one column 'text', .*--delimiter '\\t' would part"
    ):
        prepare_csv(Source(tsv(tmp_path, ["a\tx"])), tmp_path / "out")


def test_ids_of_rows_come_into_the_data_set(tmp_path):
    """Of a CSV, and of JSON lines with keys of the user's own; split off with their rows."""
    rows = [(f"r{number}", f"text {number}", f"tag {number % 3}") for number in range(10)]
    table = tmp_path / "rows.csv"
    table.write_text("n,body,tags\n" + "".join(f"{','.join(row)}\n" for row in rows))
    made = [prepare_csv(Source(table), tmp_path / "a", Columns("body", "tags", id="n"))]
    lines = tmp_path / "rows.jsonl"
    keys = ("n", "body", "tags")
    for row in rows:
        record = dict(zip(keys, (*row[:2], [row[2]]), strict=True))
        with open(lines, "a") as file:
            file.write(f"{json.dumps(record)}\n")
    columns = Columns("body", "tags", id="n")
    made.append(prepare_jsonl(Source(lines), tmp_path / "b", columns=columns))
    for folder in made:
        for split, count in (("trn", 8), ("tst", 2)):
            ids = (folder / "raw" / f"{split}_ids.txt").read_text().splitlines()
            texts = (folder / "raw" / f"{split}_X.txt").read_text().splitlines()
            assert len(ids) == count
            assert [f"text {own_id[1:]}" for own_id in ids] == texts
    with pytest.raises(InputError, match=r"rows.jsonl:1: expected a key 'x', got only"):
        prepare_jsonl(Source(lines), tmp_path / "c", columns=Columns("body", "tags", id="x"))
    plain = prepare_csv(Source(table), tmp_path / "d", Columns("body", "tags"))
    assert [path.name for path in (plain / "raw").glob("*_ids.txt")] == ["Y_ids.txt"]
