"""Makes a dataset of any corpus: text, or a column of Parquet, JSON lines or a table that holds strings or arrays.

spark-submit jobs/prepare.py --input corpus.txt --output data/mine
spark-submit jobs/prepare.py --input 'hdfs:///logs/2026-*/*.gz' --output s3://bucket/words --tokenizer words
spark-submit jobs/prepare.py --input sessions/ --format parquet --column items --output data/items
spark-submit jobs/prepare.py --input events/ --format delta --column item --group-by user_id --order-by ts --max-gap 30m
    --output data/sessions
spark-submit jobs/prepare.py --table shop.baskets --column items --where "day >= '2026-01-01'" --output data/baskets
"""

import argparse

from jobs.session import OUTPUT, add_common_flags, config_from, parsed, run, run_prepare
from pipeline.pipeline_config import Source
from pipeline.shared.cli import Parser, uri
from pipeline.shared.settings import add_flags, fields_of
from pipeline.tables.sources import corpus_of


def parse() -> argparse.Namespace:
    parser = Parser(
        "jobs/prepare.py",
        "Makes a dataset of any corpus, for training/train.py.",
        "spark-submit jobs/prepare.py --input 'texts/*.gz' --tokenizer words --output data/mine",
        "spark-submit jobs/prepare.py --input sessions/ --format parquet --column items --output data/items",
        "spark-submit jobs/prepare.py --table shop.baskets --column items --output data/baskets",
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
    given = vars(arguments)  # without what has no default and was not given
    source = Source(**{name: given[name] for name in fields_of(Source) if name in given})
    run_prepare(corpus_of(source), config, arguments.output, arguments.overwrite)


if __name__ == "__main__":
    run(main)
