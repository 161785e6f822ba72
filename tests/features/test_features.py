"""TF-IDF: given features are only read, built ones lie apart by their texts, and a model keeps its
own vocabulary."""

import logging
import re
import unicodedata

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer

from engine.conformance.made import write_dataset
from utils.config.config import DataConfig
from utils.errors import InputError
from utils.features.files import choose_rule, features_by, find_features, grouping_features
from utils.features.tfidf import HEADER, RULES, TextFeatures, has_no_blanks, rule_of
from utils.text import iter_lines

WORDS = RULES["words-2"]


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "tiny")


def give(folder, names=("X.trn.npz", "X.tst.npz", "Xf.txt")):
    """Put features that were built beside the texts, as if they had come with them."""
    built = find_features(folder, DataConfig(features="texts"))
    for name in names:
        (folder / name).write_bytes((built.folder / name).read_bytes())
    return built


def edit(folder, **texts):
    """Replace words in the texts of splits: the same number of lines."""
    for split, (old, new) in texts.items():
        path = folder / "raw" / f"{split}_X.txt"
        path.write_text(path.read_text().replace(old, new))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_built_apart_and_equal_to_the_library(folder):
    before = files_of(folder)
    files = find_features(folder, DataConfig())
    assert files_of(folder) == before  # what a user gave is as it was
    assert files.folder.parent == folder / "features"
    assert sorted(files_of(files.folder)) == ["X.trn.npz", "X.tst.npz", "Xf.txt"]
    texts = {s: (folder / "raw" / f"{s}_X.txt").read_text().splitlines() for s in ("trn", "tst")}
    reference = TfidfVectorizer(ngram_range=(1, 2), min_df=2, token_pattern=r"(?u)\b\w+\b")
    trn = files.check()
    tst = files.matrix("tst")
    np.testing.assert_allclose(
        trn.toarray(), reference.fit_transform(texts["trn"]).toarray(), atol=1e-6
    )
    np.testing.assert_allclose(
        tst.toarray(), reference.transform(texts["tst"]).toarray(), atol=1e-6
    )
    norms = sp.linalg.norm(trn, axis=1)
    np.testing.assert_allclose(norms[norms > 0], 1, rtol=1e-5)
    new = TextFeatures(files.vocabulary)
    np.testing.assert_allclose(new(texts["tst"]).toarray(), tst.toarray(), atol=1e-6)
    np.testing.assert_array_equal(
        new.of_lines(iter_lines(folder / "raw" / "tst_X.txt")).toarray(),
        new(texts["tst"]).toarray(),
    )
    assert new(["", "neverseen"]).nnz == 0


def test_other_texts_have_other_features_and_other_line_ends_the_same(folder):
    first = find_features(folder, DataConfig())
    for split in ("trn", "tst"):
        path = folder / "raw" / f"{split}_X.txt"
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert find_features(folder, DataConfig()).folder == first.folder
    edit(folder, trn=("tool", "wolf"))
    second = find_features(folder, DataConfig())
    assert second.folder != first.folder
    assert "wolf\t" in second.vocabulary.read_text()
    assert "wolf\t" not in first.vocabulary.read_text()
    edit(folder, trn=("wolf", "tool"))
    assert find_features(folder, DataConfig()).folder == first.folder


def test_similar_texts_are_grouped_by_the_first_rule(folder):
    """So that a run of another version holds out the same points."""
    edit(folder, trn=("tool", "c c++"))
    texts = (folder / "raw" / "trn_X.txt").read_text().splitlines()
    reference = TfidfVectorizer(
        ngram_range=(1, 2), min_df=2, token_pattern=r"(?u)\b\w+\b"
    ).fit_transform(texts)
    found = grouping_features(folder, DataConfig())
    np.testing.assert_allclose(found.toarray(), reference.toarray(), atol=1e-6)
    assert find_features(folder, DataConfig()).matrix("trn").shape != found.shape
    characters = DataConfig(terms="characters")
    assert (
        grouping_features(folder, characters).shape
        == find_features(folder, characters).matrix("trn").shape
    )
    give(folder)
    assert grouping_features(folder, DataConfig()).shape != reference.shape


def test_a_data_folder_that_cannot_be_written(folder, tmp_path):
    (folder / "features").write_text("in the way: as a folder on a read-only disk")
    with pytest.raises(
        InputError, match=r"features: cannot hold TF-IDF features \(.*\); set data.feature_cache to"
    ):
        find_features(folder, DataConfig())
    files = find_features(folder, DataConfig(feature_cache=str(tmp_path / "elsewhere" / "deep")))
    assert files.folder.parent == tmp_path / "elsewhere" / "deep"
    assert files.check().shape[0] == 60


