"""A run that starts from one with fewer labels keeps what is known of them, by name."""

import shutil

import numpy as np
import pytest
import scipy.sparse as sp

import train
from predict import Predictor
from utils.errors import InputError


@pytest.fixture
def larger(tiny_root, tmp_path):
    """The data set with a label more in front, its labels in another order."""
    folder = tmp_path / "sets" / "larger"
    shutil.copytree(tiny_root / "tiny", folder)
    texts = (folder / "raw" / "Y.txt").read_text().splitlines()
    (folder / "raw" / "Y.txt").write_text("\n".join(["zebra", *reversed(texts)]) + "\n")
    for split in ("trn", "tst"):
        relevance = sp.load_npz(folder / f"Y.{split}.npz")[:, ::-1]
        more = sp.csr_matrix((relevance.shape[0], 1), dtype=np.float32)
        sp.save_npz(folder / f"Y.{split}.npz", sp.hstack([more, relevance]).tocsr())
    for path in folder.glob("filter_labels_*.txt"):
        path.unlink()
    return folder


@pytest.mark.parametrize("before", ["ova", "dexml"])
def test_known_labels_keep_their_rows_at_other_ids(make_config, larger, tmp_path, before):
    """With a learning rate of 0 the rows are those that the run starts with."""
    after = "ova" if before == "ova" else "xc"
    first = train.fit(make_config(method={"name": before}, run={"dir": str(tmp_path / "first")}))
    second = train.fit(
        make_config(
            method={"name": after, **({"batches": "random"} if after == "xc" else {})},
            data={"root": str(larger.parent), "name": "larger"},
            optim={"lr": 1e-12, "weight_decay": 0.0},
            run={"dir": str(tmp_path / "second"), "start_from": str(first)},
            train={"epochs": 1},
        )
    )
    old = next(iter(Predictor(first).ranker.vectors().values())).rows
    new = next(iter(Predictor(second).ranker.vectors().values())).rows
    np.testing.assert_allclose(np.asarray(new)[1:], np.asarray(old)[::-1], atol=1e-5)
    if before == "ova":
        np.testing.assert_allclose(np.asarray(new)[0], 0, atol=1e-5)
    else:  # from its text, by the encoder
        zebra = Predictor(first, labels=["zebra"]).ranker.vectors()["embeddings"].rows
        np.testing.assert_allclose(np.asarray(new)[0], np.asarray(zebra)[0], atol=1e-5)


def test_auxiliary_vectors_of_known_labels_are_kept(make_config, larger, tmp_path):
    """A new one starts as `vector_init` says; no step changes them."""
    method = {"name": "dexa", "num_vectors": "labels", "vector_init": "zeros"}
    first = train.fit(
        make_config(method=method, train={"epochs": 1}, run={"dir": str(tmp_path / "first")})
    )
    second = train.fit(
        make_config(
            method=method,
            data={"root": str(larger.parent), "name": "larger"},
            run={"dir": str(tmp_path / "second"), "start_from": str(first)},
            train={"epochs": 0},
        )
    )
    old = Predictor(first).ranker.auxiliary
    new = Predictor(second).ranker.auxiliary
    assert old.table.any(1).sum() > 10 and new.clusters.tolist() == list(range(21))
    assert new.table[1:].tolist() == old.table.flip(0).tolist()
    assert not new.table[0].any()


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ({"name": "surrogate", "num_clusters": 4}, "its clusters of labels"),
        ({"name": "elias-1", "max_leaf": 4}, "its graph"),
        ({"name": "dexa", "num_vectors": 4}, "auxiliary vectors that labels share"),
    ],
)
def test_what_labels_share_is_refused_for_other_labels(make_config, larger, tmp_path, method, what):
    settings = {"method": method, "train": {"epochs": 1 if "max_leaf" in method else 0}}
    first = train.fit(make_config(**settings, run={"dir": str(tmp_path / "first")}))
    message = f"{what} cannot be taken, that run has 20 labels and this one 21; methods that .*ova"
    with pytest.raises(InputError, match=message) as error:
        train.fit(
            make_config(
                data={"root": str(larger.parent), "name": "larger"},
                run={"dir": str(tmp_path / "second"), "start_from": str(first)},
                **settings,
            )
        )
    assert "\n" not in str(error.value)


def test_labels_that_have_nothing_in_common_are_refused(make_config, larger, tmp_path):
    first = train.fit(make_config(run={"dir": str(tmp_path / "first")}))
    path = larger / "raw" / "Y.txt"
    path.write_text("".join(f"other {number}\n" for number in range(21)))
    with pytest.raises(InputError, match="none of the 21 labels of .*larger is known to that run"):
        train.fit(
            make_config(
                method={"name": "xc", "batches": "random"},
                data={"root": str(larger.parent), "name": "larger"},
                run={"dir": str(tmp_path / "second"), "start_from": str(first)},
            )
        )
