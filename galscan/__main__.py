"""``python -m galscan``: the same as the command ``galscan``."""

from galscan.cli.main import main

if __name__ == "__main__":
    main()
