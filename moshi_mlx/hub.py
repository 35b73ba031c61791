"""A name → local files. The only module that may use the network.

Knows which files a checkpoint has, by its config.json or by the published defaults; knows
nothing of what is in the weights. The hub's client is imported only for a name of the hub.
"""

import difflib
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import catalog
from .errors import ConfigError, HubError, shown
from .files import cache_folder, inside, read_json
from .formats import other_weights
from .published import refuse_other_formats
from .safetensors import read_index
from .tokenizer_json import NAME as TOKENIZER_JSON
from .transformers_config import is_moshi

# What Moshi v0.1 was published with; it has no config.json.
_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "model.q8.safetensors", "model.q4.safetensors")
_OTHER_WEIGHTS = re.compile(
    r"model(?!.*-\d+-of-\d+\.)[\w.-]*\.safetensors", re.ASCII
)  # other converters'
_MERGED = "consolidated.safetensors"  # a whole fine-tune of moshi-finetune
_SPLIT = ("temporal.safetensors", "depformer.safetensors", "embeddings.safetensors")  # in parts
CODECS = ("tokenizer-e351c8d8-checkpoint125.safetensors", "mimi.safetensors")
# The last is of Transformers; made of a SentencePiece model, which is the surer one.
TOKENIZERS = ("tokenizer_spm_32k_3.model", "tokenizer.model", TOKENIZER_JSON)
_LORA = "lora.safetensors"
_GENERATION = "generation_config.json"  # of Transformers
_VOICES = "voices.tgz"  # of PersonaPlex
_VOICE = re.compile(r"voices/[\w.-]+\.(safetensors|pt)", re.ASCII)  # where they are in a folder
_SPARE_BYTES = 100_000_000  # of the disk, beside what is fetched

_REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_ADDRESS = re.compile(
    r"(?:hf://|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)(?P<repo>[\w.-]+/[\w.-]+)"
    r"(?:/(?P<kind>tree|blob|resolve|raw)/(?P<revision>[\w.-]+))?(?:[/?#].*)?",
    re.ASCII,
)


@dataclass(frozen=True)
class ModelFiles:
    """The local files of one model. `weights` has several entries if they come in shards.

    mimi: the codec's weights; in Transformers' layout they may be among the model's own, in its one
        file or in the shards of its index.
    voices: the archive of its voices; None where it has none, or has them in a folder.
    generation: how its makers sample, where that is another file.
    """

    name: str
    config: Path | None  # None: Moshi v0.1
    weights: tuple[Path, ...]
    mimi: Path
    mimi_config: Path | None  # None: the published Mimi
    tokenizer: Path
    lora: Path | None
    voices: Path | None = None
    generation: Path | None = None


def resolve(
    name: str | Path,
    *,
    weights: str | None = None,
    offline: bool = False,
    own_adapter: bool = True,
    companions: bool = False,
) -> ModelFiles:
    """Finds the files of a model, and fetches those that are not here yet.

    `name` is a bundled model ("nano"), an alias ("moshiko-q4"), a folder, or a repository of
    the hub ("org/repo" or "org/repo@revision", or its address there). A `Path`, or a string that
    starts with `/`, `.` or `~`, is always a folder. `weights` names the weights file where a model
    has several. `offline` (as HF_HUB_OFFLINE=1) looks only in the cache; without it, the cache also
    serves when the hub cannot be reached. Without `own_adapter` the model's own is not looked for.
    `companions` are wanted for another model's weights: its own are left out.

    Raises `HubError` if there is no such model or a file is missing, and `ConfigError` for a
    config.json that is not readable or names files outside its folder.
    """
    text = canonical(name)
    source: _Source
    entry = None if isinstance(name, Path) else catalog.find(text)
    try:
        if entry is not None and entry.made_from is not None:
            source = _made(entry)
        elif entry is not None and entry.repository is None:
            source = _Folder(bundled_folder(text))
        elif entry is not None and entry.repository is not None:
            copy = text in entry.copies
            repository = text if copy else entry.repository
            source = _open_repository(repository, None if copy else entry.revision, offline)
        elif isinstance(name, Path) or is_folder_name(text) or Path(text).is_dir():
            source = _Folder(local_path(text))
        elif match := _REPOSITORY.fullmatch(text):
            source = _open_repository(match["repo"], match["revision"], offline)
        else:
            raise HubError(f"There is no model {text!r}. {catalog.suggestion(text)}")
        return _collect(source, text, weights, own_adapter, offline, companions)
    except OSError as error:
        raise _unreadable(error) from error


