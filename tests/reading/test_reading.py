"""utils/reading: what comes from outside is read as scipy and numpy would, or refused in one line
with the file."""

import io
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
import scipy.sparse as sp

from utils.errors import InputError
from utils.reading import archives, arrays, matrices
from utils.reading.arrays import read_array, read_arrays
from utils.reading.input_files import check_file, present
from utils.reading.matrices import matrix_header, read_matrix
from utils.reading.matrix_checks import RELEVANCE, SCORES
from utils.sparse import canonical, check_relevance

FORMATS = ("csr", "csc", "coo", "bsr", "dia")
MATRIX = sp.random(6, 4, 0.5, "csr", np.float64, random_state=3)


def npz(path, **arrays):
    """Write arrays as they are, whatever they say."""
    np.savez(path, **arrays)
    return path


def parts(kind="csr", matrix=MATRIX, **changes):
    """The members of a matrix in a file, some of them changed."""
    found = getattr(sp, f"{kind}_matrix")(matrix)
    names = {"coo": ("row", "col"), "dia": ("offsets",)}.get(kind, ("indices", "indptr"))
    members = {"format": kind.encode(), "shape": np.array(found.shape), "data": found.data}
    members |= {name: getattr(found, name) for name in names}
    members |= {name: value for name, value in changes.items() if value is not None}
    return {
        name: value
        for name, value in members.items()
        if name not in changes or changes[name] is not None
    }


def refusal(function, *arguments, **options):
    """The message of the InputError, of one line."""
    with pytest.raises(InputError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# -------------------------------- what is well


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("container", ["matrix", "array"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_reads_as_scipy_reads_it(tmp_path, kind, container, compressed):
    path = tmp_path / "Y.npz"
    sp.save_npz(path, getattr(sp, f"{kind}_{container}")(MATRIX), compressed=compressed)
    found = read_matrix(path, dtype=None)
    assert type(found) is sp.csr_matrix and found.dtype == np.float64 and found.has_canonical_format
    np.testing.assert_array_equal(found.toarray(), MATRIX.toarray())
    assert read_matrix(path).dtype == np.float32
    assert matrix_header(path)[:2] == MATRIX.shape


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", ">i4", "u8", "f2", ">f4", ">f8", "g"])
def test_every_real_type_is_read(tmp_path, dtype):
    matrix = sp.csr_matrix(np.array([[0, 1, 0], [1, 0, 1]]))
    path = npz(
        tmp_path / "Y.npz",
        **parts(matrix=matrix, data=np.ones(3, dtype), indices=matrix.indices.astype(">i8")),
    )
    np.testing.assert_array_equal(read_matrix(path).toarray(), matrix.toarray())


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (3, 4)])
@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "dia"])
def test_empty_matrices(tmp_path, kind, shape):
    sp.save_npz(tmp_path / "Y.npz", getattr(sp, f"{kind}_matrix")(shape))
    found = read_matrix(tmp_path / "Y.npz")
    assert found.shape == shape and found.nnz == 0


def test_files_of_old_scipy_are_read(tmp_path):
    for word in ("csr", np.array("csr"), np.array(b"csr")):
        path = npz(tmp_path / "Y.npz", **parts(format=word))
        np.testing.assert_array_equal(read_matrix(path, dtype=None).toarray(), MATRIX.toarray())
    coo = sp.coo_matrix(MATRIX)
    path = npz(
        tmp_path / "Y.npz",
        format=b"coo",
        shape=coo.shape,
        data=coo.data,
        coords=np.stack([coo.row, coo.col]),
    )
    np.testing.assert_array_equal(read_matrix(path, dtype=None).toarray(), MATRIX.toarray())


def test_explicit_zeros_and_infinite_scores_stay(tmp_path):
    matrix = sp.csr_matrix(([0.0, -np.inf, 2.0], [0, 2, 1], [0, 2, 3]), (2, 3))
    sp.save_npz(tmp_path / "s.npz", matrix)
    assert read_matrix(tmp_path / "s.npz", SCORES).data.tolist() == [0, -np.inf, 2]
    matrix.data[1] = np.nan
    sp.save_npz(tmp_path / "s.npz", matrix)
    assert refusal(read_matrix, tmp_path / "s.npz", SCORES).endswith(
        "s.npz: expected a score other than NaN, got nan at row 0, label 2"
    )


