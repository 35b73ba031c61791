"""Text models: the reference's numbers, what is told of a completion, and their files."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import moshi_mlx
from moshi_mlx import ArgumentError, HubError, MoshiError, VerbError
from moshi_mlx.families import complete
from moshi_mlx.families.complete import END_OF_TEXT, Completion, Helium
from moshi_mlx.sampling import Sampling
from moshi_mlx.text_models import open_text_model
from tests.conformance_text import run_text

CASES = Path(__file__).parents[1] / "fixtures" / "helium"
FILE = CASES / "helium" / "helium-bf16.safetensors"
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def helium() -> Helium:
    return moshi_mlx.load(FILE, verb="complete", dtype=mx.float32)


@pytest.mark.parametrize("case", ["helium", "helium-q4"])
def test_conformance(case: str) -> None:
    result = run_text(CASES / case)
    assert len(result) == (4 if case == "helium" else 1)
    for name, difference in result.items():
        assert difference <= (1e-3 if name.endswith("logits") else 0), name


def test_pieces_are_the_text_and_a_seed_repeats_it(helium: Helium) -> None:
    first = [*helium.complete("hello", max_tokens=12, seed=3)]
    assert "".join(first) == helium.complete("hello", max_tokens=12, seed=3).text
    assert "".join(first) != helium.complete("hello", max_tokens=12, seed=4).text
    assert all(first)


@pytest.mark.parametrize("block", [512, 2, 1])
def test_it_goes_on_from_what_was_read_at_once(
    helium: Helium, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt and its greedy continuation, read together, are continued alike."""
    monkeypatch.setattr(complete, "_BLOCK", block)
    prompt = np.array([1, 20, 30, 40])
    text = helium.text.decode(prompt[1:].tolist())
    encoded = helium.text.encode(text)
    made = helium.complete(text, max_tokens=6, text=GREEDY)
    while made._read < len(made._prompt):
        made._read_on()
    tokens = [made._step() for _ in range(6)]
    generator = helium.generator(text=GREEDY, audio=GREEDY)
    for token in encoded:
        generator.step(np.zeros((1, 0), np.int32), text=token)
    assert [
        int(generator.step(np.zeros((1, 0), np.int32)).written[0, 0]) for _ in range(6)
    ] == tokens


def taken(model: Helium, tokens: list[int], **given: object) -> tuple[list[str], str | None]:
    """What a completion tells of these tokens, piece by piece."""
    made = model.complete("", **given)  # type: ignore[arg-type]
    drawn = iter(tokens)
    made._step = lambda: next(drawn)  # type: ignore[method-assign]
    return [*made], made.finish_reason


def test_stop_strings_are_not_told_even_in_two_tokens(helium: Helium) -> None:
    tokens = helium.text.encode("one two three four")
    whole, reason = taken(helium, [*tokens, END_OF_TEXT])
    assert ("".join(whole), reason) == ("one two three four", "stop")
    cut, reason = taken(helium, [*tokens, END_OF_TEXT], stop=["three f", "zz"])
    assert ("".join(cut), reason) == ("one two ", "stop")
    cut, reason = taken(helium, [*tokens, END_OF_TEXT], stop=["threx"])
    assert ("".join(cut), reason) == ("one two three four", "stop")
    cut, reason = taken(helium, tokens, max_tokens=len(tokens))
    assert ("".join(cut), reason) == ("one two three four", "length")


@pytest.mark.parametrize(
    "given",
    [{"max_tokens": 0}, {"max_tokens": 1.5}, {"stop": [""]}, {"stop": [1]}, {"seed": -1}],
)
def test_impossible_arguments(helium: Helium, given: dict[str, object]) -> None:
    with pytest.raises(ArgumentError):
        helium.complete("hello", **given)  # type: ignore[arg-type]


def test_a_closed_completion_gives_nothing(helium: Helium) -> None:
    with helium.complete("hello") as made:
        assert isinstance(made, Completion)
        next(made)
    with pytest.raises(MoshiError, match="closed"):
        next(made)


def test_what_a_text_model_cannot_do(helium: Helium) -> None:
    with pytest.raises(VerbError, match="it can complete, but not talk"):
        moshi_mlx.load(FILE, verb="talk")
    with pytest.raises(VerbError, match="can talk, but not complete"):
        moshi_mlx.load("nano", verb="complete")
    for verb in ("session", "transcribe", "speak", "translate"):
        with pytest.raises(VerbError):
            getattr(helium, verb)()


def test_shards_of_transformers_without_a_tokenizer_model(tmp_path: Path) -> None:
    """As the hub has it: an index, two files."""
    folder = tmp_path / "helium"
    folder.mkdir()
    case = CASES / "helium"
    for name in ("config.json", "tokenizer.model"):
        shutil.copy(case / name, folder)
    tensors = mx.load(str(case / "transformers.safetensors"))
    assert isinstance(tensors, dict)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        mx.save_safetensors(str(folder / file), {name: tensors[name] for name in own})
    table = {name: file for file, own in parts.items() for name in own}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    found = moshi_mlx.load(folder, verb="complete", dtype=mx.float32)
    one = moshi_mlx.load(FILE, verb="complete", dtype=mx.float32)
    assert found.complete("hi", text=GREEDY).text == one.complete("hi", text=GREEDY).text
    (folder / "b.safetensors").unlink()
    with pytest.raises(HubError, match=r"no b\.safetensors .* ORG/REPO b\.safetensors"):
        open_text_model(folder)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("hidden_act", "gelu", "hidden_act"),
        ("rms_norm_eps", 1e-5, "rms_norm_eps"),
        ("num_key_value_heads", 3, "num_attention_heads"),
        ("intermediate_size", 128, "intermediate_size"),
        ("bos_token_id", 96, "bos_token_id"),
        ("rotary_pct", 0.5, "not understood"),
        ("vocab_size", 95, "96 tokens"),
    ],
)
def test_what_a_config_says_wrong_is_named(
    tmp_path: Path, field: str, value: object, problem: str
) -> None:
    for path in (CASES / "helium").iterdir():
        if path.name != "transformers.safetensors":
            shutil.copy(path, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(MoshiError, match=problem):
        open_text_model(tmp_path / FILE.name)


def test_several_weights_files_are_named() -> None:
    with pytest.raises(HubError, match="several weights files"):
        open_text_model(CASES / "helium")
