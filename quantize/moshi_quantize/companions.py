"""Codec and tokenizer of a checkpoint as Kyutai has them, made where it has Transformers'."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from moshi_mlx.checkpoint import Checkpoint
from moshi_mlx.files import read_json, write_json
from moshi_mlx.tokenizer_json import sentencepiece_model
from moshi_mlx.transformers_config import is_mimi, is_moshi, kyutai_mimi_config
from moshi_mlx.weights_mimi import read_mimi

from .writer import TensorWriter

_MIMI, _MIMI_CONFIG, _TOKENIZER = "mimi.safetensors", "mimi_config.json", "tokenizer.model"
_TOKENIZER_JSON = "tokenizer.json"


@contextmanager
def own_companions(source: Checkpoint) -> Iterator[tuple[Path, Path, Path | None]]:
    """The codec, the tokenizer and the codec's configuration, while the block runs.

    Raises:
        CheckpointError: the codec cannot be read.
    """
    files = source.files
    mimi, tokenizer, mimi_config = files.mimi, files.tokenizer, files.mimi_config
    data = read_json(mimi_config) if mimi_config is not None else {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        if is_moshi(data) or is_mimi(data):
            mimi, mimi_config = folder / _MIMI, folder / _MIMI_CONFIG
            tensors = read_mimi(files.mimi, source.mimi_config)
            specs = {name: (value.dtype, value.shape) for name, value in tensors.items()}
            with TensorWriter(mimi, specs) as writer:
                for tensor in [*tensors]:
                    writer.write(tensor, tensors.pop(tensor))
            write_json(mimi_config, kyutai_mimi_config(data, str(files.mimi_config)))
        if tokenizer.name == _TOKENIZER_JSON:
            tokenizer = folder / _TOKENIZER
            model = sentencepiece_model(read_json(files.tokenizer), str(files.tokenizer))
            tokenizer.write_bytes(model)
        yield mimi, tokenizer, mimi_config
