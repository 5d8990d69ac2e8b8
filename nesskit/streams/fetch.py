"""Find the files that a stream reads: in a mirror, in the cache, or on the internet. Nothing unverified is handed out.

Where a file is looked for, in this order:

1. ``NESSKIT_MIRROR``, a folder or an http(s) address that holds files under the names of ``registry.toml`` and a
   ``SHA256SUMS``. Whatever that list names is taken from the mirror and checked against the list. A folder is read in
   place; from an address, files are kept in the cache, apart from the official ones.
2. The cache: ``NESSKIT_CACHE``, else ``data/cache`` of a checkout, else ``nesskit`` in the user's cache folder.
3. The addresses in ``registry.toml``, one after the other, downloaded into the cache.

pooch does the downloading and is imported only then: a machine without it trains on files that are there already.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import os
import re
import tomllib
import urllib.request
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from nesskit.errors import DataError, UnknownNameError
from nesskit.streams.names import LOADERS

SUMS = "SHA256SUMS"
TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class RegistryEntry:
    """What ``registry.toml`` knows of one file; ``sha256`` is empty if no checksum was published, size 0 if unknown."""

    name: str
    dataset: str
    streams: tuple[str, ...]
    urls: tuple[str, ...]
    size: int
    sha256: str
    note: str
    title: str
    licence: str
    citation: str
    homepage: str


class VerifiedFile(NamedTuple):
    """A file whose bytes have just been verified, and their SHA-256."""

    path: Path
    sha256: str


@functools.cache
def registry() -> Mapping[str, RegistryEntry]:
    """Every file that a stream may need, by name, in the order in which the streams read them."""
    content = tomllib.loads(Path(__file__).with_name("registry.toml").read_text(encoding="utf-8"))
    return {
        name: RegistryEntry(
            name=name,
            dataset=fields["dataset"],
            streams=tuple(fields["streams"]),
            urls=tuple(fields["urls"]),
            size=fields["size"],
            sha256=fields["sha256"],
            note=fields.get("note", ""),
            **content["datasets"][fields["dataset"]],
        )
        for name, fields in content["files"].items()
    }


def cache_folder() -> Path:
    """Where downloaded files are kept; the folder need not exist yet."""
    if chosen := os.environ.get("NESSKIT_CACHE", "").strip():
        return Path(chosen).expanduser().absolute()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        return checkout / "data" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nesskit"


def fetch(filename: str) -> Path:
    """The verified file of that name, downloaded first if need be.

    Raises:
        UnknownNameError: the registry has no file of that name.
        DataError: it is nowhere to be had, or not what it should be; says where it was looked for and the ways out.
    """
    return locate(filename).path


def fetch_stream(stream: str) -> dict[str, Path]:
    """Every file that ``stream`` needs, verified, by name; empty for a stream that needs no download.

    Raises:
        UnknownNameError: no stream of that name.
        DataError: as in :func:`fetch`, for the first file that cannot be had. Those before it stay in the cache.
    """
    return {name: file.path for name, file in locate_stream(stream).items()}


def locate_stream(stream: str, download: bool = True) -> dict[str, VerifiedFile]:
    """What :func:`fetch_stream` finds, together with the checksums; ``download`` as in :func:`locate`."""
    if stream not in LOADERS:
        raise UnknownNameError("stream", stream, LOADERS)
    needed = {name: entry for name, entry in registry().items() if stream in entry.streams}
    # Of the streams that share a file, an error is to name the one that was asked for.
    return {name: _locate(replace(entry, streams=(stream,)), download) for name, entry in needed.items()}


def check_stream(stream: str) -> None:
    """Make sure that every file of ``stream`` is here already, and verified; nothing is downloaded.

    Raises:
        UnknownNameError: no stream of that name.
        DataError: as in :func:`fetch`, for the first file that is not here.
    """
    locate_stream(stream, download=False)


def locate(filename: str, download: bool = True) -> VerifiedFile:
    """What :func:`fetch` finds, together with its SHA-256; without ``download`` only what is here already."""
    if filename not in registry():
        raise UnknownNameError("data file", filename, registry())
    return _locate(registry()[filename], download)


def _locate(entry: RegistryEntry, download: bool) -> VerifiedFile:
    """The file of ``entry``, from the mirror, the cache or the internet."""
    tried: list[str] = []
    if mirror := os.environ.get("NESSKIT_MIRROR", "").strip():
        found = _from_mirror(mirror, entry, download)
        if found:
            return found
        tried.append(f"the {SUMS} of the mirror {mirror} does not list it")
    found = _from_cache(entry, tried)
    if not found and not download:
        raise _missing(entry, tried)
    return found or _from_internet(entry, tried)


def _from_mirror(mirror: str, entry: RegistryEntry, download: bool) -> VerifiedFile | None:
    """The file as the mirror has it, or None where the mirror's list does not name it."""
    remote = mirror.startswith(("http://", "https://"))
    folder = _copy_of_remote_mirror(mirror) if remote else Path(mirror).expanduser().absolute()
    try:
        expected = (_remote_sums(mirror, folder) if remote else read_sums(folder)).get(entry.name)
    except DataError:  # the cache cannot be written; it is a ValueError, too
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = f"NESSKIT_MIRROR is {mirror}, but no {SUMS} could be read there ({_reason(error)})"
        raise _missing(entry, [reason]) from error
    if expected is None:
        return None
    path = folder / entry.name
    found = sha256_of(path) if path.is_file() else ""
    if found != expected and remote and not download:
        raise _missing(entry, [f"the mirror {mirror} has it, but it was not downloaded yet"])
    if found != expected and remote:
        reason = _download(f"{mirror.rstrip('/')}/{entry.name}", path, expected)
        if reason:
            raise _missing(entry, [f"the mirror {mirror} lists it, but downloading it failed ({reason})"])
    elif not found:
        raise _missing(entry, [f"the {SUMS} of the mirror {mirror} lists it, but the file is not there"])
    elif found != expected:
        raise _missing(entry, [f"{path} is damaged: its SHA-256 is {found}, the mirror's {SUMS} says {expected}"])
    return VerifiedFile(path, expected)


