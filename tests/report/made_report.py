"""The data of reports that were never run, with everything that a page can show."""

import numpy as np
import scipy.sparse as sp

from utils.metrics import evaluate, reliability
from utils.report import html, measured, point_table

COUNT = 120  # points: three pages
LABELS = 30
EVIL = "</script><img src=x onerror=\"document.title='hacked'\"><b>&amp;"
QUOTED = 4  # a point whose text has quotes, a line end and markup
MEMBERS = ("dual", "tree")


def label_name(label):
    """The text of a label; that of label 3 would break a careless page."""
    return f"label{label}{EVIL if label == 3 else ''}"


def made_scores(count):
    """(scores of each of `count` runs, relevance)."""
    rng = np.random.default_rng(0)
    relevance = sp.csr_matrix((rng.random((COUNT, LABELS)) < 0.1).astype(np.float32))
    return [sp.csr_matrix(rng.random((COUNT, LABELS))) for _ in range(count)], relevance


def made_points(scores, relevance, members=()):
    """Entries of the table of one run, or of several beside each other."""
    rng = np.random.default_rng(1)
    views = [
        point_table.PointViews(
            name, rng.integers(0, LABELS, (COUNT, 3)), rng.normal(size=(COUNT, point_table.SHOWN))
        )
        for name in members
    ]
    texts = [
        f"point of word{rng.integers(9)} number{i} {'long' * (60 * (i == 1))}" for i in range(COUNT)
    ]
    texts[QUOTED] += f' {EVIL}, "quoted"\nsecond line'
    chosen = np.arange(COUNT)
    tables = [point_table.points_table(chosen, texts, s, relevance, views) for s in scores]
    if len(scores) == 1:
        return tables[0]
    return [{**p[0], "top": [q["top"] for q in p]} for p in zip(*tables, strict=True)]


def made_stages():
    """Two stages and the run: one with a best epoch that is not its last."""

    def curve(kind, name, values):
        points = [[epoch, value] for epoch, value in enumerate(values, 1)]
        return {"kind": kind, "name": name, "points": points}

    learned = [
        curve("train", "loss", [3.0, 1.5, 1.0, 0.8]),
        {"kind": "step", "name": "loss", "points": [[0.5, 4.0], [2.75, 1.25], [4, 0.7]]},
        curve("val", "P@1", [31.0, 39.5, 42.0, 41.0]),
        curve("val", "P@5", [15.0, 20.0, 21.0, 20.5]),
    ]
    whole = {"epochs": 4, "best_epoch": 3, "seconds": 75.0}
    at_once = {"epochs": 0, "best_epoch": 0, "seconds": 4.0, "validation": {}, "curves": []}
    return [
        {
            "name": "zebra",
            "method": "dexml",
            **whole,
            "validation": {"P@1": 42.0},
            "curves": learned,
        },
        {"name": "apple", "method": "xr-linear", **at_once},
        {"name": "fuser", "method": "fusion", **at_once},
    ]


def made_comparison(runs):
    """A difference that is clear, and one that is not."""
    rows = []
    for i, name in enumerate(runs):
        differences = [[-1.5 * i, -2.0 * i, -1.0 * i, True], [0.25, -0.5, 1.0, False]]
        rows.append(
            {"name": name, "values": [42.0, 21.0], "differences": differences if i else None}
        )
    return {"columns": ["P@1", "PSP@5"], "rows": rows}


def made_label_table(relevance):
    rows = []
    for label in range(LABELS):
        positives = int(relevance[:, [label]].sum())
        values = [None, 0.0, None, 12.5] if label % 7 == 0 else [50.0, 25.0, 33.33, 40.0]
        rows.append([label, label_name(label), label, positives, label % 7, *values])
    columns = ["label", "text", "training_points", "points", "predicted"]
    columns += ["precision", "recall", "F1", "average_precision"]
    return {"columns": columns, "rows": rows, "hidden": 70}


def made_report(runs=()):
    """A report with all its sections, of a fusion of two members or of compared runs."""
    scores, relevance = made_scores(len(runs) or 1)
    members = () if runs else MEMBERS
    ids = np.argsort(-scores[0].toarray(), axis=1)
    deciles = measured.by_decile(ids, relevance, np.arange(LABELS), (1, 5))
    points = made_points(scores, relevance, members)
    shared = {
        "title": f"made / report {EVIL}",
        "made": {"commit": "0123abc", "seconds of training": 83.0, EVIL: EVIL},
        "deciles": [{"run": run, **deciles} for run in runs] or [deciles],
        "points": points,
        "num_points": COUNT,
        "labels": {label: label_name(label) for label in range(LABELS)},
        "label_counts": {label: label for label in range(LABELS)},
    }
    if runs:
        return html.ReportData(
            facts={"data set": "made"},
            metrics={},
            comparison=made_comparison(runs),
            runs=list(runs),
            **shared,
        )
    rng = np.random.default_rng(2)
    grid = np.linspace(0, 1, 21)
    metrics = evaluate(scores[0], relevance, ks=(1, 5))
    return html.ReportData(
        facts={"data set": "made", "points": 12345},
        metrics={**metrics, "PSP@5": 21.25, "R@10": 61.0},
        configs={"resolved": f"method: {EVIL}"},
        peers={"other": {"P@1": 40.0, "PSP@5": 25.0}, EVIL: {"P@1": 1.0, "P@5": 1.0}},
        peers_source="measured",
        members=[
            {"name": name, "metrics": {"P@1": 30.0 + i, "PSP@5": 20.0}}
            for i, name in enumerate(members)
        ],
        members_fused={"P@1": 42.0, "PSP@5": 21.25},
        members_points=COUNT,
        stages=made_stages(),
        groups=measured.by_volume(ids, relevance, np.arange(LABELS), (1, 5)),
        score_is="probability",
        reliability=reliability(rng.random(500), rng.random(500) < 0.5),
        threshold_curve={
            "threshold": grid.tolist(),
            "precision": (100 * grid).tolist(),
            "recall": (100 - 100 * grid).tolist(),
            "micro_F1": (200 * grid * (1 - grid)).tolist(),
        },
        threshold={"value": 0.55, "chosen_for": "micro_f1", "labels": 4},
        label_table=made_label_table(relevance),
        confusions=[("one label", EVIL, 3)],
        clusters=[{"name": "tree 1", **measured.cluster_histogram(np.arange(9))}],
        examples=measured.cluster_examples(
            {"tree 1": sp.csr_matrix(np.eye(2))}, np.array([1, 2]), ["a", EVIL]
        ),
        **shared,
    )
