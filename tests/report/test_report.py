import json
import statistics

import pytest

from utils.report import tables
from utils.report.__main__ import main
from utils.report.formats import escaped, written
from utils.report.tables import rows_alike


def seeds_table(folders, columns=None, form="markdown"):
    return written(tables.seeds_table(folders, metrics=columns).table, form)


@pytest.fixture
def make_run(tmp_path):
    """make_run(seed, P@1, expname, epochs) -> folder of a finished run."""

    def make(seed, value, expname="dexa", epochs=3, split="tst"):
        folder = tmp_path / f"{expname}-{seed}-{epochs}-{value}"
        folder.mkdir()
        (folder / "config.yaml").write_text(
            f"data: {{name: D}}\ntrain: {{epochs: {epochs}}}\n"
            f"run: {{expname: {expname}, seed: {seed}, dir: {folder}}}\n"
        )
        (folder / f"{split}_metrics.json").write_text(
            json.dumps({"P@1": value, "R@100": 2 * value, "points": 7})
        )
        return folder

    return make


def test_mean_and_standard_deviation_over_seeds(make_run):
    values = [44.1, 45.3, 44.9]
    lines = seeds_table([make_run(seed, value) for seed, value in enumerate(values)]).splitlines()
    mean = statistics.mean(values)
    deviation = statistics.stdev(values)
    # what a run does not have is left out
    assert lines[0] == "| config | seeds | P@1 | R@100 |"
    assert lines[2] == (
        f"| D/dexa | 0, 1, 2 | {mean:.2f} ± {deviation:.2f} | {2 * mean:.2f} ± "
        f"{2 * deviation:.2f} |"
    )


def test_a_row_for_each_config_and_no_deviation_of_one_seed(make_run):
    runs = [make_run(1, 10.0), make_run(0, 20.0), make_run(0, 33.0, "ngame")]
    lines = seeds_table(runs, columns=["P@1"]).splitlines()
    assert lines[2:] == ["| D/dexa | 0, 1 | 15.00 ± 7.07 |", "| D/ngame | 0 | 33.00 |"]


def test_names_may_end_with_the_seed(make_run):
    runs = [
        make_run(1, 10.0, "dexa-seed1"),
        make_run(0, 20.0, "dexa-seed0"),
        make_run(0, 3.0, "elias-1"),
        make_run(2, 5.0, "s2"),
    ]
    lines = seeds_table(runs, columns=["P@1"]).splitlines()
    assert lines[2:] == [
        "| D/dexa | 0, 1 | 15.00 ± 7.07 |",
        "| D/elias-1 | 0 | 3.00 |",
        "| D/s2 | 2 | 5.00 |",
    ]


def test_members_inside_of_a_run_are_those_of_every_seed(make_run):
    runs = [make_run(seed, value) for seed, value in enumerate((10.0, 20.0))]
    for run in runs:
        with open(run / "config.yaml", "a") as file:
            file.write(f"method: {{name: fusion, members: {{tree: {run}/stages/tree}}}}\n")
    assert "| D/dexa | 0, 1 | 15.00 ± 7.07 |" in seeds_table(runs, columns=["P@1"])
    text = (runs[1] / "config.yaml").read_text()
    other = text.replace("stages/tree", "stages/forest")
    (runs[1] / "config.yaml").write_text(other)
    with pytest.raises(ValueError, match="has another config"):
        seeds_table(runs, columns=["P@1"])


def test_rows_of_one_config_are_named(make_run):
    runs = [
        make_run(0, 10.0, "first"),
        make_run(1, 20.0, "second"),
        make_run(0, 3.0, "other", epochs=4),
    ]
    assert rows_alike(runs, "tst").startswith("D/first, D/second: runs of one config")
    assert rows_alike(runs[1:], "tst") == ""


