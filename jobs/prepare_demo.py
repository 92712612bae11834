"""The built-in demo corpus to a dataset: for a machine without a corpus or a network, and for trials.

spark-submit jobs/prepare_demo.py
"""

from pathlib import Path

from session import add_sampling_flags, config_from, run, run_prepare

from pipeline.corpus import demo
from pipeline.errors import Parser, uri

CACHE = Path("data/cache/demo.txt")


def main() -> None:
    parser = Parser("jobs/prepare_demo.py", "The built-in demo corpus to a dataset for training/train.py.")
    parser.add_argument("--output", type=uri, default="data/demo", help="the dataset (default: %(default)s)")
    # A tenth of a corpus' usual size: rarer words count, and frequent ones are thinned out less.
    add_sampling_flags(parser, min_count=5, sample=1e-3)
    arguments = parser.parse_args()
    run_prepare(demo(CACHE), config_from(arguments), arguments.output, arguments.overwrite)


if __name__ == "__main__":
    run(main)