def files_of_repository(repo: str, *, offline: bool = False) -> list[str]:
    """Names of a repository's files, as the hub lists them now.

    Args:
        repo: org/repo.
        offline: those in the cache alone; so it is too where the hub cannot be reached.

    Raises:
        HubError: it isn't there, or is refused.
    """
    return _open_repository(repo, None, offline).files()


def file_of_repository(repo: str, file: str, *, offline: bool = False) -> Path:
    """One file of a repository, fetched if it is not in the cache.

    Args:
        repo: org/repo.
        file: its name, folders included.
        offline: only look into the cache.

    Raises:
        HubError: there is no such file, or it cannot be fetched.
    """
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo, file)
    if isinstance(cached, str):
        return Path(cached)
    source = _open_repository(repo, None, offline)
    if not source.has(file):
        alike = [each for each in source.files() if each.endswith(Path(file).suffix)]
        close = difflib.get_close_matches(file, alike, n=3, cutoff=0.6)
        hint = f": did you mean {' or '.join(close)}?" if close else ""
        raise HubError(f"{source.where} has no file {file}{hint}")
    return source.get(file)


def canonical(name: str | Path) -> str:
    """A model's name as the rest of the program knows it: an address of the hub as its repository.

    Raises:
        HubError: the name is empty, or an address of something else.
    """
    if isinstance(name, Path):
        return str(name)
    if not name.strip():
        raise HubError(f"The model's name is empty. {catalog.suggestion(name)}")
    if match := _ADDRESS.fullmatch(name):
        repo, kind, revision = match["repo"], match["kind"], match["revision"]
        named = f"{repo}@{revision}" if revision not in (None, "main") else repo
        if kind not in (None, "tree"):
            raise HubError(f"{name} is the address of a file. Give its repository: {named}")
        return named
    if "://" in name:
        raise HubError(f"{name} is not an address of the hub. {catalog.suggestion(name)}")
    return name if is_folder_name(name) else name.rstrip("/") or name


def is_folder_name(name: str) -> bool:
    """Whether a name is a folder's or a file's whatever is there."""
    return name.startswith(("/", ".", "~"))


