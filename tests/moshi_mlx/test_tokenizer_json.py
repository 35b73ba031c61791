"""tokenizer.json, read as the SentencePiece model that it was made of, and written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moshi_mlx.errors import TokenizerError
from moshi_mlx.text import TextTokenizer
from moshi_mlx.tokenizer_json import sentencepiece_model, tokenizer_json

FIXTURE = Path(__file__).parents[1] / "fixtures/transformers/moshi"
FILE = FIXTURE / "transformers/tokenizer.json"


@pytest.fixture
def data() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text()))


def test_ids_are_those_of_sentencepiece() -> None:
    tokenizer = TextTokenizer(FILE)
    for case in json.loads((FIXTURE / "tokenizer_cases.json").read_text()):
        assert tokenizer.encode(case["text"]) == case["sentencepiece"], case["text"]


def test_pieces_are_those_of_the_model() -> None:
    ours, theirs = TextTokenizer(FILE), TextTokenizer(FIXTURE / "kyutai/tokenizer.model")
    assert ours.vocab_size == theirs.vocab_size
    tokens = range(ours.vocab_size)
    assert [ours.piece(i) for i in tokens] == [theirs.piece(i) for i in tokens]


def test_there_and_back_is_the_same_model(tmp_path: Path, data: dict[str, Any]) -> None:
    model = TextTokenizer(FIXTURE / "kyutai/tokenizer.model").model
    made = tokenizer_json(model, "here")
    for name in ("normalizer", "pre_tokenizer", "decoder", "added_tokens"):
        assert made[name] == data[name]
    again = sentencepiece_model(made, "here")
    assert tokenizer_json(again, "here") == made


def test_bytes_stand_for_characters_that_the_vocabulary_lacks(
    tmp_path: Path, data: dict[str, Any]
) -> None:
    data["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = TextTokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.decode(tokenizer.encode("a 你")) == "a 你"
    (tmp_path / "again.json").write_text(json.dumps(tokenizer_json(tokenizer.model, "here")))
    assert TextTokenizer(tmp_path / "again.json").encode("a 你") == tokenizer.encode("a 你")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda data: data.pop("model"), "'model' must be an object"),
        (lambda data: data["model"].update(type="BPE"), "must be 'Unigram', is 'BPE'"),
        (lambda data: data["model"].update(vocab={}), "'model.vocab' must be a list"),
        (lambda data: data["model"].update(unk_id=None), "'model.unk_id' must be a token"),
        (lambda data: data["model"].update(unk_id=10_000), "'model.unk_id' must be a token"),
        (lambda data: data["model"]["vocab"].append(["x"]), "for token 128"),
        (lambda data: data["model"]["vocab"].append(["", 0]), "for token 128"),
        (lambda data: data["model"]["vocab"].append(["x\0", 0]), "for token 128"),
        (lambda data: data["model"]["vocab"].append(["x", 1e300]), "for token 128"),
        (lambda data: data["model"]["vocab"].append(["<s>", 0]), "has a piece twice"),
        (lambda data: data.update(added_tokens=["x"]), "'added_tokens' must be a list"),
        (
            lambda data: data.update(
                normalizer={"type": "Precompiled", "precompiled_charsmap": "?"}
            ),
            "precompiled_charsmap' is broken",
        ),
    ],
)
def test_what_is_broken_is_named(
    change: Callable[[dict[str, Any]], Any], problem: str, tmp_path: Path, data: dict[str, Any]
) -> None:
    change(data)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"added_tokens": [], **data}))
    with pytest.raises(TokenizerError, match=problem) as error:
        TextTokenizer(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_charsmap_that_sentencepiece_refuses(tmp_path: Path, data: dict[str, Any]) -> None:
    data["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    with pytest.raises(TokenizerError, match="is no sound vocabulary"):
        TextTokenizer(path)
