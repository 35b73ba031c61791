"""What loaded models of all families have: a language model, a tokenizer, a thread; and the verbs
that they refuse.
"""

from typing import Any

from ..config import ModelConfig
from ..errors import VerbError
from ..generate import Generator
from ..lm import Lm
from ..sampling import Sampling
from ..text import TextTokenizer
from ..worker import Worker
from .kinds import Verb, kind_of, require_verb


class LoadedModel:
    """A loaded model.

    Args:
        name: as it was asked for.
        config: what its config.json says.
        text: its tokenizer.
        lm: the language model.
    """

    def __init__(self, name: str, config: ModelConfig, text: TextTokenizer, lm: Lm) -> None:
        self.name, self.config, self.text, self.lm = name, config, text, lm
        self.worker = Worker()

    def work_after(self, first: Worker) -> None:
        """Its work is done on that worker's thread from now on, whenever that one has none itself.

        So several models share a machine, and one goes first: it waits for a job of another at
        most. To be called before this one has been used.
        """
        self.worker.close()
        self.worker = Worker(first)

    @property
    def verb(self) -> Verb:
        """What it can do."""
        return kind_of(self.config, self.name).verb

    @property
    def text_sampling(self) -> Sampling:
        """How the model's makers draw text."""
        defaults = self.config.sampling
        return Sampling(temperature=defaults.temp_text, top_k=defaults.top_k_text)

    @property
    def audio_sampling(self) -> Sampling:
        """How the model's makers draw codes."""
        defaults = self.config.sampling
        return Sampling(temperature=defaults.temp, top_k=defaults.top_k)

    def generator(self, *, text: Sampling | None, audio: Sampling | None, **rest: Any) -> Generator:
        """A generator of the model's streams, drawn its own way where None; on its thread."""
        return Generator(
            self.lm,
            text=self.text_sampling if text is None else text,
            audio=self.audio_sampling if audio is None else audio,
            **rest,
        )

    def session(self, *args: Any, **kwargs: Any) -> Any:
        """A conversation. Raises VerbError: this model cannot talk."""
        raise self._refusal("talk")

    def transcribe(self, *args: Any, **kwargs: Any) -> Any:
        """Speech to text. Raises VerbError: this model cannot do it."""
        raise self._refusal("transcribe")

    def speak(self, *args: Any, **kwargs: Any) -> Any:
        """Text to speech. Raises VerbError: this model cannot do it."""
        raise self._refusal("speak")

    def translate(self, *args: Any, **kwargs: Any) -> Any:
        """Speech to speech in another language. Raises VerbError: this model cannot do it."""
        raise self._refusal("translate")

    def complete(self, *args: Any, **kwargs: Any) -> Any:
        """Text after text. Raises VerbError: this model cannot do it."""
        raise self._refusal("complete")

    def _refusal(self, verb: Verb) -> VerbError:
        try:
            require_verb(verb, self.config, self.name)
        except VerbError as error:
            return error
        raise AssertionError(f"{type(self).__name__} can {verb}")
