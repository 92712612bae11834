"""Shows a dataset's counts and settings, or verifies all of its files.

python -m pipeline.manifest show data/ptb       counts and settings, from the manifest alone
python -m pipeline.manifest verify s3://b/ptb   reads every file and prints each fault
"""

import sys
from dataclasses import asdict

from pipeline.dataset.manifest_file import Manifest
from pipeline.dataset.verify import problems
from pipeline.shared.cli import Parser, command
from pipeline.shared.errors import tell


def main(argv: list[str] | None = None) -> None:
    """``show`` or ``verify`` a dataset. Exits with 2 after printing a line for each fault."""
    parser = Parser(
        "python -m pipeline.manifest",
        "Shows what a dataset holds, or reads and checks all of it.",
        "python -m pipeline.manifest show data/ptb",
        "python -m pipeline.manifest verify s3://bucket/words",
    )
    parser.add_argument("command", choices=("show", "verify"), help="show reads the manifest only, verify every byte")
    parser.add_argument("dataset", help="a folder or URI with manifest.json")
    with command():
        arguments = parser.parse_args(argv)
        manifest = Manifest.load(arguments.dataset)
        print(manifest)
        print(f"{arguments.dataset}: dataset {manifest.dataset_id}")
        if arguments.command == "show":
            print("\n".join(f"{name} {value}" for name, value in asdict(manifest.config).items()))
            return
        found = 0
        for problem in problems(arguments.dataset, manifest):
            found += 1
            tell(f"error: {problem}")
        if found:
            sys.exit(2)
        print(f"{arguments.dataset}: every digest and count is right")


if __name__ == "__main__":
    main()
