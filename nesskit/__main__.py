"""``python -m nesskit`` does what the command ``nesskit`` does."""

from nesskit.cli import main

if __name__ == "__main__":
    main()
