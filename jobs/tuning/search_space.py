"""What a study searches: for each setting the values to try, as Optuna draws them."""

from dataclasses import dataclass
from typing import Any

from optuna import Trial

from pipeline.pipeline_config import SEQUENCE
from pipeline.shared.errors import InputError, shown
from pipeline.shared.settings import Number, from_section, setting, settings

PREPARE, TRAIN = "prepare", "train"
SECTIONS = PREPARE, TRAIN

MOST_CHOICES, MOST_STEPS = 100, 1_000_000

WINDOWS: dict[str, Any] = {
    "window": {"low": 1, "high": 10},
    "window_kind": ["dynamic", "fixed"],
    "window_side": ["both", "right"],
    "ns_exponent": {"low": -1.0, "high": 1.0, "step": 0.25},
    "sample": [0.0, 0.001, 0.0001],
    "negatives": [5, 10, 20],
}
"""What is searched of prepare if the file does not say it. Steps let trials share datasets."""


def usual_training(lr: float) -> dict[str, Any]:
    """What is searched of training if the file does not say it; ``lr`` is the optimizer's usual rate."""
    return {
        "dim": [32, 64, 128],
        "lr": {"low": lr / 4, "high": lr * 8, "log": True},
        "epochs": {"low": 3, "high": 30, "log": True},
    }


@settings(section="search")
class _Range:
    """Numbers from ``low`` to ``high``, both possible."""

    low: Number = setting(help="the smallest value")
    high: Number = setting(help="the largest value")
    log: bool = setting(default=False, help="draw logarithms uniformly, for values of several magnitudes")
    step: Number | None = setting(default=None, gt=0, le=1e30, help="the distance of values (default: any)")

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InputError(f"found low {self.low:g} and high {self.high:g}, expected low below high")
        if self.log and self.low <= 0:
            raise InputError(f"found low {self.low:g} with log: true, expected a low above 0")
        if self.log and self.step is not None:
            raise InputError(f"found step {self.step:g} with log: true, expected one of them")
        num_steps = (self.high - self.low) / (self.step or self.high - self.low)
        if num_steps > MOST_STEPS or abs(num_steps - round(num_steps)) > 1e-6 * num_steps or num_steps < 0.5:
            found = f"found {num_steps:.4g} steps of {self.step:g} from {self.low:g} to {self.high:g}"
            raise InputError(f"{found}, expected a whole number of them, {MOST_STEPS:,} at most")


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both possible; int for a setting that is whole, else float."""

    low: float
    high: float
    log: bool
    step: float | None


Values = tuple[Any, ...] | Range
Space = dict[str, dict[str, Values]]
"""The values of each setting, by section and name."""


def values_of(given: object, where: str, is_whole: bool) -> Values:
    """The values in a file: a list, or a range. Raises InputError."""
    if not isinstance(given, list):
        try:
            found = from_section(_Range, _range(given, where), where)
        except InputError as error:
            raise InputError(str(error) if where in str(error) else f"{where}: {error}") from None
        numbers = found.low, found.high, found.step
        if not is_whole:
            return Range(found.low, found.high, found.log, found.step)
        if fractions := [number for number in numbers if number is not None and not number.is_integer()]:
            raise InputError(f"{where}: found {fractions[0]:g}, expected whole numbers")
        return Range(int(found.low), int(found.high), found.log, None if found.step is None else int(found.step))
    scalars = all(value is None or isinstance(value, bool | int | float | str) for value in given)
    if not given or len(given) > MOST_CHOICES or not scalars:
        raise InputError(f"{where}: found {shown(given)}, expected 1 to {MOST_CHOICES} values: numbers, text or null")
    if len({(isinstance(value, bool), value) for value in given}) < len(given):
        raise InputError(f"{where}: found a value twice in {shown(given)}, expected each once")
    return tuple(given)


def _range(given: object, where: str) -> object:
    if isinstance(given, dict):
        return given
    raise InputError(f"{where}: found {shown(given)}, expected a list of values, or low and high")


def extremes(values: Values) -> tuple[Any, ...]:
    """If these are allowed, all values are: the choices, or the ends of the range."""
    return (values.low, values.high) if isinstance(values, Range) else values


def drawn(trial: Trial, space: Space) -> dict[str, dict[str, Any]]:
    """The settings of a trial, by section."""
    found: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for section in SECTIONS:
        for name, values in sorted(space[section].items()):  # so window comes before window_kind
            if name == "window_kind" and found[PREPARE].get("window") == SEQUENCE:
                continue  # it has no radius
            found[section][name] = _drawn(trial, f"{section}.{name}", values)
    return found


def _drawn(trial: Trial, name: str, values: Values) -> Any:
    if not isinstance(values, Range):
        return trial.suggest_categorical(name, values)
    if isinstance(values.low, int) and isinstance(values.high, int):
        return trial.suggest_int(name, values.low, values.high, log=values.log, step=int(values.step or 1))
    return trial.suggest_float(name, values.low, values.high, log=values.log, step=values.step)
