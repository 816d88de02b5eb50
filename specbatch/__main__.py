"""``python -m specbatch``."""

from specbatch.jobs.cli import main

if __name__ == "__main__":
    main()
