"""The built-in demo corpus to a dataset: for a machine without a corpus or a network, and for trials.

spark-submit jobs/prepare_demo.py
"""

from pathlib import Path

from jobs.session import OUTPUT, add_common_flags, config_from, parsed, run, run_prepare
from pipeline.shared.cli import Parser, uri
from pipeline.text.corpus import demo

CACHE = Path("data/cache/demo.txt")


def main() -> None:
    example = "spark-submit jobs/prepare_demo.py"
    parser = Parser("jobs/prepare_demo.py", "The built-in demo corpus to a dataset for training/train.py.", example)
    parser.add_argument("--output", type=uri, default="data/demo", help=OUTPUT)
    # A tenth of a corpus' usual size: rarer words count, and frequent ones are thinned out less.
    add_common_flags(parser, "tokenizer", "lowercase", min_count=5, sample=1e-3)
    arguments = parsed(parser)
    run_prepare(demo(CACHE), config_from(arguments), arguments.output, arguments.overwrite)


if __name__ == "__main__":
    run(main)
