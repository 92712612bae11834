"""``python -m training.report runs/ptb``: writes a run's report page."""

from training.runs.report_page import main

if __name__ == "__main__":
    main()
