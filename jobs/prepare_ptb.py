"""Makes a dataset of the Penn Treebank, with the book's settings.

spark-submit jobs/prepare_ptb.py
spark-submit jobs/prepare_ptb.py --input ptb.train.txt --output data/ptb --epochs 5
"""

from pathlib import Path

from jobs.session import OUTPUT, add_common_flags, config_from, parsed, run, run_prepare
from pipeline.shared.cli import Parser, path, uri
from pipeline.text.ptb import PTB_FILE, ptb

CACHE = Path("data/cache") / PTB_FILE


def main() -> None:
    parser = Parser(
        "jobs/prepare_ptb.py",
        "Makes a dataset of the Penn Treebank (or any text), with the book's settings.",
        "spark-submit jobs/prepare_ptb.py",
        "spark-submit jobs/prepare_ptb.py --input ptb.train.txt --epochs 5",
    )
    parser.add_argument(
        "--input", type=path, help=f"a text file or a folder of them (default: {CACHE}, or a download to it)"
    )
    parser.add_argument("--output", type=uri, default="data/ptb", help=OUTPUT)
    add_common_flags(parser, "tokenizer", "lowercase")
    arguments = parsed(parser)
    config = config_from(arguments)  # checked before PTB is downloaded
    run_prepare(ptb(arguments.input, CACHE), config, arguments.output, arguments.overwrite)


if __name__ == "__main__":
    run(main)
