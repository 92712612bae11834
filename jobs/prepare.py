"""Any corpus to a dataset: text, or a column of Parquet or JSON lines, of strings or of arrays.

spark-submit jobs/prepare.py --input corpus.txt --output data/mine
spark-submit jobs/prepare.py --input 'hdfs:///logs/2026-*/*.gz' --output s3://bucket/words --tokenizer words
spark-submit jobs/prepare.py --input sessions/ --format parquet --column items --output data/items
"""

import argparse

from jobs.session import OUTPUT, add_common_flags, config_from, parsed, run, run_prepare
from pipeline.pipeline_config import TOKENIZERS
from pipeline.shared.cli import Parser, uri
from pipeline.text.corpus import FORMATS, corpus


def parse() -> argparse.Namespace:
    parser = Parser(
        "jobs/prepare.py",
        "Any corpus to a dataset for training/train.py.",
        "spark-submit jobs/prepare.py --input 'texts/*.gz' --tokenizer words --output data/mine",
        "spark-submit jobs/prepare.py --input sessions/ --format parquet --column items --output data/items",
    )
    parser.add_argument(
        "--input", type=uri, nargs="+", required=True, help="files, folders, patterns, or URIs that Spark reads"
    )
    parser.add_argument("--output", type=uri, required=True, help=OUTPUT)
    group = parser.add_argument_group("corpus")
    group.add_argument(
        "--format", choices=FORMATS, default="text", help="text is one sequence a line, plain, .gz, .bz2 or .zst"
    )
    group.add_argument("--column", metavar="NAME", help="of Parquet or JSON: strings, or arrays of strings or integers")
    group.add_argument(
        "--tokenizer", choices=TOKENIZERS, default="whitespace", help="words: runs of Unicode letters and numbers"
    )
    group.add_argument(
        "--lowercase",
        action=argparse.BooleanOptionalAction,
        help="of every token (default: with --tokenizer words only)",
    )
    add_common_flags(parser)
    return parsed(parser)


def main() -> None:
    arguments = parse()
    if arguments.lowercase is None:
        arguments.lowercase = arguments.tokenizer == "words"
    config = config_from(arguments)
    run_prepare(
        corpus(arguments.input, arguments.format, arguments.column), config, arguments.output, arguments.overwrite
    )


if __name__ == "__main__":
    run(main)
