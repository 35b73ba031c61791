"""Numbers, times, units and abbreviations written out."""

import pytest

from moshi_mlx import ArgumentError
from moshi_mlx.spoken_text import spoken_text


@pytest.mark.parametrize(
    ("text", "language", "said"),
    [("Dr. Lee paid $1,234.50 at 12:30.", "en",
      "Doctor Lee paid one thousand two hundred and thirty-four point five dollars at twelve "
      "thirty."),
     ("1 km, 25% of it, 1st, -5°C.", "en",
      "one kilometer, twenty-five percent of it, first, minus five degrees Celsius."),
     ("In 1984, at 9:05", "en", "In nineteen eighty-four, at nine oh five"),
     ('007 <break time="500ms"/> v2', "en", 'zero zero seven <break time="500ms"/> v2'),
     ("M. Roy a 1 234,5 kg à 12:30.", "fr",
      "monsieur Roy a mille deux cent trente-quatre virgule cinq kilogrammes à douze heures "
      "trente."),
     ("Nothing to do, here.", "en", "Nothing to do, here.")],
)  # fmt: skip
def test_what_is_read_aloud(text: str, language: str, said: str) -> None:
    pytest.importorskip("num2words")
    assert spoken_text(text, language) == said


def test_what_is_no_text_or_no_language_is_refused() -> None:
    with pytest.raises(ArgumentError, match="text must be a str"):
        spoken_text(3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="language must be en or fr, is 'xx'"):
        spoken_text("x", "xx")
