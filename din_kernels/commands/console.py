"""Where the subcommands print."""

from rich.console import Console


def wide_console() -> Console:
    """A console at least 120 columns wide: a long table may wrap in a narrow terminal, but no number is cut."""
    console = Console()
    console.width = max(console.width, 120)
    return console
