import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer

from tests.conftest import write_dataset
from utils.features import load_features
from utils.text_features import TextFeatures


def test_built_when_missing_and_equal_to_the_library(tmp_path):
    folder = write_dataset(tmp_path / "tiny")
    trn, tst = load_features(folder)
    texts = {s: (folder / "raw" / f"{s}_X.txt").read_text().splitlines() for s in ("trn", "tst")}
    reference = TfidfVectorizer(ngram_range=(1, 2), min_df=2, token_pattern=r"(?u)\b\w+\b")
    np.testing.assert_allclose(trn.toarray(), reference.fit_transform(texts["trn"]).toarray(), atol=1e-6)
    np.testing.assert_allclose(tst.toarray(), reference.transform(texts["tst"]).toarray(), atol=1e-6)
    norms = sp.linalg.norm(trn, axis=1)
    np.testing.assert_allclose(norms[norms > 0], 1, rtol=1e-5)
    new = TextFeatures(folder / "Xf.txt")
    np.testing.assert_allclose(new(texts["tst"]).toarray(), tst.toarray(), atol=1e-6)
    assert new(["", "neverseen"]).nnz == 0
    (tmp_path / "broken.txt").write_text("term\tmuch\n")
    with pytest.raises(ValueError, match=r"broken.txt: expected `term <TAB> idf`"):
        TextFeatures(tmp_path / "broken.txt")


def test_features_that_come_with_the_data_are_used(tmp_path):
    folder = write_dataset(tmp_path / "tiny")
    for split, rows in (("trn", 60), ("tst", 20)):
        sp.save_npz(folder / f"X.{split}.npz", sp.eye(rows, 60, format="csr"))
    trn, tst = load_features(folder)
    assert trn.shape == (60, 60)
    assert trn.dtype == np.float32
    sp.save_npz(folder / "X.tst.npz", sp.eye(19, 60, format="csr"))
    with pytest.raises(ValueError, match=r"X.tst.npz has 19 rows but raw/tst_X.txt has 20 lines"):
        load_features(folder)
    sp.save_npz(folder / "X.tst.npz", sp.eye(20, 61, format="csr"))
    with pytest.raises(ValueError, match="X.trn.npz has 60 columns, X.tst.npz 61"):
        load_features(folder)


def test_features_alone_are_checked_against_the_relevance(tmp_path):
    folder = write_dataset(tmp_path / "tiny")
    load_features(folder)
    for split in ("trn", "tst"):
        (folder / "raw" / f"{split}_X.txt").unlink()
    assert load_features(folder)[1].shape[0] == 20
    sp.save_npz(folder / "X.tst.npz", sp.eye(19, load_features(folder)[0].shape[1], format="csr"))
    with pytest.raises(ValueError, match=r"X.tst.npz has 19 rows but Y.tst.npz has 20 rows"):
        load_features(folder)
    (folder / "X.trn.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"X.trn.npz: not a scipy sparse matrix"):
        load_features(folder)


def test_texts_without_words_are_an_error_that_leaves_nothing(tmp_path):
    folder = write_dataset(tmp_path / "tiny")
    (folder / "raw" / "trn_X.txt").write_text("!\n?\n")
    with pytest.raises(ValueError, match="no word occurs in 2 texts"):
        load_features(folder)
    assert not list(folder.glob("X*"))
