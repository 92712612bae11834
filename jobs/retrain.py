"""Retrains on a growing corpus and publishes better vectors: one cycle, or one of its steps. See docs/retraining.md.

python jobs/retrain.py run --config examples/retrain-demo.yaml         all steps, in order
python jobs/retrain.py plan|prepare|train|evaluate|publish --config F  one of them; finished steps are not repeated
python jobs/retrain.py rollback --config F                             the version before the newest one
python jobs/retrain.py status --config F                               the published version, and the newest cycle

Exit codes: 0 done, or nothing is new (run); 2 an error that you can fix; 3 nothing is new (plan); 4 a gate refused the
new vectors, and the published ones stay (evaluate, run); 130 Ctrl-C; 143 SIGTERM; 129 SIGHUP, as from a
terminal that is closed; 1 any other error.
"""

import argparse
import os
import sys
from functools import cache

from jobs.children import StepError, end_on_signals
from jobs.machine import refuse_connect
from jobs.retraining.cycle_steps import evaluate, plan, prepare, publish, rollback, train
from jobs.retraining.retrain_config import RetrainConfig, read_config
from jobs.retraining.status import status
from jobs.retraining.workspace import RECORDS, Workspace
from jobs.session import build_session, run
from pipeline.shared.cli import Parser, path
from pipeline.shared.errors import tell

NOTHING_NEW, REFUSED = 3, 4


def parse() -> argparse.Namespace:
    example = "python jobs/retrain.py {} --config examples/retrain-demo.yaml"
    about = "Retrains on a growing corpus, and publishes the vectors if the gates accept them."
    parser = Parser("jobs/retrain.py", about, *map(example.format, ("run", "status")))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Command)
    for name, text in (
        ("run", "all steps in order; finished steps are not repeated"),
        ("plan", "finds what is new; exit code 3 if nothing is"),
        ("prepare", "makes a dataset of the corpus (spark-submit jobs/prepare.py)"),
        ("train", "trains vectors, starting from the published ones (training/train.py)"),
        ("evaluate", "aligns them with the published ones and evaluates the gates; exit code 4 if one refuses"),
        ("publish", "publishes them"),
        ("rollback", "publishes an earlier version again"),
        ("status", "shows the published version and the newest cycle"),
    ):
        about = f"{text[0].upper()}{text[1:]}."
        command = commands.add_parser(name, help=text, description=about, example=example.format(name))
        command.add_argument(
            "--config", type=path, required=True, metavar="FILE", help="the settings, a YAML file: docs/retraining.md"
        )
        if name == "rollback":
            command.add_argument("--to", metavar="VERSION", help="such as 000003 (default: the one before the newest)")
    return parser.parse_args()


class _Command(Parser):
    """The parser of a subcommand. It ignores further settings that newer versions of argparse pass, such as colour."""

    def __init__(self, prog: str, description: str, example: str, **_: object):
        super().__init__(prog, description, example)


def main() -> None:
    arguments = parse()
    end_on_signals()
    if arguments.command in ("run", "plan", "prepare"):
        refuse_connect(os.environ)
    config = read_config(arguments.config)
    workspace = Workspace(config.workspace)
    if arguments.command == "status":
        print(status(config, workspace))
        return
    try:
        with workspace.lock() as lock:
            if arguments.command == "rollback":
                rollback(config, workspace, arguments.to)
                return
            steps = RECORDS if arguments.command == "run" else (arguments.command,)
            for step in steps:
                if code := take(step, config, workspace, lock):
                    sys.exit(0 if code == NOTHING_NEW and arguments.command == "run" else code)
    except StepError as error:
        tell(f"error: {error}")
        sys.exit(1)


def take(step: str, config: RetrainConfig, workspace: Workspace, lock: int | None) -> int:
    """Runs one step; returns its exit code."""
    session = cache(lambda: build_session(f"shardvec: {config.name}"))  # only a remote corpus needs Spark here
    try:
        if step == "plan":
            return 0 if plan(config, workspace, session) else NOTHING_NEW
        if step == "prepare":
            prepare(config, workspace, lock, session)
        elif step == "train":
            train(config, workspace, lock)
        elif step == "evaluate":
            return 0 if evaluate(config, workspace) else REFUSED
        else:
            publish(config, workspace)
        return 0
    finally:
        if session.cache_info().currsize:
            session().stop()


if __name__ == "__main__":
    run(main)