@pytest.mark.parametrize(
    ("dtype", "value", "times"),
    [
        (np.int8, 100, 2),
        (np.uint8, 128, 2),
        (np.uint8, 255, 4),
        (np.int16, 30_000, 3),
        (np.bool_, True, 3),
        (np.float16, 60_000, 2),
        (np.int32, 2**31 - 1, 2),
    ],
)
@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr"])
def test_entries_that_stand_twice_add_up_without_overflow(tmp_path, kind, dtype, value, times):
    if dtype == np.float16 and kind in ("coo", "bsr"):
        pytest.skip("scipy makes none")
    data = np.full(times, value, dtype)
    ids = np.full(times, 1)
    pointers = np.array([0, times])
    if kind == "coo":
        matrix = sp.coo_matrix((data, (ids * 0, ids)), (1, 3))
    elif kind == "csc":
        matrix = sp.csc_matrix((data, ids * 0, np.array([0, 0, times, times])), (1, 3))
    elif kind == "bsr":
        matrix = sp.bsr_matrix((data[:, None, None], ids, pointers), (1, 3))
    else:
        matrix = sp.csr_matrix((data, ids, pointers), (1, 3))
    sp.save_npz(tmp_path / "Y.npz", matrix)
    expected = [[0, float(value) * times, 0]]
    np.testing.assert_allclose(read_matrix(tmp_path / "Y.npz", RELEVANCE).toarray(), expected)
    np.testing.assert_allclose(check_relevance(matrix, "Y").toarray(), expected)
    np.testing.assert_allclose(canonical(matrix).toarray(), expected)
    assert matrix.nnz == times and matrix.dtype == dtype  # what was given is as it was


def test_a_sum_beyond_float32_is_refused(tmp_path):
    matrix = sp.coo_matrix((np.full(2, 3e38, np.float32), ([0, 0], [1, 1])), (2, 2))
    sp.save_npz(tmp_path / "Y.npz", matrix)
    assert "Y.npz: entries that stand more than once add up beyond" in refusal(
        read_matrix, tmp_path / "Y.npz"
    )


# -------------------------------- what is not


