"""``python -m partikel``: the command line, as launchers of several processes start it."""

from partikel.app.cli import main

if __name__ == "__main__":
    main()