def local_path(name: str | Path) -> Path:
    """A path, with ~ as the user's own folder. Raises HubError if there is no such user."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise HubError(f"There is no folder {name}: no such user.") from error


def _unreadable(error: OSError) -> HubError:
    return HubError(f"{error.filename}: cannot be read: {error.strerror or error}")


def bundled_folder(name: str) -> Path:
    """The folder of a model that comes with the package."""
    return Path(__file__).parent / "bundled" / name


def folder_made_here(entry: catalog.Entry) -> Path:
    """Where a model that is made here is kept: there as a whole, or not at all."""
    return cache_folder() / "models" / entry.name


def making(entry: catalog.Entry) -> list[str]:
    """The arguments of `moshi-quantize` that make a model which is made here."""
    folder = str(folder_made_here(entry))
    return [entry.made_from or "", folder, "--bits", str(entry.bits), "--no-report"]


def _made(entry: catalog.Entry) -> "_Folder":
    folder = folder_made_here(entry)
    command = f"`{shlex.join(['moshi-quantize', *making(entry)])}`"
    if not folder.is_dir():
        raise HubError(
            f"{entry.name} is not published: it is made on this machine, once, from "
            f"{entry.made_from}, by {command}, and keeps {entry.nbytes / 1e9:.1f} GB there"
        )
    return _Folder(folder, way_out=f"Delete {folder} and make it again: {command}.")


class _Source(Protocol):
    """Where the files of one model are: a folder, or a repository of the hub."""

    where: str  # for messages
    way_out: str  # what helps when a file is missing

    def has(self, file: str) -> bool: ...

    def files(self) -> list[str]:
        """Names of all its files, with those of their folders."""

    def matching(self, pattern: re.Pattern[str]) -> list[str]:
        """Names of its files, none in another folder, that are as the pattern says."""

    def voices(self) -> list[str]:
        """Voices in a folder that must be fetched."""

    def make_sure_of_room(self, files: Sequence[str]) -> None:
        """Raises HubError if the disk has no room for what must be fetched of these."""

    def fetching(self, file: str) -> str:
        """How to fetch one of its files, as a sentence for messages."""

    def oddity(self, file: str) -> str | None:
        """What stands in the place of a file, as a sentence; None if nothing, or the file."""

    def get(self, file: str) -> Path: ...


class _Folder:
    way_out = "Put the file there, or name the file that is there in config.json."

    def __init__(self, folder: Path, where: str | None = None, way_out: str | None = None) -> None:
        self._folder = folder
        self.where = where or str(folder)
        self._own_way = way_out
        self.way_out = way_out or self.way_out
        if folder.is_file():
            raise HubError(f"{folder} is a file; give the folder that it is in, {folder.parent}.")
        if not folder.is_dir():
            raise HubError(f"There is no folder {folder}. {catalog.suggestion(str(folder))}")

    def has(self, file: str) -> bool:
        return (self._folder / file).is_file()

    def files(self) -> list[str]:
        found = (p for p in self._folder.rglob("*") if p.is_file())
        return sorted(p.relative_to(self._folder).as_posix() for p in found)

    def matching(self, pattern: re.Pattern[str]) -> list[str]:
        return sorted(p.name for p in self._folder.iterdir() if pattern.fullmatch(p.name))

    def voices(self) -> list[str]:
        return []

    def make_sure_of_room(self, files: Sequence[str]) -> None:
        pass

    def fetching(self, file: str) -> str:
        return self._own_way or fetching_to(self._folder, file)

    def oddity(self, file: str) -> str | None:
        path = self._folder / file
        if path.is_file():
            return None
        if path.is_symlink() and not path.exists():
            return f"{path} is a link that leads to no file."
        return f"{path} is no regular file." if path.exists() else None

    def get(self, file: str) -> Path:
        return self._folder / file


class _Repository:
    def __init__(self, repo: str, revision: str | None, sizes: Mapping[str, int | None]) -> None:
        self._repo, self._revision, self._sizes = repo, revision, sizes
        self.where = f"the repository {repo}" + (f" at {revision}" if revision else "")
        advice = catalog.bundled_advice(repo)
        self.way_out = (
            "Is it a model that this program runs? Otherwise give a folder"
            f"{advice and f', or {advice}'}."
        )

    def has(self, file: str) -> bool:
        return file in self._sizes

    def files(self) -> list[str]:
        return sorted(self._sizes)

    def matching(self, pattern: re.Pattern[str]) -> list[str]:
        return sorted(filter(pattern.fullmatch, self._sizes))

    def voices(self) -> list[str]:
        return self.matching(_VOICE)

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

    def fetching(self, file: str) -> str:
        return self.way_out

    def oddity(self, file: str) -> str | None:
        return None

    def get(self, file: str) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self._repo, file, revision=self._revision))
        except Exception as error:  # whatever the transport or the disk raises
            raise _refusal(error, self._repo, self._revision) or HubError(
                f"{file} of {self._repo} could not be fetched ({_reason(error)}). Try again: a "
                f"broken download continues where it stopped. "
                f"{_without_the_hub(self._repo, self._revision)}"
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
        there = _cached_revisions(repo)
        wanted = f"{repo} at {revision or 'main'}" if there else f"{repo}"
        only = f" (there are only {', '.join(there)})" if there else ""
        raise HubError(
            f"{wanted} is not in the local cache{only}, and {why}. "
            f"{_without_the_hub(repo, revision)}"
        ) from (cause or error)
    where = f"the cached copy of {repo}" + (f" at {revision}" if revision else "")
    return _Folder(Path(folder), f"{where} (and {why})", _without_the_hub(repo, revision))


def _cached_revisions(repo: str) -> list[str]:
    """What of a repository is in the cache, as `repo@revision` takes it: names, else commits."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    names = {p: p.read_text() for p in sorted((folder / "refs").rglob("*")) if p.is_file()}
    snapshots = folder / "snapshots"
    commits = sorted(p.name for p in snapshots.iterdir()) if snapshots.is_dir() else []
    named = [p.relative_to(folder / "refs").as_posix() for p, c in names.items() if c in commits]
    return named + [commit for commit in commits if commit not in names.values()]


