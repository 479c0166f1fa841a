"""Download a version beside what is already there: private until every digest is right, then one rename."""

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

from raydistill.core import storage
from raydistill.core.errors import NotFoundError, VerificationError
from raydistill.core.etags import find_etag
from raydistill.core.records import FileEntry, Version
from raydistill.core.uris import NAME, join
from raydistill.registry.files import ADAPTER_FILES, check_file
from raydistill.registry.versions import VERSION_FILE


def fetch_version(uri: str, version: Version, folder: str | Path, seconds: dict[str, float] | None = None) -> Path:
    """Return a local folder with the version's two files, every digest checked; download it where it is not there.

    Args:
        uri: the model's registry folder.
        version: as read from there.
        folder: the local cache; the version's own folder in it is never used for other weights.
        seconds: takes what a download took, under "download" and "digests".

    Raises:
        VerificationError: the version lists other files than an adapter's two, or a size or digest is wrong.
        NotFoundError: a file that it lists is missing. The store may be slow to show it, so this is no verdict.
    """
    seconds = {} if seconds is None else seconds
    names = sorted(entry.name for entry in version.files)
    if names != sorted(ADAPTER_FILES):
        raise VerificationError(f"{uri}/{version.label} lists the files {names}; allowed are {sorted(ADAPTER_FILES)}.")
    if not NAME.fullmatch(version.name):  # a folder is named by it
        raise VerificationError(f"{uri}/{version.label} is of a model named {version.name!r}, which is no name.")
    target = Path(folder) / f"{version.name}-{version.label}-{version.content_digest}"
    if target.is_dir() and _is_whole(target, version):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for entry in version.files:
            start = time.perf_counter()
            place = join(uri, version.label, entry.name)
            data = _read(place, entry)
            (private / entry.name).write_bytes(data)
            middle = time.perf_counter()
            check_file(entry, data, place)
            seconds["download"] = seconds.get("download", 0.0) + middle - start
            seconds["digests"] = seconds.get("digests", 0.0) + time.perf_counter() - middle
        _put_in_place(private, target, version)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return target


def _is_whole(target: Path, version: Version) -> bool:
    try:
        for entry in version.files:
            check_file(entry, _read(str(target / entry.name), entry), str(target))
    except (VerificationError, NotFoundError):
        return False
    return True


def _read(place: str, entry: FileEntry) -> bytes:
    try:
        return storage.read_bytes(place, max_bytes=entry.bytes)
    except NotFoundError as error:
        raise NotFoundError(f"{place} is missing, but the version lists it. Publish the adapter again.") from error


def find_content(uri: str, label: str) -> str:
    """Return what changes when a version's files do, without reading them; see `etags.find_etag`."""
    return " ".join(find_etag(join(uri, label, name)) for name in (VERSION_FILE, *ADAPTER_FILES))


def _put_in_place(private: Path, target: Path, version: Version) -> None:
    """Rename into place; a damaged folder is moved aside first, a whole one of another process is kept."""
    if target.exists() and not _is_whole(target, version):
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        with contextlib.suppress(OSError):
            target.rename(aside / "damaged")
        shutil.rmtree(aside, ignore_errors=True)
    try:
        private.rename(target)
    except OSError:
        if not _is_whole(target, version):
            raise
