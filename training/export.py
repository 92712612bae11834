"""``python -m training.export runs/ptb``: word vectors in files for other programs."""

from training.vectors.export_formats import main

if __name__ == "__main__":
    main()
