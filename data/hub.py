"""Models on the Hugging Face Hub by name, wherever the path of a model or of a tokenizer may stand.

    owner/name                       the newest commit of the repository's main branch
    owner/name@revision              a branch, a tag, a commit, or refs/pr/N
    owner/name/model.Q8_0.gguf       a file of the repository, or a folder of it
    hf:owner/name                    the same, also where a file or folder of that name is here

A name without hf: is taken for a repository only if nothing exists at the path and nothing exists at its first folder.
So a misspelt path below a folder that is here is never asked for on the Hub. Files are stored in the cache of the
library huggingface_hub, which several programs share, and are read from there.
"""

import contextlib
import functools
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from etils import epath

from ..errors import UserError, did_you_mean
from .console import shows, tell

PREFIX = re.compile(r"hf:/{0,2}")
NAME = re.compile(
    r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>refs/\w+/[^/@]+|[^/@]+))?(/(?P<inside>[^/].*))?", re.ASCII
)
WEB = re.compile(r"(hf:/{0,2})?((https?|file):/|(www\.)?(huggingface|hf)\.co/).*")
"""Matches the address of a page or of a file."""

OTHER_FILES = (
    ".bin", ".gguf", ".h5", ".jinja", ".json", ".jsonl", ".model", ".msgpack", ".npz", ".parquet", ".pt", ".pth", ".py",
    ".safetensors", ".tar", ".toml", ".txt", ".vocab", ".yaml", ".yml", ".zip",
)  # fmt: skip
"""Endings of files. `folder/file.ending` is a path, never the name of a repository, unless it begins with hf:."""

SNAPSHOT = re.compile(
    r"(?:.*/)?models--(?P<owner>(?:(?!--)[^/])+)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})"
    r"(?:/(?P<inside>.*))?"
)
"""Matches a path in the cache of huggingface_hub."""

TIMEOUT_SECONDS = 10.0
"""Time for the first answer of the Hub."""

INSTALL = "pip install 'camelid[hub]'"
HTTP_CLIENTS = ("httpx", "httpx2", "httpcore", "requests", "urllib3")
"""Libraries whose errors say that the Hub was not reached; versions of huggingface_hub use different ones."""

Choose = Callable[[Sequence[str], str | None, Callable[[str], bytes]], Iterable[str]]
"""choose(names, asked, read) -> the names of the files to fetch. `names` are all files of the folder and its folders,
relative to it. `asked` is the file that the user named, None where it is the folder. `read(name)` returns the content
of a file. Raises UserError where the folder has nothing to read; the message goes on from the name of the model."""


class HubName(NamedTuple):
    """A model on the Hub, as a user names it."""

    repository: str
    """owner/name."""
    revision: str | None = None
    """A branch, tag or commit; None for the main branch."""
    inside: str | None = None
    """A file or folder of the repository; None for the whole repository."""


class Snapshot(NamedTuple):
    """A commit of a repository in the cache of huggingface_hub, or a file or folder of it."""

    repository: str
    """owner/name."""
    commit: str
    """The hash of the commit."""
    inside: str | None = None
    """A file or folder of the repository; None for the whole repository."""

    @classmethod
    def of(cls, path: epath.PathLike) -> "Snapshot | None":
        """The snapshot that a path lies in; None for a path elsewhere."""
        match = SNAPSHOT.fullmatch(os.fspath(path).rstrip("/"))
        return match and cls(f"{match['owner']}/{match['name']}", match["commit"], match["inside"] or None)

    @property
    def name(self) -> str:
        """The name without the commit, for messages: owner/name, or owner/name/file.gguf."""
        return "/".join(filter(None, (self.repository, self.inside)))

    @property
    def address(self) -> str:
        """The name that opens exactly this commit on any machine: hf:owner/name@commit."""
        return "/".join(filter(None, (f"hf:{self.repository}@{self.commit}", self.inside)))


def name_of(path: epath.PathLike) -> HubName | None:
    """The model on the Hub that a path names; None for a path on this machine, which may be a misspelt one.

    Raises:
      UserError: the path begins with hf: and is no name of a repository.
    """
    given = os.fspath(path)
    prefix = PREFIX.match(given)
    match = NAME.fullmatch(given[prefix.end() if prefix else 0 :].rstrip("/"))
    if match is not None and ("--" in match["repository"] or ".." in given):  # the Hub has no such names
        match = None
    if prefix and match is None:
        raise UserError(f"{given}: give hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FILE.gguf")
    if not prefix and (match is None or _is_local(given, match)):
        return None
    return HubName(match["repository"], match["revision"], match["inside"])


