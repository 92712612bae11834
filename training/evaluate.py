"""``python -m training.evaluate runs/ptb``: how good vectors are."""

from training.vectors.evaluation import main

if __name__ == "__main__":
    main()