def test_given_features_are_used_and_checked(folder):
    for split, rows in (("trn", 60), ("tst", 20)):
        sp.save_npz(folder / f"X.{split}.npz", sp.eye(rows, 60, format="csr"))
    trn = find_features(folder, DataConfig()).check()
    assert trn.shape == (60, 60)
    assert trn.dtype == np.float32
    assert find_features(folder, DataConfig(features="texts")).check().shape != (60, 60)
    sp.save_npz(folder / "X.tst.npz", sp.eye(19, 60, format="csr"))
    with pytest.raises(InputError, match=r"X.tst.npz has 19 rows but raw/tst_X.txt has 20 lines"):
        find_features(folder, DataConfig()).check()
    sp.save_npz(folder / "X.tst.npz", sp.eye(20, 61, format="csr"))
    with pytest.raises(InputError, match="X.trn.npz has 60 columns, X.tst.npz 61"):
        find_features(folder, DataConfig()).check()
    (folder / "X.tst.npz").unlink()
    (folder / "X.tst.npz").mkdir()
    with pytest.raises(InputError, match=r"X.tst.npz: "):
        find_features(folder, DataConfig()).check()


def test_features_alone_are_checked_against_the_relevance(folder):
    columns = give(folder).check().shape[1]
    for split in ("trn", "tst"):
        (folder / "raw" / f"{split}_X.txt").unlink()
    assert find_features(folder, DataConfig()).check().shape == (60, columns)
    sp.save_npz(folder / "X.tst.npz", sp.eye(19, columns, format="csr"))
    with pytest.raises(InputError, match=r"X.tst.npz has 19 rows but Y.tst.npz has 20 rows"):
        find_features(folder, DataConfig()).check()
    (folder / "X.trn.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"X.trn.npz: not a scipy sparse matrix"):
        find_features(folder, DataConfig()).check()


@pytest.mark.parametrize(("there", "missing"), [("trn", "tst"), ("tst", "trn")])
def test_one_given_matrix_is_never_replaced(folder, there, missing):
    sp.save_npz(
        folder / f"X.{there}.npz",
        sp.random(60 if there == "trn" else 20, 50, 0.2, "csr", np.float32),
    )
    before = files_of(folder)
    with pytest.raises(
        InputError,
        match=rf"X.{missing}.npz: no such file, but X.{there}.npz is there.*features texts",
    ):
        find_features(folder, DataConfig()).check()
    if there == "trn":  # all that clustering needs
        assert find_features(folder, DataConfig()).matrix("trn").shape == (60, 50)
    assert find_features(folder, DataConfig(features="texts")).check().shape[0] == 60
    assert files_of(folder) == before


def test_the_other_matrix_is_made_by_a_given_vocabulary(folder):
    built = give(folder, ["X.trn.npz", "Xf.txt"])
    before = files_of(folder)
    files = find_features(folder, DataConfig())
    np.testing.assert_allclose(files.check().toarray(), built.matrix("trn").toarray())
    np.testing.assert_allclose(
        files.matrix("tst").toarray(), built.matrix("tst").toarray(), atol=1e-6
    )
    assert files_of(folder) == before
    # as the Extreme Classification Repository has them
    (folder / "Xf.txt").write_text("names\nwithout\nidf\n")
    with pytest.raises(
        InputError, match=r"X.tst.npz: no such file.*Xf.txt: expected `term <TAB> idf`"
    ):
        find_features(folder, DataConfig()).check()


def test_given_features_of_other_texts_are_noticed(folder, caplog):
    give(folder)
    find_features(folder, DataConfig()).check()
    assert "may have been edited" not in caplog.text
    edit(folder, trn=("linux", "wolf"))
    find_features(folder, DataConfig()).check()
    assert re.search(
        r"X.trn.npz: \d+ of 60 rows looked at are not what Xf.txt makes of their texts", caplog.text
    )


def test_a_saved_vocabulary_is_kept_when_texts_change(folder, tmp_path):
    first = find_features(folder, DataConfig())
    own = tmp_path / "model-Xf.txt"
    own.write_bytes(first.vocabulary.read_bytes())
    expected = first.matrix("tst")
    same = features_by(own, folder, DataConfig(), "tst")
    np.testing.assert_array_equal(same.toarray(), expected.toarray())
    edit(folder, trn=("tool", "wolf"))
    find_features(folder, DataConfig())
    np.testing.assert_allclose(
        features_by(own, folder, DataConfig(), "tst").toarray(), expected.toarray(), atol=1e-6
    )
    give(folder)  # of other texts: not what the model reads
    assert features_by(own, folder, DataConfig(), "trn").shape[1] == expected.shape[1]
    (folder / "raw" / "tst_X.txt").unlink()
    with pytest.raises(
        InputError,
        match=r"tst_X.txt: no such file; expected it, or .*X.tst.npz with the vocabulary",
    ):
        features_by(own, folder, DataConfig(), "tst")


def test_an_old_vocabulary_is_read_by_the_old_rule(tmp_path):
    texts = ["C++ in Hindi: हिन्दी", "c cafe\u0301"]
    reference = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", dtype=np.float32)
    expected = reference.fit_transform(texts)
    old = tmp_path / "Xf.txt"
    pairs = zip(reference.get_feature_names_out(), reference.idf_, strict=True)
    old.write_text("".join(f"{term}\t{idf:.9g}\n" for term, idf in pairs))
    assert rule_of(old) == "words-1"
    np.testing.assert_allclose(TextFeatures(old)(texts).toarray(), expected.toarray(), atol=1e-6)
    old.write_text(f"{HEADER}words-99\na\t1\n")
    with pytest.raises(
        InputError, match="Xf.txt: its terms are of the rule 'words-99', expected one of words-1"
    ):
        TextFeatures(old)
    old.write_text("term\tmuch\n")
    with pytest.raises(InputError, match=r"Xf.txt: expected `term <TAB> idf`"):
        TextFeatures(old)
    old.write_text("one\t1\nother\tnan\n")
    with pytest.raises(InputError, match=r"Xf.txt: the idf of 'other' is not finite"):
        TextFeatures(old)


def test_texts_without_words_are_an_error_that_leaves_nothing(folder):
    (folder / "raw" / "trn_X.txt").write_text("!\n?\n")
    with pytest.raises(InputError, match="no word occurs in 2 texts"):
        find_features(folder, DataConfig())
    assert not list(folder.rglob("X*"))
    assert not list((folder / "features").iterdir())


# -------------------------------- terms


@pytest.mark.parametrize(
    "word",
    [
        "हिन्दी",
        "तेलुगू",
        "తెలుగు",
        "বাংলা",
        "தமிழ்",
        "മലയാളം",
        "ಕನ್ನಡ",
        "मराठी",
        "ไทย",
        "ລາວ",
        "الْعَرَبِيَّةُ",
        "שָׁלוֹם",
        "می‌خواهم",
        "क्‍ष",
        "мо́локо",
        "c++",
        "c#",
        "f#",
        "g++",
        "a+",
        "libstdc++",
        ".net",
        "😀",
        "👩‍👩‍👧",
        "🇩🇪",
        "👍🏽",
        "☃",
        "naïve",
        "foo_bar",
        "x86",
    ],
)
def test_words_stay_whole(word):
    expected = unicodedata.normalize("NFC", word)
    assert WORDS(f"({word}, x).") == [expected, "x", f"{expected} x"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a+b", ["a", "b", "a b"]),
        ("issue#12", ["issue", "12", "issue 12"]),
        ("C++11", ["c++", "11", "c++ 11"]),
        ("C/C++", ["c", "c++", "c c++"]),
        ("asp.net", ["asp", "net", "asp net"]),
        ("", []),
        ("--- ...", []),
        ("Objective-C", ["objective", "c", "objective c"]),
        ("❤️❤", ["❤", "❤", "❤ ❤"]),
        ("cafe\u0301", ["caf\u00e9"]),
        ("🇩🇪🇫🇷", ["🇩🇪", "🇫🇷", "🇩🇪 🇫🇷"]),
    ],
)
def test_words_and_pairs(text, words):
    assert WORDS(text) == words


