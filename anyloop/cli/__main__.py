"""`python -m anyloop.cli`, for places without the console script on the path."""

from anyloop.cli import main

if __name__ == "__main__":
    main()
