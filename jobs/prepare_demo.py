"""Makes a dataset of the built-in demo corpus, for machines without a network and for trials.

spark-submit jobs/prepare_demo.py
"""

from pathlib import Path

from jobs.session import OUTPUT, add_common_flags, config_from, parsed, run, run_prepare
from pipeline.shared.cli import Parser, uri
from pipeline.text.corpus import demo

CACHE = Path("data/cache/demo.txt")


def main() -> None:
    example = "spark-submit jobs/prepare_demo.py"
    parser = Parser("jobs/prepare_demo.py", "Makes a dataset of the built-in demo corpus.", example)
    parser.add_argument("--output", type=uri, default="data/demo", help=OUTPUT)
    # The corpus is small: keep rarer words, and drop fewer of the frequent ones.
    add_common_flags(parser, "tokenizer", "lowercase", min_count=5, sample=1e-3)
    arguments = parsed(parser)
    run_prepare(demo(CACHE), config_from(arguments), arguments.output, arguments.overwrite)


if __name__ == "__main__":
    run(main)