def _refusal(error: Exception, repo: str, revision: str | None) -> HubError | None:
    """What the hub's own answer means; None if the hub did not answer."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return HubError(f"{repo!r} is not a name that the hub can have. {catalog.suggestion(repo)}")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"The repository {repo} has no revision {revision!r}.")
    # What is published and refused is there: without a login, or with a wrong one.
    gated = isinstance(error, errors.GatedRepoError) or status == 403
    if gated or (status == 401 and catalog.find(repo) is not None):
        return HubError(
            f"The repository {repo} is gated: its owner asks you to accept terms. Accept its "
            f"licence on https://huggingface.co/{repo}, log in here with `hf auth login`, and try "
            "again."
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        return HubError(
            f"The hub has no repository {repo}, or it is private (then `hf auth login` first). "
            f"{catalog.suggestion(repo)}"
        )
    return None


def _collect(
    source: _Source,
    name: str,
    weights: str | None,
    own_adapter: bool,
    offline: bool,
    companions: bool = False,
) -> ModelFiles:
    """The files that config.json names, or the published defaults.

    Where it names another model as its `base`, the codec and the tokenizer that are not there are
    that one's.
    """
    if problem := source.oddity(_CONFIG):
        raise HubError(f"{problem} {source.way_out}")
    config = source.get(_CONFIG) if source.has(_CONFIG) else None
    fields = read_json(config) if config else {}
    refuse_other_formats(fields, str(config))

    def named(field: str) -> str | None:
        value = fields.get(field)
        return None if value is None else inside(value, field, source.where)

    def shards(file: str) -> list[str]:
        index = f"{file}.index.json"
        if source.has(file) or not source.has(index):
            return [file]
        return sorted(set(read_index(source.get(index)).values()))

    chosen = "" if companions else weights or named("moshi_name") or _choose_weights(source)
    lora = None
    if own_adapter and not companions:
        lora = _own_adapter(source, fields, named("lora_name"))
    # The small files first: what is missing shows before gigabytes are fetched.
    found = next((file for file in TOKENIZERS if source.has(file)), TOKENIZERS[0])
    tokenizer, mimi_config = named("tokenizer_name") or found, named("mimi_config_name")
    parts: list[str] = []
    if not companions:
        chosen = inside(chosen, "weights", source.where)
        parts = list(_SPLIT) if chosen in _SPLIT else shards(chosen)
    # Transformers' Moshi has its codec, and what config.json says of it, inside.
    theirs = is_moshi(fields)
    own_codec = f"{chosen}.index.json" if parts != [chosen] else chosen
    found = next((f for f in CODECS if source.has(f)), own_codec if theirs else CODECS[0])
    mimi = named("mimi_name") or found
    mimi_config = mimi_config or (_CONFIG if theirs else None)
    base = _base(fields.get("base"), source.where, offline)
    lent: dict[str, Path] = {}
    if base is not None:
        lent = {tokenizer: base.tokenizer, mimi: base.mimi}
        lent = {file: path for file, path in lent.items() if not source.has(file)}
        mimi_config = None if mimi in lent else mimi_config
    sampling = _GENERATION if theirs and source.has(_GENERATION) else None
    voices = _VOICES if source.has(_VOICES) and not companions else None
    own_voices = () if companions else source.voices()
    small = (tokenizer, mimi_config, sampling, mimi)
    named_files = (*small, lora, voices, *own_voices, *parts)
    needed = (file for file in named_files if file is not None and file not in lent)
    wanted = list(dict.fromkeys(needed))
    for file in wanted:
        if source.has(file):
            continue
        if file in parts and source.has(index := f"{chosen}.index.json"):
            raise HubError(missing_shard(source.where, file, index, source.fetching(file)))
        if config is None and source.oddity(file) is None:
            raise HubError(
                f"There is no {_CONFIG} in {source.where}, and no {file}, which a model without "
                f"one has: put there what is missing, or fetch the model again as a whole. "
                f"{source.way_out}"
            )
        raise HubError(f"{_missing(source, file)} {source.way_out}")
    source.make_sure_of_room(wanted)
    paths = {file: source.get(file) for file in wanted} | lent
    config_of_mimi = paths[mimi_config] if mimi_config else None
    return ModelFiles(
        name=name,
        config=config,
        weights=tuple(paths[part] for part in parts),
        mimi=paths[mimi],
        mimi_config=base.mimi_config if base is not None and mimi in lent else config_of_mimi,
        tokenizer=paths[tokenizer],
        lora=paths[lora] if lora else None,
        voices=paths[voices] if voices else None,
        generation=paths[sampling] if sampling else None,
    )


def _base(name: Any, where: str, offline: bool) -> ModelFiles | None:
    """The files of the model that config.json names as its base: one of the catalogue."""
    if name is None:
        return None
    if not isinstance(name, str) or catalog.find(name) is None:
        raise ConfigError(
            f"base in {where} must be the name of a model such as nano, not {shown(name)}."
        )
    return resolve(name, offline=offline, own_adapter=False)


def missing_shard(where: str, file: str, index: str, fetching: str) -> str:
    """What to say of a weights file that an index names.

    Args:
        where: it is missing.
        file: its name.
        index: of the model's weights files.
        fetching: how to fetch it, as a sentence.
    """
    return f"There is no {file} in {where}, one of the weights files that {index} names. {fetching}"


def fetching_to(folder: Path, file: str) -> str:
    """How to fetch a file into a folder that came from the hub, as a sentence."""
    command = shlex.join(["hf", "download", "ORG/REPO", file, "--local-dir", str(folder)])
    return f"Fetch it: `{command}`, with the model's name on the hub for ORG/REPO."


def _missing(source: _Source, file: str) -> str:
    return source.oddity(file) or f"There is no {file} in {source.where}."


def _own_adapter(source: _Source, fields: Mapping[str, Any], name: str | None) -> str | None:
    """A model's own adapter: the field `lora` says whether there is one."""
    says = fields.get("lora")
    if says is not None and not isinstance(says, bool):
        raise ConfigError(f"lora in {source.where} must be true or false, is {shown(says)}.")
    if says is False:
        return None
    file = name or _LORA
    if says and not source.has(file):
        raise HubError(
            f"{_missing(source, file)} Its config.json says that it has an adapter: put that "
            'there, or set "lora" to false to use the model without.'
        )
    return file if says or name or (fields.get("lora_rank") and source.has(file)) else None


