"""Data that was carried to a machine in parts: joined, verified, and what is wrong with it is named."""

import hashlib

import pytest

from nesskit.errors import DataError
from studies.gpu.data import mirror_of

BENCHMARK, ARCHIVE = "split-cifar100", "cifar-100-binary.tar.gz"
CONTENT = bytes(range(256)) * 40


@pytest.fixture
def parts(tmp_path):
    """A folder with the archive in four parts, and the checksums of all of them."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(4):
        (folder / f"cifar.part{number}").write_bytes(CONTENT[3000 * number : 3000 * (number + 1)])
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in folder.iterdir()]
    whole = f"{hashlib.sha256(CONTENT).hexdigest()}  {ARCHIVE}"
    (folder / "SHA256SUMS").write_text("\n".join([whole, *lines]))
    return folder


def assert_is_mirror(folder):
    assert (folder / ARCHIVE).read_bytes() == CONTENT
    assert (folder / "SHA256SUMS").read_text() == f"{hashlib.sha256(CONTENT).hexdigest()}  {ARCHIVE}\n"


def test_parts_are_joined_and_verified(parts, tmp_path):
    assert_is_mirror(mirror_of(parts, BENCHMARK, tmp_path / "data"))


def test_so_are_parts_in_folders_of_their_own_and_counted_from_one(parts, tmp_path):
    for number in range(4):
        folder = tmp_path / "folders" / f"part{number + 1}"
        folder.mkdir(parents=True)
        (parts / f"cifar.part{number}").rename(folder / "bytes")
    (tmp_path / "folders" / "SHA256SUMS").write_text((parts / "SHA256SUMS").read_text())
    assert_is_mirror(mirror_of(tmp_path / "folders", BENCHMARK, tmp_path / "data"))


def test_a_whole_archive_is_taken_as_it_is(parts, tmp_path):
    (parts / ARCHIVE).write_bytes(CONTENT)
    assert_is_mirror(mirror_of(parts, BENCHMARK, tmp_path / "data"))
    (parts / ARCHIVE).write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=f"{ARCHIVE} is damaged or another file"):
        mirror_of(parts, BENCHMARK, tmp_path / "data")


def test_what_is_wrong_with_the_parts_is_named(parts, tmp_path):
    def says(message):
        with pytest.raises(DataError, match=message):
            mirror_of(parts, BENCHMARK, tmp_path / "data")
        assert not (tmp_path / "data" / ARCHIVE).exists()

    own = (parts / "cifar.part2").read_bytes()
    (parts / "cifar.part2").write_bytes(b"X" + own[1:])
    says("part2 is damaged")
    (parts / "SHA256SUMS").write_text((parts / "SHA256SUMS").read_text().splitlines()[0])
    says("4 parts of .* come to another SHA-256 .*: one is damaged")
    (parts / "cifar.part2").unlink()
    says(f"part 2 of {ARCHIVE} is missing")
    (parts / "cifar.part2").write_bytes(own)
    (parts / "again.part2").write_bytes(own)
    says(f"part 2 of {ARCHIVE} is there twice")
    (parts / "again.part2").unlink()
    (parts / "SHA256SUMS").write_text("what is this")
    says("is no list of checksums")
    (parts / "SHA256SUMS").unlink()
    says("4 parts of .* come to another SHA-256 than 58a81ae")  # the official archive's, which nesskit knows
    for path in parts.glob("*part*"):
        path.unlink()
    says("holds neither")
