"""The `anyloop` program. This package stays light to import: a command imports what it needs when it runs."""


def main() -> None:
    """Entry point of the console script."""
    from anyloop.cli.app import run

    run()