def _choose_weights(source: _Source) -> str:
    def there(file: str) -> bool:
        return source.has(file) or source.has(f"{file}.index.json")

    found = [file for file in _WEIGHTS if there(file)]
    if not found and there(_MERGED):
        found = [_MERGED]
    if not found and any(map(source.has, _SPLIT)):
        found = [_SPLIT[0]]
    found = found or [file for file in source.matching(_OTHER_WEIGHTS) if source.has(file)]
    if len(found) == 1:
        return found[0]
    if found:
        raise HubError(
            f"There are several weights files in {source.where}: {', '.join(found)}. Say which: "
            'put "moshi_name" into config.json, or leave only one there.'
        )
    if problem := next(filter(None, map(source.oddity, _WEIGHTS)), None):
        raise HubError(f"{problem} {source.way_out}")
    if others := other_weights(source.files()):
        raise HubError(
            f"There are no weights in {source.where} that can be read: {others}. Fetch the model "
            "as safetensors, or save it so with the program that made it."
        )
    raise HubError(
        f"There are no weights in {source.where}: none of {', '.join((*_WEIGHTS, _MERGED))}, and "
        f'no config.json with "moshi_name". {source.way_out}'
    )


def _without_the_hub(repo: str, revision: str | None) -> str:
    at = f" --revision {revision}" if revision else ""
    advice = catalog.bundled_advice(repo)
    return (
        f"With a connection, `hf download {repo}{at}` fills the cache; or put its files into a "
        f"folder and give that folder{advice and f'; or {advice}'}."
    )


def _reason(error: Exception) -> str:
    """The first line of what went wrong, with the kind of error if it says little."""
    first = str(error).strip().splitlines()[:1]
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