@pytest.mark.parametrize(
    "text",
    [
        "我们喜欢猫",
        "東京で猫を見た",
        "แมวร้องเหมียวทุกเช้า",
        "ແມວຮ້ອງທຸກມື້",
        "ឆ្មាយំរាល់ព្រឹក",
        "猫叫",
        "小米(红米)手机保护壳 黑色 128G",
    ],
)
def test_texts_without_blanks_are_seen(text):
    assert has_no_blanks(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "हिन्दी में",
        "안녕하세요 세계",
        "我们 喜欢 猫",
        "the word 猫 in Chinese",
        "😀😀",
        "שלום",
    ],
)
def test_texts_with_blanks_are_seen(text):
    assert not has_no_blanks(text)


def test_character_ngrams_are_chosen_where_most_texts_have_no_blanks(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = tmp_path / "texts.txt"
    path.write_text("我们喜欢猫\n东京的狗\na cat\n", encoding="utf-8")
    assert choose_rule(path, "auto") == "characters-1"
    assert (
        "2 of 3 texts looked at have no blanks between words: their terms are character n-grams"
        in caplog.text
    )
    assert choose_rule(path, "words") == "words-2"
    path.write_text("我们喜欢猫\na dog\na cat\n", encoding="utf-8")
    assert choose_rule(path, "auto") == "words-2"
    assert choose_rule(path, "characters") == "characters-1"
    assert RULES["characters-1"]("猫叫了吗 ab") == [
        "猫",
        "叫",
        "了",
        "吗",
        "猫叫",
        "叫了",
        "了吗",
        "猫叫了",
        "叫了吗",
        "猫叫了吗",
        "a",
        "b",
        "ab",
    ]


def test_the_rule_goes_with_the_vocabulary(folder):
    files = find_features(folder, DataConfig(terms="characters"))
    assert files.vocabulary.read_text().startswith("# terms: characters-1\n")
    texts = (folder / "raw" / "tst_X.txt").read_text().splitlines()
    new = TextFeatures(files.vocabulary)(texts)
    np.testing.assert_allclose(new.toarray(), files.matrix("tst").toarray(), atol=1e-6)
    assert find_features(folder, DataConfig()).folder != files.folder
