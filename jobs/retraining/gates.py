"""Gates: what new vectors must reach to take the place of the published ones. What asks them is judge.py."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError


@dataclass(frozen=True)
class Gates:
    """What a challenger must reach. None turns a gate off; finite norms are always asked for.

    Raises InputError for values that cannot be.
    """

    heldout_increase: float | None = 0.02
    """At most so much above the champion's loss, as a share of it; on the lines held out from the champion's corpus
    and, apart, on those held out from the challenger's."""
    pairs: tuple[Path, ...] = ()
    """Files of word pairs and people's scores, as training.evaluate reads them."""
    pairs_drop: float = 0.05
    """At most so much below the champion's rank correlation, on the pairs that both know."""
    pairs_least: float | None = None
    """The challenger's rank correlation, on the pairs that it knows itself; asked of a first version too."""
    analogies: Path | None = None
    analogies_drop: float = 0.02
    """As ``pairs_drop``; of the share of right answers, looked for among the words that both know."""
    analogies_least: float | None = None
    overlap: float | None = 0.3
    """At least this mean share of a frequent word's ten neighbours stays."""
    frequent_words: int = 1000
    """How many words ``overlap`` looks at."""
    coverage: float | None = 0.95
    """At least this share of the champion's counted tokens has a word that the challenger still knows."""

    def __post_init__(self) -> None:
        for name, least, most, may_be_null in (
            ("heldout_increase", 0, 100, True),
            ("pairs_drop", 0, 2, False),
            ("pairs_least", -1, 1, True),
            ("analogies_drop", 0, 1, False),
            ("analogies_least", 0, 1, True),
            ("overlap", 0, 1, True),
            ("coverage", 0, 1, True),
        ):
            value = getattr(self, name)
            if value is None and may_be_null:
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not least <= value <= most:
                null = ", or null to ask nothing" if may_be_null else ""
                raise InputError(f"gates.{name}: found {value!r}, expected {least} to {most}{null}")
        if not isinstance(self.frequent_words, int) or isinstance(self.frequent_words, bool) or self.frequent_words < 1:
            raise InputError(f"gates.frequent_words: found {self.frequent_words!r}, expected 1 or more words")
        if not isinstance(self.pairs, tuple) or not all(isinstance(file, Path) for file in self.pairs):
            raise InputError(f"gates.pairs: found {self.pairs!r}, expected a list of files")
        if self.analogies is not None and not isinstance(self.analogies, Path):
            raise InputError(f"gates.analogies: found {self.analogies!r}, expected a file")
        for files, least_of in (("pairs", self.pairs_least), ("analogies", self.analogies_least)):
            if least_of is not None and not getattr(self, files):
                raise InputError(
                    f"gates.{files}_least: found {least_of} without gates.{files}, expected a file of them"
                )
