"""Names → files: folders, the hub's client against a small server on this machine, its cache."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from moshi_mlx import catalog
from moshi_mlx.checkpoint import open_checkpoint
from moshi_mlx.errors import ConfigError, HubError, MoshiError
from moshi_mlx.hub import bundled_folder, resolve

MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER = "tokenizer_spm_32k_3.model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NO_SIZES: Mapping[str, int] = {}
PUBLISHED = {"model.q4.safetensors": b"q4", MIMI: b"mimi", TOKENIZER: b"spm", "README.md": b"hi"}


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


# -- names and folders ----------------------------------------------------------------------


def test_nano_comes_with_the_package() -> None:
    files = resolve("nano")
    assert files.name == "nano"
    for path in (files.config, files.mimi, files.mimi_config, files.tokenizer, *files.weights):
        assert path is not None and path.is_file()
    assert files.lora is None


def test_aliases_are_the_published_repositories() -> None:
    repositories = {entry.name: entry.repository for entry in catalog.ENTRIES}
    assert repositories["moshiko-q4"] == "kyutai/moshiko-mlx-q4"
    assert repositories["moshika-bf16"] == "kyutai/moshika-mlx-bf16"
    assert len(repositories) == len(catalog.ENTRIES)


def test_a_folder_without_config_is_moshi_as_published(tmp_path: Path) -> None:
    files = resolve(fill(tmp_path, PUBLISHED))
    assert files.config is None and files.mimi_config is None and files.lora is None
    assert files.weights == (tmp_path / "model.q4.safetensors",)
    assert files.mimi == tmp_path / MIMI
    assert files.tokenizer == tmp_path / TOKENIZER


def test_voices_come_along(tmp_path: Path) -> None:
    assert resolve(fill(tmp_path / "without", PUBLISHED)).voices is None
    files = resolve(fill(tmp_path / "with", {**PUBLISHED, "voices.tgz": b"voices"}))
    assert files.voices == tmp_path / "with" / "voices.tgz"


def test_a_folder_can_be_named_in_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "models" / "mine", PUBLISHED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("models/mine", "./models/mine", "~/models/mine", str(tmp_path / "models/mine")):
        assert resolve(name).tokenizer.samefile(tmp_path / "models/mine" / TOKENIZER)
    assert resolve(Path("models/mine")).weights[0].is_file()


def test_config_names_the_files(tmp_path: Path) -> None:
    names = {
        "moshi_name": "lm.safetensors",
        "mimi_name": "codec/mimi.safetensors",
        "mimi_config_name": "codec/mimi.json",
        "tokenizer_name": "text.model",
        "lora_name": "tuned.safetensors",
    }
    config = json.dumps(names | {"dim": 64}).encode()
    fill(tmp_path, dict.fromkeys(names.values(), b"x") | {"config.json": config})
    files = resolve(tmp_path)
    assert files.config == tmp_path / "config.json"
    assert files.weights == (tmp_path / "lm.safetensors",)
    assert files.mimi == tmp_path / "codec/mimi.safetensors"
    assert files.mimi_config == tmp_path / "codec/mimi.json"
    assert files.tokenizer == tmp_path / "text.model"
    assert files.lora == tmp_path / "tuned.safetensors"


def test_a_base_lends_its_codec_and_its_tokenizer(tmp_path: Path) -> None:
    nano = resolve("nano")
    config = b'{"base": "nano", "tokenizer_name": "mine.model", "mimi_config_name": "own.json"}'
    folder = fill(tmp_path, {"model.safetensors": b"w", "config.json": config})
    files = resolve(folder)
    assert (files.mimi, files.mimi_config, files.tokenizer) == (
        nano.mimi, nano.mimi_config, nano.tokenizer
    )  # fmt: skip
    assert files.weights == (folder / "model.safetensors",)
    assert files.config == folder / "config.json"
    fill(folder, {"mine.model": b"spm"})
    assert resolve(folder).tokenizer == folder / "mine.model"
    fill(folder, {MIMI: b"mimi", "own.json": b"{}"})
    files = resolve(folder)
    assert files.mimi == folder / MIMI and files.mimi_config == folder / "own.json"


@pytest.mark.parametrize("base", ["'nanny'", "7", "'../nano'"])
def test_a_base_is_a_model_with_a_name(base: str, tmp_path: Path) -> None:
    config = f'{{"base": {base}}}'.replace("'", '"').encode()
    with pytest.raises(ConfigError, match=r"base in .* must be the name of a model such as nano"):
        resolve(fill(tmp_path, PUBLISHED | {"config.json": config}))


def test_shards(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}
    parts = {"m-1.safetensors": b"1", "m-2.safetensors": b"2", MIMI: b"m", TOKENIZER: b"t"}
    fill(tmp_path, parts | {"model.safetensors.index.json": json.dumps(index).encode()})
    assert [p.name for p in resolve(tmp_path).weights] == ["m-1.safetensors", "m-2.safetensors"]
    (tmp_path / "m-1.safetensors").unlink()
    with pytest.raises(HubError) as error:
        resolve(tmp_path)
    told = str(error.value)
    assert f"no m-1.safetensors in {tmp_path}, one of the weights files that model.safet" in told
    assert f"`hf download ORG/REPO m-1.safetensors --local-dir {tmp_path}`" in told


@pytest.mark.parametrize("name", ["nano", "nano-tts"])
def test_a_missing_config_is_what_is_named(tmp_path: Path, name: str) -> None:
    """Where codec or tokenizer are then not those of the first models, which have none."""
    folder = shutil.copytree(bundled_folder(name), tmp_path / name)
    (folder / "config.json").unlink()
    with pytest.raises(MoshiError, match=rf"^There is no config\.json in {folder}, and "):
        open_checkpoint(folder)


def test_several_weights_need_a_choice(tmp_path: Path) -> None:
    fill(tmp_path, PUBLISHED | {"model.safetensors": b"bf16"})
    with pytest.raises(HubError, match=r"model\.safetensors, model\.q4\.safetensors"):
        resolve(tmp_path)
    chosen = resolve(tmp_path, weights="model.safetensors")
    assert chosen.weights == (tmp_path / "model.safetensors",)


@pytest.mark.parametrize("missing", ["model.q4.safetensors", MIMI, TOKENIZER])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    fill(tmp_path, PUBLISHED)
    (tmp_path / missing).unlink()
    with pytest.raises(HubError) as error:
        resolve(tmp_path)
    assert missing in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    "value", ["../x", "/etc/passwd", "a/../../x", "..\\x", "C:x", "hf://org/repo/x", "", 3, ["x"]]
)
@pytest.mark.parametrize("name", ["moshi_name", "mimi_name", "tokenizer_name", "lora_name"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    fill(tmp_path, PUBLISHED | {"config.json": json.dumps({name: value}).encode()})
    with pytest.raises(ConfigError, match=name):
        resolve(tmp_path)


def test_shards_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "../secret.safetensors"}}).encode()
    files = {MIMI: b"m", TOKENIZER: b"t", "model.safetensors.index.json": index}
    with pytest.raises(ConfigError, match="weight_map"):
        resolve(fill(tmp_path, files))


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe"])
def test_a_broken_config_is_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        resolve(fill(tmp_path, PUBLISHED | {"config.json": content}))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("moshiko-q5", "Did you mean moshiko-q"),
        ("nanoo", "Did you mean nano"),
        ("what is this", "is one of nano"),
        ("./none", "no folder none"),
        ("-x/..a", "not a name that the hub can have"),
        (Path("nano"), "no folder nano"),
        (__file__, "is a file"),
    ],
)
def test_wrong_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | Path, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match=says):
        resolve(name)


# -- the hub: its own client, in a process of its own ---------------------------------------


@dataclass
class Answer:
    """What a client in a fresh process came back with: the files' contents, or the error."""

    files: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    printed: str = ""