def _is_local(given: str, match: re.Match) -> bool:
    """Whether a path that could be a repository's name means a file or folder of this machine, there or misspelt."""
    is_file = match["inside"] is None and match["revision"] is None and given.lower().endswith(OTHER_FILES)
    return is_file or os.path.lexists(given) or os.path.lexists(given.partition("/")[0])


def refuse_address(path: epath.PathLike) -> None:
    """Raises UserError if the path of a model is the address of a web page or of a file."""
    given = os.fspath(path)
    if WEB.fullmatch(given):
        named = re.search(r"\.co/([\w.-]+/[\w.-]+)", given)
        near = f", as in {named[1]}" if named else ""
        raise UserError(f"{given}: give a path, or the name of a model on the Hub without its address{near}")


def shown(path: epath.PathLike) -> str:
    """The name of a path for messages: that of the model on the Hub for a path in the cache of huggingface_hub."""
    found = Snapshot.of(path)
    return str(path) if found is None else found.name


def local_path(path: epath.PathLike, choose: Choose) -> epath.PathLike:
    """The path of a model on this machine: the path itself, or, for a model on the Hub, its copy in the cache.

    A process asks for a name once, so that all its parts read the same commit. If the Hub cannot be reached, the copy
    that is in the cache is used.

    Args:
      path: a path or the name of a model on the Hub.
      choose: chooses the files to fetch.

    Raises:
      UserError: the path is the address of a web page, there is no such model, access to it is not granted, it has no
        files to read, or the Hub cannot be reached and the cache has no whole copy.
    """
    refuse_address(path)
    name = name_of(path)
    return path if name is None else epath.Path(_fetch(name, choose, os.fspath(path)))


@functools.lru_cache(maxsize=256)
def _fetch(name: HubName, choose: Choose, given: str) -> str:
    """The path in the cache of a model on the Hub, with the files that `choose` names. given: as the user wrote it."""
    hub = _library(given)
    try:
        info = hub.HfApi().model_info(
            name.repository, revision=name.revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
    except Exception as error:
        if not _not_reached(hub, error):
            _refuse(hub, error, name, given)
        return _cached(hub, name, choose, given, error)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}

    def read(file: str) -> bytes:
        with _progress(hub):
            return Path(hub.hf_hub_download(name.repository, file, revision=name.revision)).read_bytes()

    try:
        files = _choose(name, list(sizes), choose, read, given)
        _announce(hub, name, {file: sizes[file] for file in files}, info.sha)
        patterns = [re.sub(r"([*?[])", r"[\1]", file) for file in files]
        with _progress(hub):
            folder = hub.snapshot_download(name.repository, revision=name.revision, allow_patterns=patterns)
    except UserError:
        raise
    except Exception as error:
        _refuse(hub, error, name, given)
    return os.path.join(folder, name.inside or "").rstrip("/")


def _cached(hub: Any, name: HubName, choose: Choose, given: str, why: Exception) -> str:
    """The path of the copy that is in the cache already, for a Hub that cannot be reached.

    Args:
      hub: the library.
      name: the model.
      choose: chooses the files that have to be there.
      given: the name as the user wrote it.
      why: the error that says that the Hub was not reached.
    """
    said = _why_not_reached(hub, why)
    try:  # none of the files is asked for here: `choose` says which have to be there
        folder = Path(
            hub.snapshot_download(name.repository, revision=name.revision, allow_patterns=[], local_files_only=True)
        )
    except Exception:
        raise UserError(f"{_not_here(given)}{said}, and its cache has no copy of {name.repository}") from why
    names = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() or os.path.islink(file)]
    partly = f"{_not_here(given)}{said}, and its cache has only a part of {name.repository}"
    try:
        files = _choose(name, names, choose, lambda file: (folder / file).read_bytes(), given)
    except UserError:
        raise UserError(partly) from why
    if missing := [file for file in files if not (folder / file).exists()]:
        raise UserError(f"{partly}: {missing[0]} is missing") from why
    if not hub.constants.HF_HUB_OFFLINE:
        tell(f"{given}: {said}; its copy of commit {folder.name[:12]} in the cache is used")
    return os.path.join(folder, name.inside or "").rstrip("/")


