"""A name → local files. The only module that may use the network.

Knows which files a checkpoint has, by its config.json or by the published defaults; knows
nothing of what is in the weights. The hub's client is imported only for a name of the hub.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol

from . import catalog
from .errors import ConfigError, HubError
from .files import read_json

# What Moshi v0.1 was published with; it has no config.json.
_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "model.q8.safetensors", "model.q4.safetensors")
_MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"
_TOKENIZER = "tokenizer_spm_32k_3.model"
_LORA = "lora.safetensors"
_SPARE_BYTES = 100_000_000  # of the disk, beside what is fetched

_REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class ModelFiles:
    """The local files of one model. `weights` has several entries if they come in shards."""

    name: str
    config: Path | None  # None: Moshi v0.1
    weights: tuple[Path, ...]
    mimi: Path
    mimi_config: Path | None  # None: the published Mimi
    tokenizer: Path
    lora: Path | None


def resolve(name: str | Path, *, weights: str | None = None, offline: bool = False) -> ModelFiles:
    """Finds the files of a model, and fetches those that are not here yet.

    `name` is a bundled model ("nano"), an alias ("moshiko-q4"), a folder, or a repository of
    the hub ("org/repo" or "org/repo@revision"). A `Path`, or a string that starts with `/`,
    `.` or `~`, is always a folder. `weights` names the weights file where a model has several.
    `offline` (as HF_HUB_OFFLINE=1) looks only in the cache; without it, the cache also serves
    when the hub cannot be reached.

    Raises `HubError` if there is no such model or a file is missing, and `ConfigError` for a
    config.json that is not readable or names files outside its folder.
    """
    text = str(name)
    source: _Source
    entry = None if isinstance(name, Path) else catalog.find(text)
    if entry is not None and entry.repository is None:
        source = _Folder(bundled_folder(text))
    elif entry is not None and entry.repository is not None:
        source = _open_repository(entry.repository, entry.revision, offline)
    elif isinstance(name, Path) or text.startswith(("/", ".", "~")) or Path(text).is_dir():
        source = _Folder(Path(text).expanduser())
    elif match := _REPOSITORY.fullmatch(text):
        source = _open_repository(match["repo"], match["revision"], offline)
    else:
        raise HubError(f"There is no model {text!r}. {catalog.suggestion(text)}")
    return _collect(source, text, weights)


def bundled_folder(name: str) -> Path:
    """The folder of a model that comes with the package."""
    return Path(__file__).parent / "bundled" / name


class _Source(Protocol):
    """Where the files of one model are: a folder, or a repository of the hub."""

    where: str  # for messages
    way_out: str  # what helps when a file is missing

    def has(self, file: str) -> bool: ...

    def make_sure_of_room(self, files: Sequence[str]) -> None:
        """Raises HubError if the disk has no room for what must be fetched of these."""

    def get(self, file: str) -> Path: ...


class _Folder:
    way_out = "Put the file there, or name the file that is there in config.json."

    def __init__(self, folder: Path, where: str | None = None, way_out: str | None = None) -> None:
        self._folder = folder
        self.where = where or str(folder)
        self.way_out = way_out or self.way_out
        if folder.is_file():
            raise HubError(f"{folder} is a file; give the folder that it is in.")
        if not folder.is_dir():
            raise HubError(f"There is no folder {folder}. {catalog.suggestion(str(folder))}")

    def has(self, file: str) -> bool:
        return (self._folder / file).is_file()

    def make_sure_of_room(self, files: Sequence[str]) -> None:
        pass

    def get(self, file: str) -> Path:
        return self._folder / file


class _Repository:
    way_out = "Is it a Moshi model? Otherwise give a folder, or --model nano."

    def __init__(self, repo: str, revision: str | None, sizes: Mapping[str, int | None]) -> None:
        self._repo, self._revision, self._sizes = repo, revision, sizes
        self.where = f"the repository {repo}" + (f" at {revision}" if revision else "")

    def has(self, file: str) -> bool:
        return file in self._sizes

    def make_sure_of_room(self, files: Sequence[str]) -> None:
        from huggingface_hub import constants, try_to_load_from_cache

        needed = sum(
            self._sizes.get(file) or 0
            for file in files
            if not isinstance(
                try_to_load_from_cache(self._repo, file, revision=self._revision), str
            )
        )
        cache = Path(constants.HF_HUB_CACHE)
        existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        if needed + _SPARE_BYTES > free:
            raise HubError(
                f"{self._repo} needs {needed / 1e9:.1f} GB of disk for its cache in {cache}, which "
                f"has {free / 1e9:.1f} GB left. Free some, or set HF_HUB_CACHE to a folder on "
                "another disk."
            )

    def get(self, file: str) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self._repo, file, revision=self._revision))
        except Exception as error:  # whatever the transport or the disk raises
            raise _refusal(error, self._repo, self._revision) or HubError(
                f"{file} of {self._repo} could not be fetched ({_reason(error)}). Try again: a "
                f"broken download continues where it stopped. {_without_the_hub(self._repo)}"
            ) from error


def _open_repository(repo: str, revision: str | None, offline: bool) -> _Source:
    """The repository as the hub lists it now, or, without the hub, as the cache has it."""
    from huggingface_hub import HfApi, constants

    if offline or constants.HF_HUB_OFFLINE:
        why = "offline mode is on" if offline else "HF_HUB_OFFLINE is set"
        return _open_cache(repo, revision, why, None)
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    except Exception as error:  # whatever the transport raises when there is no connection
        refusal = _refusal(error, repo, revision)
        if refusal is not None:
            raise refusal from error
        return _open_cache(repo, revision, f"the hub cannot be reached ({_reason(error)})", error)
    return _Repository(repo, revision, {file.rfilename: file.size for file in info.siblings or ()})


def _open_cache(repo: str, revision: str | None, why: str, cause: Exception | None) -> _Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        # No pattern: the folder alone is asked for; `_collect` sees what is missing in it.
        folder = snapshot_download(
            repo, revision=revision, local_files_only=True, allow_patterns=[]
        )
    except (LocalEntryNotFoundError, HFValidationError, ValueError) as error:
        raise HubError(
            f"{repo} is not in the local cache, and {why}. {_without_the_hub(repo)}"
        ) from (cause or error)
    return _Folder(Path(folder), f"the cached copy of {repo} (and {why})", _without_the_hub(repo))


def _refusal(error: Exception, repo: str, revision: str | None) -> HubError | None:
    """What the hub's own answer means; None if the hub did not answer."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return HubError(f"{repo!r} is not a name that the hub can have. {catalog.suggestion(repo)}")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"The repository {repo} has no revision {revision!r}.")
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return HubError(
            f"The repository {repo} is gated: its owner asks you to accept terms. Open its page "
            "on the hub, accept them, then log in here with `hf auth login` and try again."
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return HubError(
            f"The hub has no repository {repo}, or it is private (then `hf auth login` first). "
            f"{catalog.suggestion(repo)}"
        )
    return None


def _collect(source: _Source, name: str, weights: str | None) -> ModelFiles:
    """The files that config.json names, or the published defaults."""
    config = source.get(_CONFIG) if source.has(_CONFIG) else None
    fields = read_json(config) if config else {}

    def named(field: str) -> str | None:
        value = fields.get(field)
        return None if value is None else _inside(value, field, source.where)

    def shards(file: str) -> list[str]:
        index = f"{file}.index.json"
        if source.has(file) or not source.has(index):
            return [file]
        table = read_json(source.get(index)).get("weight_map")
        if not isinstance(table, dict) or not table:
            raise ConfigError(f"{index} in {source.where} has no weight_map. Fetch it again.")
        return sorted({_inside(part, "weight_map", source.where) for part in table.values()})

    chosen = weights or named("moshi_name") or _choose_weights(source)
    lora = named("lora_name")
    if lora is None and fields.get("lora_rank") and source.has(_LORA):
        lora = _LORA
    # The small files first: what is missing shows before gigabytes are fetched.
    tokenizer, mimi_config = named("tokenizer_name") or _TOKENIZER, named("mimi_config_name")
    mimi, parts = named("mimi_name") or _MIMI, shards(_inside(chosen, "weights", source.where))
    wanted = [file for file in (tokenizer, mimi_config, mimi, lora, *parts) if file is not None]
    for file in wanted:
        if not source.has(file):
            raise HubError(f"There is no {file} in {source.where}. {source.way_out}")
    source.make_sure_of_room(wanted)
    paths = {file: source.get(file) for file in wanted}
    return ModelFiles(
        name=name,
        config=config,
        weights=tuple(paths[part] for part in parts),
        mimi=paths[mimi],
        mimi_config=paths[mimi_config] if mimi_config else None,
        tokenizer=paths[tokenizer],
        lora=paths[lora] if lora else None,
    )


def _choose_weights(source: _Source) -> str:
    there = [w for w in _WEIGHTS if source.has(w) or source.has(f"{w}.index.json")]
    if len(there) == 1:
        return there[0]
    if there:
        raise HubError(
            f"There are several weights files in {source.where}: {', '.join(there)}. Say which: "
            'put "moshi_name" into config.json, or leave only one there.'
        )
    raise HubError(
        f"There are no weights in {source.where}: none of {', '.join(_WEIGHTS)}, and no "
        f'config.json with "moshi_name". {source.way_out}'
    )


def _inside(value: Any, field: str, where: str) -> str:
    """A file name from a config, refused if it could lead out of the model's folder."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{field} in {where} must be a file name, not {value!r}.")
    path = PurePosixPath(value)
    outside = path.is_absolute() or ".." in path.parts or "\\" in value or ":" in value
    if outside or PureWindowsPath(value).drive:
        raise ConfigError(
            f"{field} in {where} is {value!r}: it must name a file inside the model's folder."
        )
    return str(path)


def _without_the_hub(repo: str) -> str:
    return (
        f"With a connection, `hf download {repo}` fills the cache; or put its files into a "
        "folder and give that folder; or use --model nano, which comes with the program."
    )


def _reason(error: Exception) -> str:
    """The first line of what went wrong, with the kind of error if it says little."""
    first = str(error).strip().splitlines()[:1]
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
