"""What is published: one table that the hub, the doctor, cards, help and README read.

A new model is a new row; nothing else names one. Knows names and figures; nothing of files, of the
network or of what a family does with a model.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

_PERSONAPLEX_VOICES = (
    *(f"NAT{sex}{n}" for sex in "FM" for n in range(4)),
    *(f"VAR{sex}{n}" for sex in "FM" for n in range(5)),
)

PrecisionName = Literal["bf16", "q8", "q6", "q4"]

PRECISIONS: dict[PrecisionName, int] = {"bf16": 16, "q8": 8, "q6": 6, "q4": 4}
"""Bits per weight, the most exact first; 16 is not quantized."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A published model.

    name: what users call it.
    about: one line about it.
    family: its `model_type`.
    precision: of its weights.
    nbytes: all of its files together.
    licence: of the weights.
    repository: on the hub; None comes with the package, or is made here.
    made_from: the name of the entry that it is quantized from on this machine, since it is not
        published; None where it is.
    revision: of the repository; None takes the newest.
    copies: other repositories that have the same model in another layout.
    preset: the configuration that holds where the repository has no config.json, by its name in
        `published.PRESETS`; None where it has one.
    series: the name without a precision, which stands for the best one that a machine can run;
        the library takes it for the model of that name, if there is one.
    voices: names of its voices, or what its one voice is.
    languages: that it speaks or understands, as ISO 639-1 codes.
    aliases: shorter names.
    weights: its file, in a repository that has several.
    recordings: a voice can be made of a recording.
    signature: of the model, in the files of the voices that were made for it.
    """

    name: str
    about: str
    family: str
    precision: PrecisionName
    nbytes: int
    licence: str
    repository: str | None = None
    revision: str | None = None
    preset: str | None = None
    series: str | None = None
    voices: tuple[str, ...] = ()
    languages: tuple[str, ...] = ("en",)
    aliases: tuple[str, ...] = ()
    recordings: bool = False
    made_from: str | None = None
    weights: str | None = None
    copies: tuple[str, ...] = ()
    signature: str | None = None

    @property
    def bits(self) -> int:
        """Bits per weight."""
        return PRECISIONS[self.precision]

    @property
    def bundled(self) -> bool:
        """Whether it comes with the package."""
        return self.repository is None and self.made_from is None


_MIMI_AND_TOKENIZER = 385_000_000
_MOSHI_BYTES: dict[PrecisionName, int] = {
    "bf16": 15_380_000_000, "q8": 8_170_000_000, "q4": 4_810_000_000
}  # fmt: skip


def _moshi(series: str, voice: str, precision: PrecisionName) -> Entry:
    return Entry(
        name=f"{series}-{precision}",
        about=f"Moshi, {voice} voice",
        family="moshi",
        precision=precision,
        nbytes=_MOSHI_BYTES[precision] + _MIMI_AND_TOKENIZER,
        licence="CC-BY 4.0",
        repository=f"kyutai/{series}-mlx-{precision}",
        preset="moshi",
        series=series,
        voices=(voice,),
        copies=(f"kmhf/hf-{series}",) if precision == "bf16" else (),
    )


def _hibiki(
    size: str, repository: str, nbytes: int, licence: str, heard: tuple[str, ...], *aliases: str
) -> Entry:
    return Entry(
        name=f"hibiki-{size}",
        about=f"speech translation, {' '.join(heard)} → en",
        family="hibiki",
        precision="bf16",
        nbytes=nbytes + _MIMI_AND_TOKENIZER,
        licence=licence,
        repository=f"kyutai/{repository}",
        languages=(*heard, "en"),
        aliases=aliases,
    )


def _kyutai(
    name: str,
    about: str,
    repository: str,
    nbytes: int,
    languages: tuple[str, ...],
    *aliases: str,
    recordings: bool = False,
    signature: str | None = None,
) -> Entry:
    """A speech-to-text or a text-to-speech model: the name begins with its family's."""
    return Entry(
        name=name,
        about=f"{about}, {' '.join(languages)}",
        family=name.partition("-")[0],
        precision="bf16",
        nbytes=nbytes + _MIMI_AND_TOKENIZER,
        licence="CC-BY 4.0",
        repository=f"kyutai/{repository}",
        languages=languages,
        aliases=aliases,
        recordings=recordings,
        signature=signature,
    )