def _choose(name: HubName, names: Sequence[str], choose: Choose, read: Callable[[str], bytes], given: str) -> list[str]:
    """The files of a repository to fetch, by their names in the repository.

    Args:
      name: the model.
      names: all files of the repository.
      choose: chooses among those of the folder.
      read: reads a file of the repository.
      given: the name as the user wrote it.
    """
    folder, asked = "", None
    if name.inside is not None:
        if name.inside in names:
            folder, _, asked = name.inside.rpartition("/")
        else:
            folder = name.inside
        folder = folder and f"{folder}/"
    inside = [each.removeprefix(folder) for each in names if each.startswith(folder)]
    if not inside:
        near = did_you_mean(name.inside or "", names)
        raise UserError(f"{given}: {name.repository} on the Hub has no file or folder {name.inside}{near}")
    try:
        return [folder + each for each in choose(inside, asked, lambda file: read(folder + file))]
    except UserError as error:
        raise UserError(f"{given}: {name.repository} on the Hub {error}") from None


def _announce(hub: Any, name: HubName, sizes: dict[str, int], commit: str) -> None:
    """Tells what is going to be fetched, if anything is. sizes: {file: bytes}."""
    found = {file: hub.try_to_load_from_cache(name.repository, file, revision=commit) for file in sizes}
    missing = [file for file, path in found.items() if not isinstance(path, str)]
    if missing:
        size = sum(sizes[file] for file in missing)
        amount = f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
        tell(f"{name.repository}: fetching {len(missing)} file(s), {amount}, of commit {commit[:12]} from the Hub")


@contextlib.contextmanager
def _progress(hub: Any) -> Iterator[None]:
    """Shows the library's progress bars on a terminal only, and not where progress is not asked for."""
    if (sys.stderr.isatty() and shows("info")) or hub.utils.are_progress_bars_disabled():
        yield
        return
    hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        hub.utils.enable_progress_bars()


def cached_file(name: HubName, file: str) -> str | None:
    """The path of a file of a repository in the cache; None if it is not there. The Hub is not asked."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(name.repository, file, revision=name.revision)
    return found if isinstance(found, str) else None


# Errors ---------------------------------------------------------------------------------------------------------------


def _library(given: str) -> Any:
    """The module huggingface_hub. Raises UserError if it is not installed. given: the name that needs it."""
    try:
        importlib.import_module("huggingface_hub.errors")
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(f"{_not_here(given)}models on the Hugging Face Hub need {INSTALL}") from None


def _not_here(given: str) -> str:
    """The beginning of a message: for a name that could be a misspelt path, that there is no such path."""
    return f"{given}: " if PREFIX.match(given) else f"{given}: no such path here, and "


def _not_reached(hub: Any, error: Exception) -> bool:
    """Whether an error says that the Hub was not reached or is out of order."""
    if isinstance(error, hub.errors.HfHubHTTPError):
        status = getattr(getattr(error, "response", None), "status_code", 0)
        return status == 429 or status >= 500
    is_network = isinstance(error, ConnectionError | TimeoutError | hub.errors.LocalEntryNotFoundError)
    return is_network or type(error).__module__.partition(".")[0] in HTTP_CLIENTS


def _why_not_reached(hub: Any, error: Exception) -> str:
    """The words for a Hub that was not reached."""
    if hub.constants.HF_HUB_OFFLINE:
        return "the Hugging Face Hub is not asked, because HF_HUB_OFFLINE is set"
    return f"the Hugging Face Hub at {hub.constants.ENDPOINT} cannot be reached ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    """The first line of an error's message, or its class where it has none."""
    return next(iter(str(error).strip().splitlines()), "").strip()[:200] or type(error).__name__


def _refuse(hub: Any, error: Exception, name: HubName, given: str) -> NoReturn:
    """Raises the UserError for an error of huggingface_hub; errors of the disk are raised as they are."""
    errors, page = hub.errors, f"{hub.constants.ENDPOINT}/{name.repository}"
    token = "set HF_TOKEN, or log in with `hf auth login`"
    if isinstance(error, errors.GatedRepoError):
        said = f"{given}: its owner gives access on request: ask for it at {page}, then {token}"
    elif isinstance(error, errors.RevisionNotFoundError):
        said = f"{given}: {name.repository} on the Hub has no revision {name.revision}"
    elif isinstance(error, errors.RepositoryNotFoundError):
        said = f"{_not_here(given)}no model {name.repository} on the Hub ({page}); if it is private, {token}"
    elif isinstance(error, errors.HFValidationError):
        said = f"{_not_here(given)}it is no name on the Hub: {_first_line(error)}"
    elif _not_reached(hub, error):
        said = f"{_not_here(given)}{_why_not_reached(hub, error)}"
    elif isinstance(error, errors.HfHubHTTPError):
        said = f"{_not_here(given)}the Hugging Face Hub refused: {_first_line(error)}"
    elif isinstance(error, OSError) and error.errno is not None:
        raise error
    else:
        said = f"{given}: the Hugging Face Hub gave an answer that cannot be read: {_first_line(error)}"
    raise UserError(said) from error
