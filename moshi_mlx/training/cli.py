"""`moshi-train CONFIG.yaml`: fine-tunes a model on recordings, with adapters or in full.

On several machines or processes: `mlx.launch -n 2 moshi-train CONFIG.yaml`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx

from ..checkpoint import WEIGHTS, write_companions
from ..errors import ConfigError, MoshiError
from ..families import Model, load
from ..files import signals_interrupt
from ..outputs import Output, check_outputs, model_inputs
from ..program import OK, refuse_empty, run_program
from ..trees import named_parameters
from .data import Recording, Recordings, TokenCache, read_manifest
from .distributed import Peers
from .folder import locked, whole_folder
from .lora import adapter_of, add_lora, continue_lora, rehearsing_objective, save_adapter
from .losses import objective
from .plots import plot_losses
from .settings import RunConfig, describe_fields, read_settings
from .trainer import Trainer, evaluation, save_weights


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="moshi-train", description=__doc__, add_help=False)
    # argparse's own ends well where its text cannot be written.
    parser.add_argument("-h", "--help", action="store_true", help="show this help message and exit")
    parser.add_argument("config", nargs="?", type=Path, help="the run's YAML file")
    parser.add_argument("--fields", action="store_true", help="print all fields of the file")
    parser.add_argument(
        "--fresh", action="store_true", help="start over, even if the run's folder has checkpoints"
    )
    return parser


def run(config: RunConfig, *, fresh: bool = False) -> int:
    """Trains, and writes the adapter or the model; a run that was stopped resumes.

    The result is a folder in the run's folder: `adapter` (for `load(…, lora=folder)`) or `model`
    (for `load(folder)`). A run that is stopped leaves the one that is there.

    Returns the exit code: that of the signal if one stopped it.

    Raises:
        MoshiError: something about the model, the data or the run's folder is wrong.
    """
    peers = Peers.found()
    if not peers.is_first:
        return _train(config, peers, fresh)
    _check_outputs(config)
    with locked(config.run_dir):
        return _train(config, peers, fresh)


def _train(config: RunConfig, peers: Peers, fresh: bool) -> int:
    say = _say if peers.is_first else _nothing
    manifests = (config.data.train, config.data.eval)
    listed = {path: read_manifest(path) for path in manifests if path is not None}
    full = config.lora is None
    moshi = load(
        config.model,
        weights=config.weights,
        codec=config.codec,
        dtype=mx.float32 if full else None,
    )
    _prepare_model(moshi, config)

    def recordings(manifest: Path, shuffle: bool) -> Recordings:
        return _recordings(moshi, config, manifest, listed[manifest], peers, shuffle)

    train = recordings(config.data.train, shuffle=True)
    evaluate = None
    if config.data.eval is not None and peers.is_first:
        held = recordings(config.data.eval, shuffle=False)
        evaluate = evaluation(held, held.num_batches, config.loss)
    if train.rehearses and full:
        raise ConfigError(f"{config.data.train}: only adapters (field 'lora') can rehearse")
    goal = rehearsing_objective if train.rehearses else objective
    trainer = Trainer(moshi.lm, config, train, evaluate, peers, goal, say)
    trainer.run(resume=not fresh)
    if trainer.progress < 1.0:
        return 128 + trainer.stop_signal
    result = config.run_dir / ("model" if full else "adapter")
    if peers.is_first:
        _write_result(moshi, config, result)
        log = config.run_dir / "log.jsonl"
        if log.is_file():
            try:
                plot_losses(log, config.run_dir / "loss.png")
            except MoshiError as error:
                say(f"no plot: {error}")
        say(f"written to {result}")
    return OK


def _check_outputs(config: RunConfig) -> None:
    """Whether the run's folder can be written, and nothing that is read is in what is replaced."""
    folder = config.run_dir
    start = None if config.lora is None else config.lora.start
    inputs = [config.data.train, config.data.eval, start, *model_inputs(config.model)]
    outputs = [Output(folder, "the run's folder", kind="folder")]
    outputs += [Output(folder / name, f"the run's {name}") for name in ("log.jsonl", "loss.png")]
    for name in ("checkpoints", "adapter" if config.lora is not None else "model"):
        if (folder / name).exists():
            outputs.append(Output(folder / name, f"the run's {name}", kind="replaced folder"))
    check_outputs(outputs, inputs)


def _prepare_model(moshi: Model, config: RunConfig) -> None:
    lora = config.lora
    if lora is None:
        if any(name.endswith(".scales") for name in named_parameters(moshi.lm)):
            raise ConfigError(f"{config.model} is quantized: train adapters (field 'lora') on it")
    elif lora.start is not None:
        continue_lora(moshi.lm, lora.start, lora.scaling, lora.train_embeddings)
    else:
        add_lora(moshi.lm, lora.rank, lora.scaling, lora.train_embeddings, config.seed)


def _recordings(
    moshi: Model,
    config: RunConfig,
    manifest: Path,
    listed: list[Recording],
    peers: Peers,
    shuffle: bool,
) -> Recordings:
    cache = TokenCache(
        config.data.cache or config.run_dir / "tokens", moshi.codec, moshi.files.mimi, config.data
    )

    def progress(done: int, total: int) -> None:
        if peers.is_first and (done == total or done % 50 == 0):
            _say(f"{manifest.name}: {done} of {total} recordings are tokens")

    recordings = Recordings(
        listed,
        cache,
        moshi.text,
        moshi.config,
        config.data,
        moshi.frame_rate,
        shuffle,
        progress,
    )
    if peers.is_first:
        for note in recordings.notes:
            _say(f"{manifest.name}: {note}")
    return recordings


def _write_result(moshi: Model, config: RunConfig, folder: Path) -> None:
    """The adapter, or a folder that `load` takes."""
    lora, files = config.lora, moshi.files
    if lora is not None:
        rank = next(a.shape[0] for n, a in adapter_of(moshi.lm).items() if ".lora_A." in n)
        save_adapter(moshi.lm, folder, moshi.config.raw, rank, lora.scaling)
        return
    with whole_folder(folder) as fresh:
        save_weights(moshi.lm, fresh / WEIGHTS, getattr(mx, config.save))
        write_companions(
            fresh,
            moshi.config.raw,
            mimi=files.mimi,
            tokenizer=files.tokenizer,
            mimi_config=files.mimi_config,
        )


def _say(line: str) -> None:
    """Says a line; a run goes on where there is no reader left, or no room for its output."""
    try:
        _print(line)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(line: str) -> None:
    """Says a line, in what standard output can encode. Raises OSError."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, "replace").decode(encoding) + "\n")
    sys.stdout.flush()


def _nothing(line: str) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    given = parser.parse_args(words)
    if given.config is None and not (given.help or given.fields):
        parser.error("give the run's YAML file (moshi-train --fields prints what it may say)")

    def work() -> int:
        refuse_empty(words)
        if given.help or given.fields:
            _print(parser.format_help().rstrip() if given.help else "\n".join(describe_fields()))
            return OK
        return run(read_settings(given.config), fresh=given.fresh)

    with signals_interrupt("SIGTERM", "SIGHUP"):
        return run_program("moshi-train", work)
