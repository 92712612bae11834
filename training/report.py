"""``python -m training.report runs/ptb``: a run on one page."""

from training.runs.report_page import main

if __name__ == "__main__":
    main()