def _wrong(kind):
    """Changes to the members of a matrix of this format, by name."""
    found = parts(kind)
    data = found["data"]
    changes = {
        "no data": {"data": None},
        "no shape": {"shape": None},
        "no format": {"format": None},
        "another format": {"format": b"lil"},
        "format of two": {"format": np.array([b"csr", b"csr"])},
        "a number as format": {"format": 3},
        "a long format": {"format": b"csr" * 100},
        "text": {"data": data.astype("S")},
        "wide text": {"data": data.astype("U")},
        "dates": {"data": data.astype("i8").astype("M8[s]")},
        "spans": {"data": data.astype("i8").astype("m8[s]")},
        "complex": {"data": data.astype(complex)},
        "void": {"data": data.astype("V8")},
        "objects": {"data": data.astype(object)},
        "records": {"data": data.view([("a", "f8")])},
        "a value too many": {"data": np.concatenate([data, data[:1]])},
        "a value too few": {"data": data[1:]},
        "flat": {"data": np.float64(3)},
        "no values": {"data": data[:0]},
        "deeper": {"data": data[..., None, None]},
        "one size": {"shape": np.array([6])},
        "three sizes": {"shape": np.array([6, 4, 1])},
        "sizes of fractions": {"shape": np.array([6.0, 4.0])},
        "a size as text": {"shape": np.array(["6", "4"])},
        "negative rows": {"shape": np.array([-6, 4])},
        "negative columns": {"shape": np.array([6, -4])},
        "fewer rows": {"shape": np.array([1, 4])},
        "fewer columns": {"shape": np.array([6, 1])},
        "huge sizes": {"shape": np.array([2**62, 2**62])},
        "sizes beyond int64": {"shape": np.array([2**64 - 1] * 2)},
        "NaN": {"data": np.full(data.shape, np.nan)},
        "infinity": {"data": np.full(data.shape, -np.inf)},
        "beyond float32": {"data": np.full(data.shape, 1e300)},
    }
    if kind in ("csr", "csc", "bsr"):
        pointers, ids = found["indptr"], found["indices"]
        changes |= {
            "no indptr": {"indptr": None},
            "no indices": {"indices": None},
            "negative pointers": {"indptr": -pointers},
            "one negative": {"indptr": np.array([0, -5, *pointers[2:]])},
            "a first that is not 0": {"indptr": np.array([1, *pointers[1:]])},
            "a last that is short": {"indptr": np.array([*pointers[:-1], pointers[-1] - 1])},
            "a last that is far": {"indptr": np.array([*pointers[:-1], 2**40])},
            "falling": {
                "indptr": np.array([0, pointers[-1], *pointers[2:]]) if kind != "bsr" else -pointers
            },
            "unsigned and falling": {"indptr": np.array([0, 2**63, *pointers[2:]], np.uint64)},
            "pointers of fractions": {"indptr": pointers.astype(float)},
            "pointers of text": {"indptr": ids.astype("S")},
            "pointers [n, 1]": {"indptr": pointers[:, None]},
            "a pointer less": {"indptr": pointers[1:]},
            "a pointer more": {"indptr": np.append(pointers, pointers[-1])},
            "no pointers": {"indptr": pointers[:0]},
            "a far index": {"indices": np.where(ids == ids.max(), 2**31 - 1, ids)},
            "a negative index": {"indices": np.where(ids == ids.max(), -1, ids)},
            "an index beyond int64": {
                "indices": np.where(ids == ids.max(), 2**64 - 1, ids.astype(np.uint64))
            },
            "indices of fractions": {"indices": ids.astype(float)},
            "fewer indices": {"indices": ids[1:]},
            "no ids": {"indices": ids[:0]},
            "indices [n, 1]": {"indices": ids[:, None]},
            "truth values": {"indices": ids.astype(bool)},
        }
    if kind == "bsr":
        changes |= {
            "blocks that do not fit": {"data": np.ones((len(data), 4, 3))},
            "blocks of nothing": {"data": np.ones((len(data), 0, 2))},
        }
    if kind == "coo":
        row = found["row"]
        changes |= {
            "no row": {"row": None},
            "no col": {"col": None},
            "a far row": {"row": row + 6},
            "a negative row": {"row": row - 1},
            "a far column": {"col": found["col"] + np.int64(2**31)},
            "fewer rows than values": {"row": row[1:]},
            "rows of fractions": {"row": row.astype(float)},
            "three coords": {"row": None, "coords": np.ones((3, len(row)), int)},
            "flat coords": {"row": None, "coords": np.ones(len(row), int)},
        }
    if kind == "dia":
        offsets = found["offsets"]
        changes |= {
            "no offsets": {"offsets": None},
            "a far diagonal": {"offsets": offsets + 9},
            "a low diagonal": {"offsets": offsets - 9},
            "a diagonal twice": {"offsets": offsets * 0},
            "fewer diagonals": {"offsets": offsets[1:]},
            "offsets of fractions": {"offsets": offsets / 2},
            "wider than the matrix": {"data": np.ones((len(offsets), 5))},
        }
    return changes


@pytest.mark.parametrize("kind", FORMATS)
def test_arrays_that_are_no_matrix_are_refused(tmp_path, kind):
    for name, changes in _wrong(kind).items():
        path = npz(tmp_path / "Y.trn.npz", **parts(kind, **changes))
        message = refusal(read_matrix, path)
        assert message.startswith(f"{path}: "), name
        assert len(message) < 400 + len(str(path)), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indptr": np.array([0, 3, 1, 5, 6, 7, 12])}, "got indptr that falls after 1"),
        ({"indices": np.array([0, 1, 9] + [0] * 9)}, "got 9 in indices at entry 2, outside [0, 4)"),
        (
            {"data": MATRIX.data.astype("S3")},
            "array 'data': expected real numbers, got values of type |S3",
        ),
        (
            {"shape": np.array([9, 4])},
            "expected a valid CSR of shape (9, 4), got indptr of 7 numbers, not 10",
        ),
        (
            {"data": np.array([1, np.inf] + [0] * 10)},
            "expected a finite number, got inf at row 1, column 0",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path, changes, message):
    assert message in refusal(read_matrix, npz(tmp_path / "Y.npz", **parts(**changes)))


@pytest.mark.parametrize("kind", ["csr", "csc", "bsr", "coo"])
def test_a_broken_matrix_in_memory_is_refused_as_well(kind):
    matrix = getattr(sp, f"{kind}_matrix")(MATRIX).copy()
    if kind == "coo":
        matrix.col[0] = 2**30
    else:
        matrix.indptr = -matrix.indptr
    assert refusal(check_relevance, matrix, "Y.tst.npz").startswith("Y.tst.npz: expected a valid")


# -------------------------------- files that are none


