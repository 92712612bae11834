"""torchrun for this environment, put in the place of the stock one by `make setup`.

It does what the stock one does, with one difference: torchrun's own options cannot be shortened. The stock parser takes
the `--nproc` in `torchrun training/train.py --nproc 4` for a shortened `--nproc-per-node` or `--nproc_per_node`, and
stops because it is ambiguous, although everything behind the script is the script's.
"""

import sys

from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.run import get_args_parser, run


@record
def main() -> None:
    parser = get_args_parser()
    parser.allow_abbrev = False
    run(parser.parse_args())  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    sys.exit(main())
