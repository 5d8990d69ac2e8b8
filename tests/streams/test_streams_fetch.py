"""Files come verified or not at all, and the error says where they were looked for and how to get them."""

import hashlib
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from archives import write_mirror

import nesskit.streams.fetch as module
from nesskit.errors import DataError, UnknownNameError
from nesskit.streams import LOADERS, check_stream, fetch_stream
from nesskit.streams.fetch import RegistryEntry, cache_folder, fetch, registry

CONTENT = b"real bytes " * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def register(monkeypatch):
    """Makes the registry know one file, data.bin, at the given addresses."""

    def put(*urls, sha256=SHA256, note=""):
        entry = RegistryEntry(
            "data.bin", "d", ("split-cifar100",), urls, len(CONTENT), sha256, note, "Some Data", "MIT", "A. Author", ""
        )
        monkeypatch.setattr(module, "registry", lambda: {"data.bin": entry})

    return put


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror folder that has data.bin."""
    folder = write_mirror(tmp_path / "mirror", {"data.bin": CONTENT})
    monkeypatch.setenv("NESSKIT_MIRROR", str(folder))
    return folder


# ---------------------------------------------------------------------------------------------------- download


def test_downloads_once_and_verifies(server, register, cache_dir):
    server.files["data.bin"] = CONTENT
    register(server.url("data.bin"))
    assert fetch("data.bin").read_bytes() == CONTENT
    assert fetch("data.bin") == cache_dir / "data.bin"
    assert server.requests == ["data.bin"]
    assert files_in(cache_dir) == ["data.bin"]


@pytest.mark.parametrize("served", [b"other bytes", CONTENT[:-1], b"", CONTENT + b"!"])
def test_wrong_or_truncated_bytes_leave_nothing_behind(server, register, cache_dir, served):
    server.files["data.bin"] = served
    register(server.url("data.bin"))
    with pytest.raises(DataError, match="its SHA-256 is not the expected one"):
        fetch("data.bin")
    assert files_in(cache_dir) == []


@pytest.mark.parametrize("sha256", [SHA256, ""], ids=["checksum known", "checksum unknown"])
def test_a_connection_that_drops_leaves_nothing_behind(server, register, cache_dir, sha256):
    server.files["data.bin"] = CONTENT
    server.dropped.add("data.bin")
    register(server.url("data.bin"), sha256=sha256, note="no checksum")
    with pytest.raises(DataError, match=re.escape(server.url("data.bin")) + " failed"):
        fetch("data.bin")
    assert files_in(cache_dir) == []
    server.dropped.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fetch("data.bin").read_bytes() == CONTENT


def test_the_next_address_is_tried(server, dead_url, register):
    server.files.update({"broken": b"other bytes", "data.bin": CONTENT})
    register(f"{dead_url}/data.bin", server.url("absent"), server.url("broken"), server.url("data.bin"))
    assert fetch("data.bin").read_bytes() == CONTENT
    assert server.requests == ["absent", "broken", "data.bin"]


def test_every_failure_is_reported_with_its_reason(server, dead_url, register, cache_dir):
    register(f"{dead_url}/data.bin", server.url("absent"))
    with pytest.raises(DataError) as caught:
        fetch("data.bin")
    text = str(caught.value)
    assert f"{dead_url}/data.bin failed (Connection refused)" in text
    assert f"{server.url('absent')} failed (the server answered with status 404)" in text
    assert "split-cifar100 needs the file 'data.bin' (Some Data, 0.055 MB)" in text
    assert f"{cache_dir / 'data.bin'} does not exist" in text


def test_the_error_names_three_ways(register, cache_dir):
    register(note="nobody serves it")
    with pytest.raises(DataError) as caught:
        fetch("data.bin")
    text = str(caught.value)
    for way in ("(1) `nesskit fetch split-cifar100`", "nobody serves it", "(2) set NESSKIT_MIRROR", "SHA256SUMS"):
        assert way in text
    assert f"(3) put the file by hand into the cache folder {cache_dir}" in text
    assert "\n" not in text


# ---------------------------------------------------------------------------------------------------- the cache


def test_a_damaged_file_in_the_cache_is_not_trusted(register, cache_dir):
    register()
    cache_dir.mkdir()
    (cache_dir / "data.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=f"damaged or another file: its SHA-256 is .*, not {SHA256}"):
        fetch("data.bin")
    assert (cache_dir / "data.bin").exists()


def test_a_damaged_file_in_the_cache_is_replaced_by_a_good_download(server, register, cache_dir):
    server.files["data.bin"] = CONTENT
    register(server.url("data.bin"))
    cache_dir.mkdir()
    (cache_dir / "data.bin").write_bytes(CONTENT[:-1])
    assert fetch("data.bin").read_bytes() == CONTENT


def test_a_failed_download_does_not_touch_the_cached_file(server, register, cache_dir):
    server.files["data.bin"] = CONTENT
    server.dropped.add("data.bin")
    register(server.url("data.bin"))
    cache_dir.mkdir()
    (cache_dir / "data.bin").write_bytes(b"put here by hand")
    with pytest.raises(DataError):
        fetch("data.bin")
    assert (cache_dir / "data.bin").read_bytes() == b"put here by hand"
    assert files_in(cache_dir) == ["data.bin"]


def test_without_a_published_checksum_the_first_copy_counts(register, cache_dir):
    register(sha256="", note="no checksum")
    cache_dir.mkdir()
    (cache_dir / "data.bin").write_bytes(CONTENT)
    with pytest.warns(UserWarning, match="no checksum is published for data.bin"):
        fetch("data.bin")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fetch("data.bin").read_bytes() == CONTENT
    assert (cache_dir / "data.bin.sha256").read_text() == f"{SHA256}  data.bin\n"
    (cache_dir / "data.bin").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"delete .*data\.bin\.sha256 if it was replaced on purpose"):
        fetch("data.bin")


def test_without_a_published_checksum_a_download_is_recorded(server, register, cache_dir):
    server.files["data.bin"] = CONTENT
    register(server.url("data.bin"), sha256="", note="no checksum")
    with pytest.warns(UserWarning, match="every later use is checked against it"):
        fetch("data.bin")
    (cache_dir / "data.bin").unlink()
    server.files["data.bin"] = b"something else"
    with pytest.raises(DataError, match="another file"):
        fetch("data.bin")


def test_where_the_cache_lies(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("NESSKIT_CACHE")
    assert cache_folder() == Path(module.__file__).resolve().parents[2] / "data" / "cache"
    monkeypatch.setattr(module, "__file__", str(tmp_path / "site-packages" / "nesskit" / "streams" / "fetch.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "nesskit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "nesskit"


# ---------------------------------------------------------------------------------------------------- mirrors


def test_a_mirror_folder_is_read_in_place(register, mirror, cache_dir):
    register(sha256="0" * 64)  # what the registry says does not count for what the mirror lists
    assert fetch("data.bin") == mirror / "data.bin"
    assert not cache_dir.exists()


def test_a_mirror_wins_over_the_cache(register, mirror, cache_dir):
    register()
    cache_dir.mkdir()
    (cache_dir / "data.bin").write_bytes(CONTENT)
    assert fetch("data.bin") == mirror / "data.bin"


def test_a_mirror_with_a_wrong_sum_is_an_error(register, mirror):
    register()
    (mirror / "data.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=r"is damaged: its SHA-256 is .* the mirror's SHA256SUMS says"):
        fetch("data.bin")


def test_what_a_mirror_does_not_list_comes_from_elsewhere(register, mirror, cache_dir):
    register()
    (mirror / "SHA256SUMS").write_text("")
    with pytest.raises(DataError, match=f"the SHA256SUMS of the mirror {mirror} does not list it"):
        fetch("data.bin")
    cache_dir.mkdir()
    (cache_dir / "data.bin").write_bytes(CONTENT)
    assert fetch("data.bin") == cache_dir / "data.bin"


def test_a_mirror_that_lacks_what_it_lists_is_an_error(register, mirror):
    register()
    (mirror / "data.bin").unlink()
    with pytest.raises(DataError, match="lists it, but the file is not there"):
        fetch("data.bin")


@pytest.mark.parametrize("where", ["absent", "without sums"])
def test_a_mirror_that_is_none_is_an_error(register, tmp_path, monkeypatch, cache_dir, where):
    register()
    (tmp_path / "without sums").mkdir()
    cache_dir.mkdir()
    (cache_dir / "data.bin").write_bytes(CONTENT)  # a wrong setting must not pass unnoticed
    monkeypatch.setenv("NESSKIT_MIRROR", str(tmp_path / where))
    with pytest.raises(DataError, match=r"no SHA256SUMS could be read there \(No such file or directory\)"):
        fetch("data.bin")


def test_sums_that_are_no_sums_are_an_error(register, mirror):
    register()
    (mirror / "SHA256SUMS").write_text("<html>please log in</html>\n")
    with pytest.raises(DataError, match="please log in"):
        fetch("data.bin")


@pytest.mark.parametrize("line", ["{sum} *data.bin\r\n", "{sum}  ./data.bin\n", "\n{SUM}  data.bin"])
def test_sums_in_the_forms_that_tools_write(register, mirror, line):
    register(sha256="0" * 64)
    (mirror / "SHA256SUMS").write_text(line.format(sum=SHA256, SUM=SHA256.upper()), newline="")
    assert fetch("data.bin") == mirror / "data.bin"


@pytest.fixture
def remote(server, register, monkeypatch):
    """A mirror behind an address; its data.bin is not the official one."""
    register(sha256="0" * 64)
    server.files.update({"m/data.bin": CONTENT, "m/SHA256SUMS": f"{SHA256}  data.bin\n".encode()})
    monkeypatch.setenv("NESSKIT_MIRROR", server.url("m"))
    return server


def test_a_remote_mirror_is_downloaded_once_and_kept_apart(remote, cache_dir):
    path = fetch("data.bin")
    assert path.read_bytes() == CONTENT
    assert path.parent.parent == cache_dir / "mirrors"
    assert fetch("data.bin") == path
    assert remote.requests == ["m/SHA256SUMS", "m/data.bin", "m/SHA256SUMS"]


def test_what_came_from_a_remote_mirror_serves_when_it_is_out_of_reach(remote):
    path = fetch("data.bin")
    remote.files.clear()
    assert fetch("data.bin") == path


def test_a_remote_mirror_with_a_wrong_sum_leaves_nothing_to_trust(remote, cache_dir):
    remote.files["m/data.bin"] = CONTENT[:-1]
    with pytest.raises(DataError, match="lists it, but downloading it failed"):
        fetch("data.bin")
    assert [Path(name).name for name in files_in(cache_dir)] == ["SHA256SUMS"]


def test_a_remote_mirror_that_is_updated_is_downloaded_again(remote):
    fetch("data.bin")
    newer = b"newer"
    sums = f"{hashlib.sha256(newer).hexdigest()}  data.bin\n".encode()
    remote.files.update({"m/data.bin": newer, "m/SHA256SUMS": sums})
    assert fetch("data.bin").read_bytes() == newer


def test_a_login_page_in_place_of_the_sums_does_not_replace_them(remote):
    path = fetch("data.bin")
    remote.files["m/SHA256SUMS"] = b"<html>please log in</html>"
    with pytest.raises(DataError, match="please log in"):
        fetch("data.bin")
    del remote.files["m/SHA256SUMS"]
    assert fetch("data.bin") == path


def test_a_cache_that_cannot_be_written_is_named(remote, cache_dir, monkeypatch):
    cache_dir.write_text("a file, no folder")
    with pytest.raises(DataError, match="SHA256SUMS cannot be written: Not a directory"):
        fetch("data.bin")
    monkeypatch.delenv("NESSKIT_MIRROR")
    with pytest.raises(DataError, match="does not exist"):
        fetch("data.bin")


def test_a_remote_mirror_that_does_not_list_a_file(remote):
    remote.files["m/SHA256SUMS"] = b""
    with pytest.raises(DataError, match="does not list it"):
        fetch("data.bin")


def test_a_remote_mirror_without_sums_is_an_error(remote, dead_url, monkeypatch):
    del remote.files["m/SHA256SUMS"]
    with pytest.raises(DataError, match=r"no SHA256SUMS could be read there \(the server answered with status 404"):
        fetch("data.bin")
    monkeypatch.setenv("NESSKIT_MIRROR", dead_url)
    with pytest.raises(DataError, match=r"no SHA256SUMS could be read there \(Connection refused\)"):
        fetch("data.bin")


# ---------------------------------------------------------------------------------------------------- without pooch


def test_files_that_are_there_need_no_pooch(register, mirror, cache_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    register()
    assert fetch("data.bin") == mirror / "data.bin"
    monkeypatch.delenv("NESSKIT_MIRROR")
    cache_dir.mkdir()
    (cache_dir / "data.bin").write_bytes(CONTENT)
    assert fetch("data.bin") == cache_dir / "data.bin"


def test_a_download_without_pooch_says_what_to_install(server, register, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    register(server.url("data.bin"))
    with pytest.raises(DataError, match="pip install pooch"):
        fetch("data.bin")


# ---------------------------------------------------------------------------------------------------- the registry


def test_unknown_names():
    with pytest.raises(UnknownNameError, match=r"did you mean 'notmnist\.zip'"):
        fetch("notmnist.zp")
    with pytest.raises(UnknownNameError, match="did you mean 'five-datasets'"):
        fetch_stream("five-dataset")


def test_streams_without_files_need_none():
    assert fetch_stream("split-digits") == {}


def test_the_registry_is_complete():
    needed = {stream: [e.name for e in registry().values() if stream in e.streams] for stream in LOADERS}
    assert {stream: len(names) for stream, names in needed.items() if names} == {
        "split-cifar100": 1,
        "split-cifar100-16": 1,
        "five-datasets": 12,
        "split-miniimagenet": 2,
        "split-clinc150": 2,
    }
    for entry in registry().values():
        assert set(entry.streams) <= set(LOADERS)
        assert entry.title
        assert entry.licence
        assert entry.citation
        assert Path(entry.name).name == entry.name
        assert all(url.startswith(("https://", "http://")) for url in entry.urls)
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256) if entry.sha256 else entry.note
        assert entry.size > 0 or not entry.sha256


def test_streams_share_a_file_and_an_error_names_the_one_that_was_asked_for(monkeypatch):
    name = "cifar-100-binary.tar.gz"
    monkeypatch.setattr(module, "registry", lambda: {name: replace(registry()[name], urls=())})
    for stream in ("split-cifar100", "split-cifar100-16"):
        with pytest.raises(DataError, match=rf"^{stream} needs the file '{name}'.*`nesskit fetch {stream}`"):
            check_stream(stream)


# -------------------------------------------------------------------------------------------- looking without fetching


def test_a_check_downloads_nothing(server, register, cache_dir):
    server.files["data.bin"] = CONTENT
    register(server.url("data.bin"))
    with pytest.raises(DataError, match=r"does not exist.*Three ways to get it"):
        check_stream("split-cifar100")
    assert server.requests == []
    fetch("data.bin")
    check_stream("split-cifar100")
    (cache_dir / "data.bin").write_bytes(b"damaged")
    with pytest.raises(DataError, match="damaged"):
        check_stream("split-cifar100")
    check_stream("split-digits")


def test_a_check_of_a_remote_mirror_reads_only_its_list(server, register, monkeypatch):
    server.files |= {"data.bin": CONTENT, "SHA256SUMS": f"{SHA256}  data.bin\n".encode()}
    register()
    monkeypatch.setenv("NESSKIT_MIRROR", server.url())
    with pytest.raises(DataError, match="not downloaded yet"):
        check_stream("split-cifar100")
    assert server.requests == ["SHA256SUMS"]
    fetch("data.bin")
    check_stream("split-cifar100")


@pytest.mark.usefixtures("mirror")
def test_a_check_accepts_what_a_mirror_folder_has(register):
    register()
    check_stream("split-cifar100")
