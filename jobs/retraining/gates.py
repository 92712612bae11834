"""Gates: what new vectors must reach to take the place of the published ones. What asks them is judge.py."""

from pipeline.shared.errors import InputError
from pipeline.shared.settings import LocalPath, Number, OneOrMore, setting, settings


@settings(section="gates")
class Gates:
    """What a challenger must reach. None turns a gate off; finite norms are always asked for."""

    heldout_increase: Number | None = setting(
        default=0.02,
        ge=0,
        le=100,
        help="at most so much above the champion's loss, as a share of it; on the lines held out from the champion's "
        "corpus and, apart, on those held out from the challenger's",
    )
    pairs: OneOrMore[LocalPath] = setting(
        default=(), help="files of word pairs and people's scores, as training.evaluate reads them"
    )
    pairs_drop: Number = setting(
        default=0.05,
        ge=0,
        le=2,
        help="at most so much below the champion's rank correlation, on the pairs that both know",
    )
    pairs_least: Number | None = setting(
        default=None,
        ge=-1,
        le=1,
        help="the challenger's rank correlation, on the pairs that it knows itself; asked of a first version too",
    )
    analogies: LocalPath | None = setting(default=None, help="a file of questions, as training.evaluate reads it")
    analogies_drop: Number = setting(
        default=0.02,
        ge=0,
        le=1,
        help="as pairs_drop; of the share of right answers, looked for among the words that both know",
    )
    analogies_least: Number | None = setting(
        default=None, ge=0, le=1, help="as pairs_least; of the share of right answers"
    )
    overlap: Number | None = setting(
        default=0.3, ge=0, le=1, help="at least this mean share of a frequent word's ten neighbours stays"
    )
    frequent_words: int = setting(default=1000, ge=1, help="how many words overlap looks at")
    coverage: Number | None = setting(
        default=0.95,
        ge=0,
        le=1,
        help="at least this share of the champion's counted tokens has a word that the challenger still knows",
    )

    def __post_init__(self) -> None:
        for files, least_of in (("pairs", self.pairs_least), ("analogies", self.analogies_least)):
            if least_of is not None and not getattr(self, files):
                raise InputError(
                    f"gates.{files}_least: found {least_of} without gates.{files}, expected a file of them"
                )
