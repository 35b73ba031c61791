"""Numbers, times, units and abbreviations written out."""

import pytest

from moshi_mlx import ArgumentError
from moshi_mlx.spoken_text import spoken_text


@pytest.mark.parametrize(
    ("text", "language", "said"),
    [("Dr. Lee paid $1,234.50 at 12:30.", "en",
      "Doctor Lee paid one thousand two hundred and thirty-four dollars and fifty cents at "
      "twelve thirty."),
     ("$5.20, €0.99, £2.01, $5.2 million", "en",
      "five dollars and twenty cents, ninety-nine cents, "
      "two pounds and one penny, five point two million dollars"),
     ("01.02.2026, 31.02.2026, 12/05/2024, 00/00/2024", "en", "the first of February twenty "
      "twenty-six, three one, zero two, two zero two six, twelve five twenty twenty-four, zero "
      "zero, zero zero, two zero two four"),
     ("1/0 is none; 3/4, 24/7, 1.2.3, 8:05:30", "en", "one over zero is none; three quarters, "
      "twenty-four seven, one point two point three, eight oh five and thirty seconds"),
     ("21h30, 1 h, 8h05, 21:01, 1,5 h", "fr", "vingt et une heures trente, une heure, huit heures "
      "cinq, vingt et une heures une, un virgule cinq heures"),
     ("5,20 € le 01/12/2024, pas le 31.02.2026; 1/2, 14/20", "fr", "cinq euros vingt le premier "
      "décembre deux mille vingt-quatre, pas le trois un, zéro deux, deux zéro deux six; un demi, "
      "quatorze sur vingt"),
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