def test_an_optional_file_that_cannot_be_read_does_not_count_as_absent(tmp_path):
    assert not present(tmp_path / "X.npz") and not present(tmp_path / "a" / "b")
    (tmp_path / "X.npz").write_bytes(b"")
    assert present(tmp_path / "X.npz")
    assert not present(tmp_path / "X.npz" / "b")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "lost").symlink_to(tmp_path / "gone")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "good").symlink_to(tmp_path / "X.npz")
    assert present(tmp_path / "good")
    for name, message in (
        ("fifo", "expected a file, got a FIFO"),
        ("zero", "expected a file, got a device"),
        (".", "expected a file, got a folder"),
        ("loop", "cannot be read (Too many levels"),
        ("lost", f"a link to {tmp_path / 'gone'}, where there is no file"),
        ("x" * 300, "cannot be read (File name too long)"),
        ("a\0b", "cannot be read (embedded null"),
    ):
        for function in (present, check_file, read_matrix, read_array, read_arrays):
            if not (name == "a\0b" and function is present):
                assert message in refusal(function, tmp_path / name)
    assert refusal(check_file, tmp_path / "none", "one text a line").endswith(
        "no such file (expected one text a line)"
    )


def test_cut_off_and_altered_files_are_refused_or_mean_the_same(tmp_path):
    sp.save_npz(tmp_path / "good.npz", MATRIX)
    good = (tmp_path / "good.npz").read_bytes()
    path = tmp_path / "Y.npz"
    rng = np.random.default_rng(0)
    for attempt in range(150):
        damaged = bytearray(good)
        if attempt % 3 == 0:
            damaged = damaged[: rng.integers(len(good))]
        else:
            for place in rng.integers(len(good), size=attempt % 3):
                damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(damaged))
        try:
            found = read_matrix(path, dtype=None)
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        else:
            np.testing.assert_array_equal(found.toarray(), MATRIX.toarray())


def _npy(header):
    text = f"{header!r}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


HEADERS = [
    ({"descr": "<f4", "fortran_order": False, "shape": (2**40,)}, "asks for"),
    ({"descr": "<f4", "fortran_order": False, "shape": (-1,)}, "sizes of 0 or more"),
    ({"descr": "|O", "fortran_order": False, "shape": (2,)}, "values of type object"),
    ({"descr": "<U4", "fortran_order": False, "shape": (2,)}, "values of type <U4"),
    ({"descr": "<c8", "fortran_order": False, "shape": (1,)}, "values of type complex64"),
    (
        {"descr": "<f4", "fortran_order": False, "shape": (2, 2)},
        "asks for 16 bytes of values, 8 are there",
    ),
    (
        {"descr": "<f4", "fortran_order": False, "shape": (1,)},
        "asks for 4 bytes of values, 8 are there",
    ),
    ({"descr": "<f4", "fortran_order": False, "shape": 2}, "not "),
    ({"descr": "<f4", "fortran_order": 3, "shape": (2,)}, "not "),
    ({"descr": "nonsense", "fortran_order": False, "shape": (2,)}, "not "),
    ({"descr": "<f4", "shape": (2,)}, "not "),
    ([1, 2], "not "),
    ({"descr": [("a", "<f4")], "fortran_order": False, "shape": (2,)}, "values of type"),
]


@pytest.mark.parametrize(("header", "message"), HEADERS)
def test_a_npy_header_is_not_believed(tmp_path, header, message):
    path = tmp_path / "vectors.npy"
    path.write_bytes(_npy(header) + struct.pack("<2f", 1, 2))
    for mapped in (True, False):
        found = refusal(read_array, path, mapped=mapped)
        assert message in found and found.startswith(f"{path}: ")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(path, "data.npy")
    found = refusal(read_arrays, tmp_path / "a.npz")
    assert message in found and found.startswith(f"{tmp_path / 'a.npz'}: ")


def test_deep_headers_and_no_headers(tmp_path):
    path = tmp_path / "vectors.npy"
    deep = ("(" * 5000).encode()
    for data in (
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x00" + b"x" * 100,
        b"text\n" * 9,
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(deep)) + deep,
    ):
        path.write_bytes(data)
        assert refusal(read_array, path).startswith(f"{path}: not a .npy array (")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["?", "i1", ">i4", "f2", "f4", "f8"])
