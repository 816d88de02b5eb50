"""``python -m specbatch``."""

from specbatch.jobs.cli.app import main

if __name__ == "__main__":
    main()