_PERSONAPLEX_BYTES: dict[PrecisionName, int] = {
    "bf16": 16_742_874_000, "q8": 8_168_645_376, "q4": 4_805_385_728
}  # fmt: skip


def _personaplex(precision: PrecisionName) -> Entry:
    """Only the original is published."""
    name = "personaplex"
    published = precision == "bf16"
    return Entry(
        name=name if published else f"{name}-{precision}",
        about="Moshi with a persona and a voice of your choice",
        family="personaplex",
        precision=precision,
        nbytes=_PERSONAPLEX_BYTES[precision] + _MIMI_AND_TOKENIZER,
        licence="NVIDIA Open Model License",
        repository="nvidia/personaplex-7b-v1" if published else None,
        preset="personaplex",
        series=name,
        voices=_PERSONAPLEX_VOICES,
        recordings=True,
        made_from=None if published else name,
    )


_HELIUM_BYTES: dict[PrecisionName, int] = {
    "bf16": 4_100_000_000, "q8": 2_180_000_000, "q6": 1_670_000_000, "q4": 1_150_000_000
}  # fmt: skip
"""Computed from shapes: every matrix in groups of 64."""


def _helium(precision: PrecisionName) -> Entry:
    return Entry(
        name=f"helium-{precision}",
        about="text that goes on from a text",
        family="helium",
        precision=precision,
        nbytes=_HELIUM_BYTES[precision],
        licence="CC-BY 4.0",
        repository="kyutai/helium-1-preview-2b-mlx",
        languages=("en", "fr", "de", "it", "pt", "es"),
        aliases=("helium",) if precision == "bf16" else (),
        weights=f"helium-1-preview-2b-{precision}.safetensors",
    )


ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="nano",
        about="demonstration model",
        family="moshi",
        precision="bf16",
        nbytes=19_238_066,
        licence="MIT",
        voices=("female",),
    ),
    Entry(
        name="nano-stt",
        about="speech to text, demonstration model of 431 words",
        family="stt",
        precision="bf16",
        nbytes=5_864_951,
        licence="MIT",
    ),
    Entry(
        name="nano-tts",
        about="text to speech, demonstration model of 431 words",
        family="tts",
        precision="bf16",
        nbytes=9_389_546,
        licence="MIT",
        voices=("female",),
    ),
    *(_moshi("moshiko", "male", precision) for precision in _MOSHI_BYTES),
    *(_moshi("moshika", "female", precision) for precision in _MOSHI_BYTES),
    *(_personaplex(precision) for precision in _PERSONAPLEX_BYTES),
    # Weights of the second and third: computed from their shapes.
    _hibiki("1b", "hibiki-1b-mlx-bf16", 3_600_000_000, "CC-BY 4.0", ("fr",), "hibiki"),
    _hibiki("2b", "hibiki-2b-mlx-bf16", 6_340_000_000, "CC-BY 4.0", ("fr",)),
    _hibiki(
        "zero",
        "hibiki-zero-3b-pytorch-bf16",
        6_260_000_000,
        "CC BY-NC-SA 4.0",
        ("fr", "es", "pt", "de"),
    ),
    # The first is the one of several repositories that has pause heads. Computed from shapes.
    _kyutai(
        "stt-1b",
        "speech to text",
        "stt-1b-en_fr-candle",
        1_980_000_000,
        ("en", "fr"),
        "stt",
        "stt-1b-en_fr",
    ),
    _kyutai("stt-2.6b", "speech to text", "stt-2.6b-en", 5_240_000_000, ("en",), "stt-2.6b-en"),
    # Weights of the first: computed from their shapes; of the second: by its name.
    _kyutai(
        "tts-1.6b",
        "text to speech",
        "tts-1.6b-en_fr",
        3_673_264_384,
        ("en", "fr"),
        "tts",
        signature="1e68beda@240",
    ),
    _kyutai(
        "tts-0.75b",
        "text to speech",
        "tts-0.75b-en-public",
        1_500_000_000,
        ("en",),
        recordings=True,
        signature="d6ef30c7@1000",
    ),
    *(_helium(precision) for precision in _HELIUM_BYTES),
)
"""All of them, the bundled ones first."""
_ALIKE = {"personaplex": "moshi"}  # families that can do the same