def ask(name: str, home: Path, **env: str) -> Answer:
    program = """
import json, sys
from moshi_mlx import hub, errors
try:
    files = hub.resolve(sys.argv[1])
except errors.MoshiError as error:
    print(json.dumps({"error": str(error)}))
else:
    read = lambda path: path and path.read_bytes().decode()
    print(json.dumps({"files": {
        "weights": [read(p) for p in files.weights], "mimi": read(files.mimi),
        "tokenizer": read(files.tokenizer), "config": read(files.config)}}))
"""
    names = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", program, name],
        env=names | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return Answer(**json.loads(done.stdout), printed=done.stderr)


@contextmanager
def hub_of(
    repos: dict[str, dict[str, bytes]], *, gated: bool = False, sizes: Mapping[str, int] = NO_SIZES
) -> Iterator[str]:
    """A server that answers as the hub does; yields its address.

    `sizes` are told instead of the contents' own.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
            if parts[:2] == ["api", "models"]:
                self.describe("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
            elif len(parts) > 4 and parts[2] == "resolve":
                self.send_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:
                self.refuse(404, None)

        def describe(self, repo: str, revision: str) -> None:
            if repo not in repos:
                self.refuse(401, "RepoNotFound")
            elif revision not in ("main", COMMIT):
                self.refuse(404, "RevisionNotFound")
            else:
                siblings = [
                    {"rfilename": name, "size": sizes.get(name, len(content))}
                    for name, content in repos[repo].items()
                ]
                info = {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": []}
                self.answer(json.dumps(info).encode(), {})

        def send_file(self, repo: str, revision: str, name: str) -> None:
            content = repos.get(repo, {}).get(name)
            if gated:
                self.refuse(403, "GatedRepo")
            elif content is None:
                self.refuse(404, "EntryNotFound")
            else:
                tag = hashlib.sha256(content).hexdigest()
                self.answer(content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

        def answer(self, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(200)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def refuse(self, status: int, code: str | None) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_fetch_then_offline(tmp_path: Path) -> None:
    """The first time from the hub, then without it: told so, or because it does not answer."""
    repo = "kyutai/moshiko-mlx-q4"
    expected = {"weights": ["q4"], "mimi": "mimi", "tokenizer": "spm", "config": None}
    with hub_of({repo: PUBLISHED}) as address:
        # The position makes the client show its bars although this is no terminal.
        fetched = ask("moshiko-q4", tmp_path, HF_ENDPOINT=address, TQDM_POSITION="-1")
    assert fetched.files == expected
    assert "model.q4.safetensors" in fetched.printed
    assert not list(tmp_path.rglob("README.md")), "only what is needed is fetched"

    assert ask("moshiko-q4", tmp_path, HF_ENDPOINT=address).files == expected
    assert ask(repo, tmp_path, HF_HUB_OFFLINE="1").files == expected
    assert ask(f"{repo}@{COMMIT}", tmp_path, HF_HUB_OFFLINE="1").files == expected


def test_files_named_by_config_are_fetched(tmp_path: Path) -> None:
    config = json.dumps({"moshi_name": "lm.st", "mimi_name": "mimi.st", "tokenizer_name": "t"})
    files = {"config.json": config.encode(), "lm.st": b"L", "mimi.st": b"M", "t": b"T", "x": b"x"}
    with hub_of({"me/tuned": files}) as address:
        answer = ask("me/tuned@main", tmp_path, HF_ENDPOINT=address)
    assert answer.files == {"weights": ["L"], "mimi": "M", "tokenizer": "T", "config": config}


def test_voices_in_a_folder_are_fetched(tmp_path: Path) -> None:
    parts = ("temporal", "depformer", "embeddings", "mimi")
    files = {f"{part}.safetensors": part.encode() for part in parts}
    files |= {TOKENIZER: b"spm", "voices/NATF0.safetensors": b"voice", "other/x.safetensors": b"x"}
    with hub_of({"me/parts": files}) as address:
        answer = ask("me/parts", tmp_path, HF_ENDPOINT=address)
    assert answer.files == {
        "weights": list(parts[:3]), "mimi": "mimi", "tokenizer": "spm", "config": None,
    }  # fmt: skip
    assert [path.read_bytes() for path in tmp_path.rglob("NATF0.safetensors")] == [b"voice"]
    assert not list(tmp_path.rglob("x.safetensors"))


def test_weights_of_other_converters(tmp_path: Path) -> None:
    files = {"model.moshi_mlx.safetensors": b"m", MIMI: b"mimi", TOKENIZER: b"spm"}
    folder = fill(tmp_path / "one", files)
    assert resolve(folder).weights == (folder / "model.moshi_mlx.safetensors",)
    folder = fill(tmp_path / "two", {**files, "model.4bit.safetensors": b"4"})
    with pytest.raises(HubError, match=r"several weights files.*4bit.*moshi_mlx.*Say which"):
        resolve(folder)
    shards = {"model-00001-of-00002.safetensors": b"1", MIMI: b"mimi", TOKENIZER: b"spm"}
    with pytest.raises(HubError, match="There are no weights in"):
        resolve(fill(tmp_path / "shards", shards))


def test_weights_in_other_formats_are_named(tmp_path: Path) -> None:
    for name in ("model-q4.gguf", "pytorch_model.bin", "consolidated.pth"):
        folder = fill(tmp_path / name, {name: b"x"})
        with pytest.raises(HubError, match=f"can be read: {name} is not safetensors"):
            resolve(folder)


def test_what_the_hub_refuses(tmp_path: Path) -> None:
    with hub_of({"me/there": PUBLISHED, "me/empty": {"README.md": b"hi"}}) as address:
        missing = ask("kyutai/moshiko-mlx-q5", tmp_path, HF_ENDPOINT=address).error
        revision = ask("me/there@v9", tmp_path, HF_ENDPOINT=address).error
        empty = ask("me/empty", tmp_path, HF_ENDPOINT=address).error
    assert "no repository kyutai/moshiko-mlx-q5" in missing
    assert "Did you mean moshiko-q" in missing
    assert "no revision 'v9'" in revision
    assert "no weights in the repository me/empty" in empty and "model.safetensors" in empty
    with hub_of({"me/closed": PUBLISHED}, gated=True) as address:
        gated = ask("me/closed", tmp_path, HF_ENDPOINT=address).error
    assert "me/closed is gated" in gated and "hf auth login" in gated
    with hub_of({}) as address:  # which says 401 of what may not be seen
        closed = ask("personaplex", tmp_path, HF_ENDPOINT=address).error
    page = "https://huggingface.co/nvidia/personaplex-7b-v1"
    assert f"Accept its licence on {page}, log in here with `hf auth login`" in closed


def test_a_full_disk_is_told_before_anything_is_fetched(tmp_path: Path) -> None:
    sizes = {"model.q4.safetensors": 10**18}
    with hub_of({"me/large": PUBLISHED}, sizes=sizes) as address:
        message = ask("me/large", tmp_path, HF_ENDPOINT=address).error
    assert "me/large needs 1000000000.0 GB of disk" in message and "HF_HUB_CACHE" in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "spm" in path.name]


def test_neither_hub_nor_cache(tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9"
    for env in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": nobody}):
        message = ask("moshika-q8", tmp_path, **env).error
        assert "kyutai/moshika-mlx-q8 is not in the local cache" in message
        assert "hf download kyutai/moshika-mlx-q8" in message and "--model nano, which" in message
        assert ("HF_HUB_OFFLINE is set" in message) == ("HF_HUB_OFFLINE" in env)
        assert ("cannot be reached" in message) == ("HF_ENDPOINT" in env)


def test_a_bundled_model_that_can_do_the_same_is_advised(tmp_path: Path) -> None:
    for name, advice in {
        "tts": "or use --model nano-tts, which comes with the program.",
        "stt": "or use --model nano-stt, which comes with the program.",
        "personaplex": "or use --model nano, which comes with the program.",
        "helium": "folder and give that folder.",
        "me/mine": "or use --model nano, nano-stt or nano-tts, which come with the program.",
    }.items():
        assert ask(name, tmp_path, HF_HUB_OFFLINE="1").error.endswith(advice)


def test_a_cache_made_by_another_program(tmp_path: Path) -> None:
    """The client's documented layout, first with a file missing, then whole."""
    folder = tmp_path / "hub" / "models--me--mine"
    fill(folder, {"refs/main": COMMIT.encode()})
    snapshot = folder / "snapshots" / COMMIT
    fill(snapshot, {name: c for name, c in PUBLISHED.items() if name != MIMI})
    message = ask("me/mine", tmp_path, HF_HUB_OFFLINE="1").error
    assert MIMI in message and "cached copy of me/mine" in message
    assert "hf download me/mine" in message
    fill(snapshot, {MIMI: b"mimi"})
    assert ask("me/mine", tmp_path, HF_HUB_OFFLINE="1").files["mimi"] == "mimi"


def test_a_revision_that_is_not_cached(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--acme--sym"
    fill(folder, {"refs/main": COMMIT.encode()})
    fill(folder / "snapshots" / COMMIT, PUBLISHED)
    message = ask("acme/sym@v9", tmp_path, HF_HUB_OFFLINE="1").error
    assert "acme/sym at v9 is not in the local cache (there are only main)" in message
    assert "`hf download acme/sym --revision v9`" in message
    (folder / "refs" / "main").unlink()
    message = ask("acme/sym", tmp_path, HF_HUB_OFFLINE="1").error
    assert f"acme/sym at main is not in the local cache (there are only {COMMIT})" in message
    assert "`hf download acme/sym`" in message
    assert ask(f"acme/sym@{COMMIT}", tmp_path, HF_HUB_OFFLINE="1").files["mimi"] == "mimi"
