"""Gates: what new vectors must reach to take the place of the published ones. What asks them is judge.py."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.shared.errors import InputError


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
        for name, least, most in (
            ("heldout_increase", 0, 100),
            ("pairs_drop", 0, 2),
            ("pairs_least", -1, 1),
            ("analogies_drop", 0, 1),
            ("analogies_least", 0, 1),
            ("overlap", 0, 1),
            ("coverage", 0, 1),
        ):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                null = "" if name.endswith("_drop") else ", or null to ask nothing"
                raise InputError(f"gates.{name}: found {value:g}, expected {least} to {most}{null}")
        if self.frequent_words < 1:
            raise InputError(f"gates.frequent_words: found {self.frequent_words}, expected 1 or more words")
        for files, least_of in (("pairs", self.pairs_least), ("analogies", self.analogies_least)):
            if least_of is not None and not getattr(self, files):
                raise InputError(
                    f"gates.{files}_least: found {least_of} without gates.{files}, expected a file of them"
                )