def find(name: str) -> Entry | None:
    """The entry with this name, alias or repository, or whose model a repository has too."""
    return next((e for e in ENTRIES if name in (e.name, e.repository, *e.aliases, *e.copies)), None)


def entry_of(name: str) -> Entry | None:
    """The entry that a name stands for; the most exact one for the name of a series."""
    return find(name) or next(iter(series(name)), None)


def names() -> list[str]:
    """Of all entries, in the table's order."""
    return [entry.name for entry in ENTRIES]


def bundled() -> list[str]:
    """Names of the models that come with the package."""
    return [entry.name for entry in ENTRIES if entry.bundled]


def default_model() -> str:
    """The model of a command that names none: the smallest, which comes with the package."""
    return bundled()[0]


def all_series() -> list[str]:
    """Names that stand for several precisions, in the table's order."""
    return list(dict.fromkeys(entry.series for entry in ENTRIES if entry.series))


def series(name: str) -> list[Entry]:
    """The precisions of a series, the most exact first; none if there is no such series."""
    found = [entry for entry in ENTRIES if entry.series == name]
    return sorted(found, key=lambda entry: -entry.bits)


def stand_in(name: str) -> str | None:
    """The bundled model that can do what a published one can; None where there is none."""
    entry = entry_of(name)
    family = None if entry is None else _ALIKE.get(entry.family, entry.family)
    return next((e.name for e in ENTRIES if e.bundled and e.family == family), None)


def bundled_advice(name: str) -> str:
    """What may be used in place of a model that cannot be had, for messages; "" if nothing."""
    if entry_of(name) is None:
        *first, last = bundled()
        return f"use --model {', '.join(first)} or {last}, which come with the program"
    other = stand_in(name)
    return "" if other is None else f"use --model {other}, which comes with the program"


def signed(signature: str) -> str:
    """The model of that signature, for messages."""
    found = (entry.name for entry in ENTRIES if entry.signature == signature)
    return next(found, f"the model {signature}")


def made_of_recordings() -> str:
    """The models for which a voice can be made of a recording, for messages."""
    names = (entry.series or entry.name for entry in ENTRIES if entry.recordings)
    return " or ".join(dict.fromkeys(names))


def suggestion(name: str, known: Sequence[str] = ()) -> str:
    """For a name that leads nowhere: the nearest ones, and what a model can be.

    Args:
        name: as it was given.
        known: models that can do what is asked; all if empty.
    """
    among = known or names()
    close = [entry.name for entry in series(name)]
    if not close:
        wanted = name.rsplit("/", 1)[-1].lower().replace("-mlx", "")
        close = difflib.get_close_matches(wanted, among, n=3, cutoff=0.6)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{hint}A model is one of {', '.join(among)}, a folder, or org/repo on the hub."


# ------------------------------------------------------------------------- published voices

VOICE_REPOSITORY = "kyutai/tts-voices"
"""On the hub: recordings, and beside each what a text-to-speech model reads of it."""


@dataclass(frozen=True, slots=True)
class VoiceFolder:
    """A folder of VOICE_REPOSITORY.

    name: its path; the voices in it are called NAME/FILE.wav.
    about: whose voices they are.
    licence: of its files, by the repository's card.
    """

    name: str
    about: str
    licence: str


VOICE_FOLDERS = (
    VoiceFolder("alba-mackenna", "characters of one voice actor", "CC BY 4.0"),
    VoiceFolder("cml-tts/fr", "French, of the CML-TTS dataset", "CC BY 4.0"),
    VoiceFolder("ears", "107 speakers of the EARS dataset", "CC BY-NC 4.0"),
    VoiceFolder("expresso", "acted conversations of the Expresso dataset", "CC BY-NC 4.0"),
    VoiceFolder("unmute-prod-website", "of the demonstration at unmute.sh", "see its card"),
    VoiceFolder("vctk", "speakers of the VCTK dataset", "CC BY 4.0"),
    VoiceFolder("voice-donations", "228 volunteers", "CC0"),
    VoiceFolder("voice-zero", "readers of LibriVox", "CC0"),
)


def voice_licence(name: str) -> str:
    """The licence of a published voice, by the folder in its name."""
    folder = next((f for f in VOICE_FOLDERS if name.startswith(f"{f.name}/")), None)
    return "see its folder's card" if folder is None else folder.licence
