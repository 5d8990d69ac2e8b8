"""Parsers read the official formats, and of anything else make a DataError: nothing runs, nothing is written."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import (
    CIFAR10_NAMES,
    CIFAR100_NAMES,
    cifar10_members,
    cifar100_members,
    idx,
    idx_pair,
    images,
    labelled,
    miniimagenet_part,
    notmnist,
    notmnist_part,
    number_of,
    svhn,
    tar_gz,
    zipped,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from nesskit.errors import DataError
from nesskit.streams.base import Examples
from nesskit.streams.cifar import read_cifar10, read_cifar100
from nesskit.streams.idx import read_idx, read_idx_examples
from nesskit.streams.pickles import read_miniimagenet, read_notmnist
from nesskit.streams.svhn import read_svhn

CIFAR100_TRAIN = "cifar-100-binary/train.bin"


@pytest.fixture
def write(tmp_path):
    """Writes bytes into a file and gives its path."""

    def put(content, name="file"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return put


def with_member(members, name, content):
    return [(other, content if other == name else old) for other, old in members]


def tagged(examples):
    """Whether the pixels that carry a label agree with the labels."""
    return torch.equal(examples.x[:, 0, 0, 0].long(), examples.y)


# ---------------------------------------------------------------------------------------------------- CIFAR


def test_cifar100(write):
    train, test, names = read_cifar100(write(tar_gz(cifar100_members(2, 1))))
    assert (train.x.shape, train.x.dtype, train.y.dtype) == ((200, 3, 32, 32), torch.uint8, torch.int64)
    assert len(test.y) == 100
    assert names == tuple(CIFAR100_NAMES)
    assert tagged(train)
    assert tagged(test)
    expected = images(train.y.numpy(), seed=1)
    assert np.array_equal(train.x.numpy(), expected)


def test_cifar10_puts_the_batches_in_their_order(write):
    train, test, names = read_cifar10(write(tar_gz(cifar10_members(per_class=1))))
    assert names == tuple(CIFAR10_NAMES)
    assert tagged(train)
    assert tagged(test)
    expected = [images(labelled(10, 1, seed=batch), seed=batch) for batch in range(1, 6)]
    assert np.array_equal(train.x.numpy(), np.concatenate(expected))


def test_a_fine_label_is_the_second_byte(write):
    members = cifar100_members(1, 1)
    content = bytearray(dict(members)[CIFAR100_TRAIN])
    content[0] = 255  # a coarse label, which nobody reads
    assert tagged(read_cifar100(write(tar_gz(with_member(members, CIFAR100_TRAIN, bytes(content))))).train)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"train\.bin is 0 bytes long, expected a multiple of 3074"),
        (b"\0" * 3075, r"train\.bin is 3075 bytes long, expected a multiple of 3074"),
        (b"\0\x64" + b"\0" * 3072, r"train\.bin: the label of sample 0 is 100, expected 0 … 99"),
        (b"\0" * 3074 + b"\0\xff" + b"\0" * 3072, r"the label of sample 1 is 255"),
    ],
)
def test_wrong_records(write, content, message):
    path = write(tar_gz(with_member(cifar100_members(1, 1), CIFAR100_TRAIN, content)))
    with pytest.raises(DataError, match=message) as caught:
        read_cifar100(path)
    assert str(path) in str(caught.value)


def test_a_missing_member(write):
    path = write(tar_gz(cifar100_members(1, 1)[1:]))
    with pytest.raises(DataError, match=r"has no member cifar-100-binary/train\.bin"):
        read_cifar100(path)


@pytest.mark.parametrize("names", [b"", b"one\n" * 100, "\n".join(CIFAR100_NAMES[:99]).encode(), b"\xff\xfe"])
def test_wrong_class_names(write, names):
    name = "cifar-100-binary/fine_label_names.txt"
    with pytest.raises(DataError, match="different class names, expected 100"):
        read_cifar100(write(tar_gz(with_member(cifar100_members(1, 1), name, names))))


def link(name, kind, target):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return name, member


def test_a_link_is_no_member(write, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 3074)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        path = write(tar_gz([link(CIFAR100_TRAIN, kind, str(secret)), *cifar100_members(1, 1)[1:]]), "linked")
        with pytest.raises(DataError, match="has no member"):
            read_cifar100(path)


def test_an_archive_that_climbs_out_of_its_folder_writes_nothing(write, tmp_path, monkeypatch):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    evil = [
        ("../../evil", b"x"),
        (str(tmp_path / "evil"), b"x"),
        link("sub", tarfile.SYMTYPE, ".."),
        ("sub/evil", b"x"),
    ]
    path = write(tar_gz([*evil, *cifar100_members(1, 1)]))
    before = sorted(tmp_path.rglob("*"))
    assert tagged(read_cifar100(path).train)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_member_that_claims_to_be_enormous(write):
    header = tarfile.TarInfo(CIFAR100_TRAIN)
    header.size = 1 << 40
    with pytest.raises(DataError, match="claims to be 1099511627776 bytes long"):
        read_cifar100(write(gzip.compress(header.tobuf(tarfile.GNU_FORMAT))))


@pytest.mark.parametrize("read", [read_cifar100, read_cifar10])
def test_damaged_archives(write, read):
    whole = tar_gz(cifar100_members(1, 1))
    for content in (b"", b"no gzip at all", whole[: len(whole) // 2], whole[:20], gzip.compress(b"no tar at all")):
        with pytest.raises(DataError):
            read(write(content))
    with pytest.raises(DataError, match="No such file"):
        read(Path("absent"))


# ---------------------------------------------------------------------------------------------------- IDX


@pytest.mark.parametrize("pack", [gzip.compress, bytes], ids=["gzipped", "plain"])
def test_idx(write, pack):
    labels = labelled(10, 2)
    pictures = images(labels, (1, 28, 28))
    x, y = read_idx_examples(write(pack(idx(pictures[:, 0])), "images"), write(pack(idx(labels)), "labels"))
    assert np.array_equal(x.numpy(), pictures)
    assert np.array_equal(y.numpy(), labels)
    assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the magic number ends after 0 of 4 bytes"),
        (b"\0\0\x0d\x01" + struct.pack(">I", 1) + b"\0\0\0\0", "begins with 00000d01, expected 00000801"),
        (b"\0\0\x08\x02" + struct.pack(">II", 1, 1) + b"\0", "begins with 00000802"),
        (b"\0\0\x08\x01\0\0", "the list of dimensions ends after 2 of 4 bytes"),
        (idx(np.zeros(5))[:-1], "the list of values ends after 4 of 5 bytes"),
        (idx(np.zeros(5)) + b"!", "goes on after the 5 values"),
        (b"\0\0\x08\x01\xff\xff\xff\xff", "claims to be 4294967295 bytes long"),
        (idx(np.zeros(0)), "holds no value"),
        (gzip.compress(idx(np.zeros(5)), mtime=0)[:-9], "cannot be read as an IDX file"),
    ],
)
def test_wrong_idx(write, content, message):
    with pytest.raises(DataError, match=message):
        read_idx(write(content), dimensions=1)


def test_idx_pairs_that_do_not_fit(write):
    pictures, labels = idx_pair(1, 0)
    few, wide, large = write(idx(np.zeros(9)), "few"), write(idx(np.zeros((10, 28, 27))), "wide"), np.arange(1, 11)
    x, y = write(pictures, "images"), write(labels, "labels")
    with pytest.raises(DataError, match=r"holds 10 images, but .* holds 9 labels"):
        read_idx_examples(x, few)
    with pytest.raises(DataError, match="images of 28 × 27 pixels, expected 28 × 28"):
        read_idx_examples(wide, y)
    with pytest.raises(DataError, match="the label of sample 9 is 10, expected 0 … 9"):
        read_idx_examples(x, write(idx(large), "large"))


# ---------------------------------------------------------------------------------------------------- SVHN


def mat(compressed=False, **variables):
    packed = io.BytesIO()
    savemat(packed, variables, do_compression=compressed)
    return packed.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("type_of_y", ["u1", "i4"])
@pytest.mark.parametrize("others", [{}, {"a": np.arange(5.0), "text": "text", "cell": np.array([[1, "b"]], object)}])
def test_svhn(write, compressed, type_of_y, others):
    labels = labelled(10, 2, seed=3)
    digits = np.where(labels == 0, 10, labels)[:, None].astype(type_of_y)
    pixels = images(labels, seed=3)
    x, y = read_svhn(write(mat(compressed, **others, X=pixels.transpose(2, 3, 1, 0), y=digits)))
    assert np.array_equal(x.numpy(), pixels)
    assert np.array_equal(y.numpy(), labels)


def test_a_changed_compressed_variable_is_noticed(write):
    content = bytearray(svhn(2, seed=3))
    content[5000] ^= 1
    with pytest.raises(DataError, match="cannot be read as a MATLAB file"):
        read_svhn(write(bytes(content)))


PIXELS = np.zeros((32, 32, 3, 2), np.uint8)
TWO = np.array([[1], [10]], np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a MATLAB file"),
        (b"no MATLAB file " * 20, "cannot be read as a MATLAB file"),
        (mat(X=PIXELS, y=TWO)[:3000], "cannot be read as a MATLAB file"),
        (mat(y=TWO), "has no variable X"),
        (mat(X=PIXELS), "has no variable y"),
        (mat(X=PIXELS, y="text"), "the variable y is no array of numbers"),
        (mat(X=PIXELS, y={"a": TWO}), "the variable y is no array of numbers"),
        (mat(X=PIXELS, y=TWO).replace(b"\x00\x01IM", b"\x00\x02IM"), "its header ends with 0002494d"),
        (mat(X=PIXELS.astype(float), y=TWO), r"X is float64 \(32, 32, 3, 2\), expected uint8"),
        (mat(X=PIXELS[:31], y=TWO), r"X is uint8 \(31, 32, 3, 2\), expected uint8 \(32, 32, 3, n\)"),
        (mat(X=PIXELS[..., 0], y=TWO[:1]), r"X is uint8 \(32, 32, 3\)"),
        (mat(X=PIXELS, y=TWO[:1]), "expected 2 integers"),
        (mat(X=PIXELS, y=TWO * 1.5), "y is float64"),
        (mat(X=PIXELS, y=TWO - 1), "the label of sample 0 is 0, expected 1 … 10"),
        (mat(X=PIXELS, y=TWO + 1), "the label of sample 1 is 11"),
    ],
)
def test_wrong_svhn(write, content, message):
    with pytest.raises(DataError, match=message):
        read_svhn(write(content))


# ---------------------------------------------------------------------------------------------------- pickles


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_notmnist(write, protocol):
    train, test = read_notmnist(write(notmnist(notmnist_part(2, 1), notmnist_part(1, 2), protocol)))
    assert np.array_equal(train.x.numpy(), notmnist_part(2, 1)["features"])
    assert (train.x.dtype, train.y.dtype, len(test.y)) == (torch.uint8, torch.int64, 10)
    assert tagged(train)
    assert tagged(test)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("form", ["lists", "arrays", "Fortran order", "numpy labels"])
def test_miniimagenet(write, protocol, form):
    part = {key: value[::97] for key, value in miniimagenet_part(4).items()}
    pictures, labels = np.stack(part["images"]), np.array(part["labels"])
    if form == "arrays":
        part = {"images": pictures, "labels": labels}
    elif form == "Fortran order":
        part = {"images": np.asfortranarray(pictures), "labels": labels.astype(">i2")}
    elif form == "numpy labels":
        part = {"images": part["images"], "labels": list(labels.astype(np.int32))}
    x, y = read_miniimagenet(write(pickle.dumps(part, protocol)))
    assert np.array_equal(x.numpy(), pictures.transpose(0, 3, 1, 2))
    assert np.array_equal(y.numpy(), labels)


def test_a_pickle_of_python_2(write):
    """Byte strings all over, as cPickle wrote them: text opcodes T and U, module names of old."""

    def array(content, shape, code):
        def string(content):
            return b"T" + struct.pack("<i", len(content)) + content

        shape = b"(" + b"".join(b"M" + struct.pack("<H", size) for size in shape) + b"t"
        number_type = (
            b"cnumpy\ndtype\n(U\x02" + code + b"K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
        empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        return empty + b"(K\x01" + shape + number_type + b"\x89" + string(content) + b"tb"

    pictures = images(np.arange(3, dtype=np.uint8), (1, 32, 32))
    part = b"\x80\x02}(U\x08features" + array(pictures.tobytes(), pictures.shape, b"u1")
    part += b"U\x06labels" + array(bytes([0, 1, 2]), (3,), b"u1") + b"u."
    assert np.array_equal(pickle.loads(part, encoding="bytes")[b"features"], pictures)  # it is what numpy reads, too
    train, _ = read_notmnist(write(zipped([("notmnist_train.pkl", part), ("notmnist_test.pkl", part)])))
    assert np.array_equal(train.x.numpy(), pictures)
    assert train.y.tolist() == [0, 1, 2]


class Runs:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_runs_nothing(write, tmp_path, protocol):
    marker = tmp_path / "marker"
    evil = Runs(os.system, f"touch {marker}")
    as_key, as_label = {evil: 1}, {"images": [], "labels": [evil]}
    as_object = {"images": np.array([evil], dtype=object), "labels": np.zeros(1, np.uint8)}
    for content in (evil, as_key, as_label, as_object):
        with pytest.raises(DataError, match=r"it asks for (posix|nt)\.system|not a plain number"):
            read_miniimagenet(write(pickle.dumps(content, protocol)))
        with pytest.raises(DataError, match=r"it asks for (posix|nt)\.system|not a plain number"):
            read_notmnist(write(zipped([("notmnist_train.pkl", pickle.dumps(content, protocol))])))
    assert not marker.exists()
    pickle.loads(pickle.dumps(evil, protocol))  # the file would do it, if it were let
    assert marker.exists()


@pytest.mark.parametrize(
    ("value", "refused"),
    [
        (Runs(eval, "1"), "builtins.eval|__builtin__.eval"),
        (Runs(getattr, "", "join"), "getattr"),
        (Runs(np.load, "file"), "numpy.load"),
        (Path("p"), "pathlib"),
        (Examples(torch.zeros(1), torch.zeros(1)), "nesskit"),
        (np.dtype("O"), "'O8' is not a plain number"),
        (np.dtype([("a", "u1")]), "'V1' is not a plain number"),
        (np.array(["text"]), "'U4' is not a plain number"),
        (np.datetime64(1, "s"), "'M8' is not a plain number"),
    ],
)
def test_what_is_no_array_is_refused_by_name(write, value, refused):
    with pytest.raises(DataError, match=refused):
        read_miniimagenet(write(pickle.dumps({"images": [], "labels": [value]}, 2)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickle.dumps({"images": 1})[:-1],
        b"\x80\x02Pabc\n.",  # a persistent object
        b"\x80\x02\x82\x01.",  # an extension that is not registered
        b"\x80\x02cnumpy\ndtype\n.",
        b"\x80\x02cnumpy\ndtype\n}b.",  # an attempt to change a stand-in
        b"\x80\x02cnumpy\ndtype\nN}U\x08__code__K\x01s\x86b.",
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
        b"\x80\x02r\xff\xff\xff\x7f.",  # a memo of two thousand million places
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a bytearray of nine million million million bytes
        pickle.dumps([1, 2]),
        pickle.dumps({"images": []}),
        pickle.dumps({"images": [], "labels": []}),
        pickle.dumps({"images": 3, "labels": [1]}),
        pickle.dumps({"images": np.uint8(3), "labels": [1]}),
        pickle.dumps({"images": {}, "labels": [1]}),
        pickle.dumps({"images": [np.zeros((84, 84, 3), np.uint8)], "labels": [1, 2]}),
        pickle.dumps({"images": [np.zeros((84, 84, 3), np.uint8)], "labels": [100]}),
        pickle.dumps({"images": [np.zeros((84, 84, 3), np.uint8)], "labels": [-1]}),
        pickle.dumps({"images": [np.zeros((84, 84, 3), np.uint8)], "labels": [2**70]}),
        pickle.dumps({"images": [np.zeros((84, 84, 3), np.uint8)], "labels": [0.5]}),
        pickle.dumps({"images": [np.zeros((84, 84, 3), np.uint8)], "labels": np.zeros(1)}),
        pickle.dumps({"images": [np.zeros((84, 84, 3), np.uint8)], "labels": [1]}) + b"more",
    ],
)
def test_pickles_that_are_no_data(write, content):
    with pytest.raises(DataError):
        read_miniimagenet(write(content))


@pytest.mark.parametrize("wrong", [np.zeros((0, 84, 3), np.uint8), np.zeros(0, np.uint8), np.zeros((84, 84), np.uint8)])
def test_an_empty_or_misshapen_image_is_named(write, wrong):
    part = miniimagenet_part(1)
    part["images"][7] = wrong
    with pytest.raises(DataError, match=r"'images': image 7 is uint8 .*, expected uint8 \(84, 84, 3\)"):
        read_miniimagenet(write(pickle.dumps(part)))


def test_images_of_another_type_are_named(write):
    part = notmnist_part(1, 0)
    part["features"] = part["features"].astype(np.float32)
    with pytest.raises(DataError, match=r"'features': image 0 is float32 \(1, 32, 32\), expected uint8"):
        read_notmnist(write(notmnist(train=part)))


def test_black_images_are_images(write):
    part = notmnist_part(1, 0)
    part["features"][3] = 0
    assert not read_notmnist(write(notmnist(train=part)))[0].x[3].any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a zip archive"),
        (notmnist()[:5000], "cannot be read as a zip archive"),
        (zipped([]), r"has no member notmnist_train\.pkl"),
        (zipped([("notmnist_train.pkl", pickle.dumps(notmnist_part(1, 0)))]), r"has no member notmnist_test\.pkl"),
        (zipped([("notmnist_train.pkl", pickle.dumps({"x": 1}))]), "has no 'features'; it has x"),
        (notmnist(test=notmnist_part(1, 0) | {"labels": np.full(10, 10, np.uint8)}), "the label of sample 0 is 10"),
    ],
)
def test_wrong_notmnist(write, content, message):
    with pytest.raises(DataError, match=message):
        read_notmnist(write(content))


def test_a_zip_whose_content_was_changed(write):
    content = bytearray(notmnist())
    content[5000] ^= 1  # inside the pixels, so that only the checksum of the zip tells
    with pytest.raises(DataError, match="Bad CRC-32"):
        read_notmnist(write(bytes(content)))


# ---------------------------------------------------------------------------------------------------- fuzzing


def check_examples(examples, shape, classes):
    assert examples.x.dtype == torch.uint8
    assert examples.x.shape[1:] == shape
    assert len(examples.x) == len(examples.y) > 0
    assert examples.y.dtype == torch.int64
    assert 0 <= examples.y.min() <= examples.y.max() < classes


def one_image(shape=(3, 32, 32)):
    return images(np.array([1], np.uint8), shape)


@cache
def tiny_tar():
    """One record a batch, packed by tar only."""
    return gzip.decompress(tar_gz([(name, content[:3073]) for name, content in cifar10_members(1)]))


@cache
def tiny_mat(compressed=False):
    return mat(compressed, X=one_image().transpose(2, 3, 1, 0).repeat(2, axis=3), y=TWO)


@cache
def tiny_pickle(protocol):
    return pickle.dumps({"features": one_image((1, 32, 32)), "labels": np.array([1], np.uint8)}, protocol)


def zipped_parts(part):
    return zipped([("notmnist_train.pkl", part), ("notmnist_test.pkl", part)])


def parse_cifar10(path):
    archive = read_cifar10(path)
    for part in (archive.train, archive.test):
        check_examples(part, (3, 32, 32), 10)


def parse_idx(path):
    read_idx(path, dimensions=3)


def parse_svhn(path):
    check_examples(read_svhn(path), (3, 32, 32), 10)


def parse_notmnist(path):
    for part in read_notmnist(path):
        check_examples(part, (1, 32, 32), 10)


FORMATS = {
    "gzip of CIFAR-10": (parse_cifar10, lambda: gzip.compress(tiny_tar(), 1), bytes),
    "tar of CIFAR-10": (parse_cifar10, tiny_tar, lambda content: gzip.compress(content, 1)),
    "IDX": (parse_idx, lambda: idx(one_image((1, 28, 28))[0]), bytes),
    "gzip of IDX": (parse_idx, lambda: gzip.compress(idx(one_image((1, 28, 28))[0])), bytes),
    "MATLAB": (parse_svhn, tiny_mat, bytes),
    "compressed MATLAB": (parse_svhn, lambda: tiny_mat(True), bytes),
    "zip of notMNIST": (parse_notmnist, lambda: zipped_parts(tiny_pickle(4)), bytes),
    "pickle, protocol 0": (parse_notmnist, lambda: tiny_pickle(0), zipped_parts),
    "pickle, protocol 2": (parse_notmnist, lambda: tiny_pickle(2), zipped_parts),
    "pickle, protocol 4": (parse_notmnist, lambda: tiny_pickle(4), zipped_parts),
    "pickle, protocol 5": (parse_notmnist, lambda: tiny_pickle(5), zipped_parts),
}


@st.composite
def mutations(draw, valid):
    """A valid file with some bytes changed, mostly near its start where the structure is, or cut, or random bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(valid)
    positions = st.integers(0, min(300, len(content) - 1)) | st.integers(0, len(content) - 1)
    for position, value in draw(st.lists(st.tuples(positions, st.integers(0, 255)), max_size=4)):
        content[position] = value
    if draw(st.integers(0, 4)) == 0:
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_parser_gives_data_or_a_data_error(name, data):
    parse, valid, pack = FORMATS[name]
    content = pack(data.draw(mutations(valid())))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        message = ""
        try:
            parse(path)
        except DataError as error:
            message = str(error)
        assert not message or str(path) in message


def test_the_fuzzed_formats_are_valid_to_begin_with(write):
    for parse, valid, pack in FORMATS.values():
        parse(write(pack(valid())))
    assert zipfile.is_zipfile(write(zipped([])))
    assert number_of(torch.from_numpy(images(np.zeros(300, np.uint8))))[-1] == 299
