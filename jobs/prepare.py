"""Makes a dataset of any corpus: text, or a column of Parquet or JSON lines that holds strings or arrays.

spark-submit jobs/prepare.py --input corpus.txt --output data/mine
spark-submit jobs/prepare.py --input 'hdfs:///logs/2026-*/*.gz' --output s3://bucket/words --tokenizer words
spark-submit jobs/prepare.py --input sessions/ --format parquet --column items --output data/items
"""

import argparse

from jobs.session import OUTPUT, add_common_flags, config_from, parsed, run, run_prepare
from pipeline.pipeline_config import Source
from pipeline.shared.cli import Parser, uri
from pipeline.shared.settings import add_flags
from pipeline.text.corpus import corpus


def parse() -> argparse.Namespace:
    parser = Parser(
        "jobs/prepare.py",
        "Makes a dataset of any corpus, for training/train.py.",
        "spark-submit jobs/prepare.py --input 'texts/*.gz' --tokenizer words --output data/mine",
        "spark-submit jobs/prepare.py --input sessions/ --format parquet --column items --output data/items",
    )
    add_flags(parser, Source)
    parser.add_argument("--output", type=uri, required=True, help=OUTPUT)
    add_common_flags(parser)
    return parsed(parser)


def main() -> None:
    arguments = parse()
    if arguments.lowercase is None:
        arguments.lowercase = arguments.tokenizer == "words"
    config = config_from(arguments)
    column = vars(arguments).get("column")  # absent unless it was given
    run_prepare(corpus(arguments.input, arguments.format, column), config, arguments.output, arguments.overwrite)


if __name__ == "__main__":
    run(main)