def test_arrays_are_read_and_mapped(tmp_path, dtype, order):
    array = np.asarray(np.arange(6).reshape(2, 3) % 2, dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    for mapped in (True, False):
        found = read_array(tmp_path / "a.npy", ndim=2, mapped=mapped)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        assert isinstance(found, np.memmap) == mapped
    assert "expected 1 dimension, got shape (2, 3)" in refusal(
        read_array, tmp_path / "a.npy", ndim=1
    )
    assert "expected text, got values of type" in refusal(read_array, tmp_path / "a.npy", kinds="U")
    np.save(tmp_path / "a.npy", array[:0])
    assert read_array(tmp_path / "a.npy", mapped=True).shape == (0, 3)


def test_named_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", one=np.arange(3), two=np.eye(2))
    assert read_arrays(tmp_path / "a.npz")["two"].tolist() == [[1, 0], [0, 1]]
    assert list(read_arrays(tmp_path / "a.npz", ["one"])) == ["one"]
    assert "expected an array 'three', got only one, two" in refusal(
        read_arrays, tmp_path / "a.npz", ["one", "three"]
    )
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr("one.npy", b"")
    assert "the array 'one' stands twice" in refusal(read_arrays, tmp_path / "a.npz")


# -------------------------------- more than the machine has


def _zeros(count):
    """The bytes of a .npy of so many bytes of zeros, in pieces."""
    yield _npy({"descr": "|u1", "fortran_order": False, "shape": (count,)})
    for start in range(0, count, 1 << 20):
        yield bytes(min(1 << 20, count - start))


def bomb(path, count, method=zipfile.ZIP_DEFLATED):
    """A matrix whose values are `count` bytes of zeros, a thousandth of that on the disk."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in parts().items():
            with archive.open(f"{name}.npy", "w") as file:
                for piece in _zeros(count) if name == "data" else [_bytes(array)]:
                    file.write(piece)
    return path


def _bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_what_the_machine_cannot_hold_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = bomb(tmp_path / "Y.npz", 32 << 20)
    monkeypatch.setattr(archives, "host_memory", lambda: {"available": 64 << 20})
    for page in (arrays, matrices):
        monkeypatch.setattr(page, "read_member", lambda *_: pytest.fail("unpacked"))
    monkeypatch.setattr(matrices, "_format", lambda *_: "csr")
    monkeypatch.setattr(matrices, "_shape", lambda *_: (6, 4))
    stored = f"{32 << 20} values"  # the headers alone tell that these are not a matrix
    assert f"indices of 12 numbers for {stored}" in refusal(read_matrix, path)
    monkeypatch.setattr(matrices, "_check_lengths", lambda *_: None)
    assert "Y.npz: needs 160 MB of memory, but 64 MB are available" in refusal(read_matrix, path)
    # 32 MB would do; its format is no number
    assert "Y.npz: needs" not in refusal(read_arrays, path)
    monkeypatch.setattr(archives, "host_memory", lambda: {"available": 1 << 20})
    np.save(tmp_path / "a.npy", np.zeros(2 << 20, np.uint8))
    assert "a.npy: needs 2 MB of memory, but 1 MB are available" in refusal(
        read_array, tmp_path / "a.npy"
    )
    assert read_array(tmp_path / "a.npy", mapped=True).shape == (2 << 20,)


def test_a_conversion_that_the_machine_cannot_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "host_memory", lambda: {"available": 1 << 30})
    path = npz(tmp_path / "Y.npz", **parts("coo", shape=np.array([2**31 - 1, 4])))
    assert "Y.npz: needs 16,384 MB of memory, but 1,024 MB are available" in refusal(
        read_matrix, path
    )


def test_members_that_claim_more_than_the_file_holds(tmp_path):
    huge = 16 << 30
    header = _npy({"descr": "|u1", "fortran_order": False, "shape": (huge,)})
    path = tmp_path / "Y.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", header + bytes(1000))
        archive.filelist[0].file_size = huge + len(header)
    assert "the array 'data' claims 17,179,8" in refusal(read_matrix, path)
    assert "the array 'data' claims 17,179,8" in refusal(read_arrays, path)
    bomb(path, 1 << 20, zipfile.ZIP_BZIP2)
    assert "packed in a way that numpy does not write" in refusal(read_matrix, path)


def test_members_that_share_their_bytes(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("one.npy", "two.npy"):
            archive.writestr(name, _bytes(np.arange(3)))
        archive.filelist[1].header_offset = archive.filelist[0].header_offset
    assert "shares bytes with another" in refusal(read_arrays, path)


def test_a_wrong_checksum_is_seen(tmp_path):
    data = _bytes(np.arange(100.0))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("one.npy", data)
        archive.filelist[0].CRC = zlib.crc32(data) ^ 1
    assert "Bad CRC-32" in refusal(read_arrays, tmp_path / "a.npz")