def test_runs_that_do_not_belong_together_are_named(make_run, tmp_path):
    one = make_run(0, 10.0)
    for folders, message in (
        ([one, make_run(0, 11.0)], r"D/dexa: seeds \[0, 0\]: a seed stands twice"),
        (
            [one, make_run(1, 10.0, epochs=9)],
            r"seed 1 has another config than that of seed 0 \(sections train\)",
        ),
        ([tmp_path / "none"], "none: not a run folder"),
        (
            [make_run(2, 1.0, split="val")],
            r"tst_metrics\.json: no such file; make it with: python eval\.py tst",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            seeds_table(folders)
    with pytest.raises(
        ValueError, match="no run has any of the metrics P@9; what runs have: P@1, R@100"
    ):
        seeds_table([one], columns=["P@9"])


def test_the_command_prints_the_table_or_one_error(make_run, capsys):
    main(["seeds", str(make_run(0, 10.0, split="val")), "--split", "val", "--metrics", "P@1"])
    assert capsys.readouterr().out.splitlines()[2] == "| D/dexa | 0 | 10.00 |"
    with pytest.raises(SystemExit, match="error: none: not a run folder"):
        main(["seeds", "none"])


def test_a_paper_gets_rules_of_booktabs_and_escaped_names(make_run):
    runs = [make_run(0, 10.0, "a_b%"), make_run(1, 20.0, "a_b%"), make_run(0, 5.0, "c&d")]
    assert seeds_table(runs, ["P@1"], "latex").splitlines() == [
        r"% \usepackage{booktabs}",
        r"\begin{tabular}{llr}",
        r"\toprule",
        r"config & seeds & P@1 \\",
        r"\midrule",
        r"D/a\_b\% & 0, 1 & $15.00 \pm 7.07$ \\",
        r"D/c\&d & 0 & $5.00$ \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert escaped("\\$#{}~^ é") == (
        r"\textbackslash{}\$\#\{\}\textasciitilde{}\textasciicircum{} é"
    )


def test_a_program_gets_a_column_a_number(make_run):
    runs = [make_run(0, 10.0, "a"), make_run(1, 20.0, "a"), make_run(0, 5.0, "c")]
    lines = seeds_table(runs, ["R@100", "P@1"], "csv").splitlines()
    assert lines == [
        "config,seeds,R@100,R@100 sd,P@1,P@1 sd",
        'D/a,"0, 1",30,14.1421,15,7.07107',
        "D/c,0,10,,5,",
    ]


def test_a_run_that_lacks_a_metric_is_named(make_run, capsys):
    runs = [make_run(0, 10.0), make_run(1, 20.0), make_run(0, 5.0, "ngame")]
    (runs[1] / "tst_metrics.json").write_text(json.dumps({"P@1": 20.0, "PSP@5": 3.0}))
    told = tables.seeds_table(runs)
    assert written(told.table, "markdown").splitlines() == [
        "| config | seeds | P@1 | PSP@5 | R@100 |",
        "| --- | --- | --- | --- | --- |",
        "| D/dexa | 0, 1 | 15.00 ± 7.07 | – | – |",
        "| D/ngame | 0 | 5.00 | – | 10.00 |",
    ]
    assert [note.partition(";")[0] for note in told.notes] == [
        f"{runs[0] / 'tst_metrics.json'}: no PSP@5",
        f"{runs[1] / 'tst_metrics.json'}: no R@100",
        f"{runs[2] / 'tst_metrics.json'}: no PSP@5",
    ]
    assert ",,\n" in written(told.table, "csv") + "\n"
    assert "& -- & --" in written(told.table, "latex")
    main(["seeds", *map(str, runs), "--metrics", "P@1", "P@7"])
    err = capsys.readouterr().err
    assert err.startswith("no run has P@7; left out. Runs have: P@1, R@100, PSP@5\n")


def test_an_unknown_form_is_told_with_the_nearest(make_run):
    with pytest.raises(ValueError, match="'latx' is no form of a table; did you mean 'latex'"):
        seeds_table([make_run(0, 1.0)], ["P@1"], "latx")