def _copy_of_remote_mirror(mirror: str) -> Path:
    """The part of the cache that belongs to the mirror behind an address."""
    return cache_folder() / "mirrors" / hashlib.sha256(mirror.rstrip("/").encode()).hexdigest()[:16]


def _remote_sums(mirror: str, folder: Path) -> dict[str, str]:
    """A remote mirror's list, kept in ``folder``; when the mirror is out of reach, the list that was kept.

    So a student at home keeps working on what was fetched in the classroom.
    """
    try:
        with urllib.request.urlopen(f"{mirror.rstrip('/')}/{SUMS}", timeout=TIMEOUT_SECONDS) as answer:
            content = answer.read()
    except (OSError, ValueError, http.client.HTTPException):
        if not (folder / SUMS).is_file():
            raise
        return read_sums(folder)
    sums = _parse_sums(content.decode())  # before it replaces a list that may be a good one
    _write(folder / SUMS, content)
    return sums


def read_sums(folder: Path) -> dict[str, str]:
    """What the SHA256SUMS in ``folder`` says: file name -> SHA-256.

    Raises:
        OSError, ValueError: it cannot be read, or is no such list.
    """
    return _parse_sums((folder / SUMS).read_text(encoding="utf-8"))


def _parse_sums(text: str) -> dict[str, str]:
    """What ``sha256sum`` writes: file name -> SHA-256."""
    checksums = {}
    for line in filter(str.strip, text.splitlines()):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)", line.rstrip())
        if not match:
            raise ValueError(f"this line of it is no '<SHA-256>  <name>': {line[:100]!r}")
        checksums[match[2]] = match[1].lower()
    return checksums


