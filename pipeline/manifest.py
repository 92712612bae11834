"""``python -m pipeline.manifest show|verify data/ptb``: what a dataset holds, and whether all of it is right."""

from pipeline.dataset.manifest_file import main

if __name__ == "__main__":
    main()
