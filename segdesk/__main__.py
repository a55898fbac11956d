"""``python -m segdesk``: the same as the command ``segdesk``."""

from segdesk.cli import main

if __name__ == "__main__":
    main()