def _from_cache(entry: RegistryEntry, tried: list[str]) -> VerifiedFile | None:
    """The file as the cache has it, or None with the reason added to ``tried``."""
    path = cache_folder() / entry.name
    if not path.is_file():
        tried.append(f"{path} does not exist")
        return None
    found, expected = sha256_of(path), entry.sha256 or _recorded(path)
    if not expected:
        _record(path, found)
    elif found != expected:
        hint = "" if entry.sha256 else f" (delete {_record_of(path)} if it was replaced on purpose)"
        tried.append(f"{path} is damaged or another file: its SHA-256 is {found}, not {expected}{hint}")
        return None
    return VerifiedFile(path, found)


def _from_internet(entry: RegistryEntry, tried: list[str]) -> VerifiedFile:
    """The file from the first of its addresses that delivers the right bytes."""
    path = cache_folder() / entry.name
    expected = entry.sha256 or _recorded(path)
    for url in entry.urls:
        reason = _download(url, path, expected)
        if not reason:
            found = expected or sha256_of(path)
            if not expected:
                _record(path, found)
            return VerifiedFile(path, found)
        tried.append(f"{url} failed ({reason})")
    raise _missing(entry, tried)


def _download(url: str, path: Path, expected: str) -> str:
    """Download to ``path`` and verify; an empty string if that worked, else the reason.

    pooch writes beside ``path`` and renames only what has the right checksum, so that a broken download leaves no
    trace and a file that was there before stays.
    """
    try:
        import pooch
    except ImportError:
        return "the package pooch, which downloads, is not installed: pip install pooch"
    try:
        # "identity": else a server that calls a .gz file an encoding would have it unpacked on the way.
        downloader = pooch.HTTPDownloader(
            progressbar=True, chunk_size=1 << 16, timeout=TIMEOUT_SECONDS, headers={"Accept-Encoding": "identity"}
        )
        pooch.retrieve(url, known_hash=expected or None, fname=path.name, path=path.parent, downloader=downloader)
    except (OSError, ValueError) as error:  # all of requests' errors are OSErrors; a wrong checksum is a ValueError
        return _reason(error)
    return ""


def _reason(error: BaseException) -> str:
    """What went wrong, in a few words: the status of a server's answer or else the innermost cause."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "code", None)
    if status:
        return f"the server answered with status {status}"
    if "does not match the known hash" in str(error):
        return "the download is incomplete or another file: its SHA-256 is not the expected one"
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _record_of(path: Path) -> Path:
    """Where the checksum of the first copy of a file is kept, in the format of ``sha256sum``."""
    return path.with_name(path.name + ".sha256")


def _recorded(path: Path) -> str:
    """The checksum that :func:`_record` wrote, or an empty string."""
    record = _record_of(path)
    words = record.read_text(encoding="utf-8").split() if record.is_file() else []
    return words[0] if words else ""


def _record(path: Path, checksum: str) -> None:
    """Hold a file without a published checksum to the one it has today."""
    _write(_record_of(path), f"{checksum}  {path.name}\n".encode())
    warnings.warn(
        f"no checksum is published for {path.name}, so that of this first copy was written to {_record_of(path)} "
        "and every later use is checked against it",
        stacklevel=2,
    )


def _write(path: Path, content: bytes) -> None:
    """All of ``content`` or nothing: it is written beside ``path`` and renamed."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, about half a second per 200 MB."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _missing(entry: RegistryEntry, tried: list[str]) -> DataError:
    """The error that says what was looked for, where, and the three ways to get it."""
    size = f", {entry.size / 1e6:.3g} MB" if entry.size else ""
    stream = entry.streams[0]
    download = (
        f"run `nesskit fetch {stream}` on a machine with internet"
        if entry.urls
        else f"`nesskit fetch {stream}` will do once it can be downloaded, but {entry.note}"
    )
    return DataError(
        f"{stream} needs the file '{entry.name}' ({entry.title}{size}), which could not be had: {'; '.join(tried)}. "
        f"Three ways to get it: (1) {download}; (2) set NESSKIT_MIRROR to a folder or http address that has the file "
        f"and a {SUMS}; (3) put the file by hand into the cache folder {cache_folder()}."
    )
