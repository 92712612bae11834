"""Gates: the bounds that new vectors must meet to replace the published ones. judge.py evaluates them."""

from pipeline.shared.errors import InputError
from pipeline.shared.settings import LocalPath, Number, OneOrMore, setting, settings


@settings(section="gates")
class Gates:
    """Bounds for a challenger. None turns a gate off; norms must always be finite."""

    heldout_increase: Number | None = setting(
        default=0.02,
        ge=0,
        le=100,
        help="the largest increase of the held-out loss, as a share of the champion's; on the lines held out from the "
        "champion's corpus and, separately, on those held out from the challenger's",
    )
    pairs: OneOrMore[LocalPath] = setting(
        default=(), help="files of word pairs with people's scores, in the format of training.evaluate"
    )
    pairs_drop: Number = setting(
        default=0.05, ge=0, le=2, help="the largest drop of the rank correlation, on the pairs that both models know"
    )
    pairs_least: Number | None = setting(
        default=None,
        ge=-1,
        le=1,
        help="the smallest rank correlation, on the pairs that the challenger knows; also for a first version",
    )
    analogies: LocalPath | None = setting(
        default=None, help="a file of analogy questions, in the format of training.evaluate"
    )
    analogies_drop: Number = setting(
        default=0.02,
        ge=0,
        le=1,
        help="the largest drop of the share of right answers, among words both models know",
    )
    analogies_least: Number | None = setting(
        default=None, ge=0, le=1, help="the smallest share of right answers; also for a first version"
    )
    overlap: Number | None = setting(
        default=0.3, ge=0, le=1, help="the smallest mean share of a frequent word's ten neighbours that stay the same"
    )
    frequent_words: int = setting(default=1000, ge=1, help="how many words overlap compares")
    coverage: Number | None = setting(
        default=0.95, ge=0, le=1, help="the smallest share of the champion's tokens whose words are still known"
    )

    def __post_init__(self) -> None:
        for files, least_of in (("pairs", self.pairs_least), ("analogies", self.analogies_least)):
            if least_of is not None and not getattr(self, files):
                raise InputError(
                    f"gates.{files}_least: found {least_of} without gates.{files}, expected a file of them"
                )
