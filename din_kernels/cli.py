"""The console script `din-kernels`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from din_kernels import __version__
from din_kernels.commands import COMMANDS


def parser() -> argparse.ArgumentParser:
    """The command line, one subcommand per module of `din_kernels.commands`."""
    made = argparse.ArgumentParser(prog="din-kernels", description="Fused kernels for Deep Interest Network.")
    made.add_argument("--version", action="version", version=f"din-kernels {__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or name).strip().splitlines()[0]
        each = commands.add_parser(
            name, help=summary, description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_arguments(each)
        each.set_defaults(run=command.run)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns its exit status. What the user got wrong is one line on stderr and status 2."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and type(error) is RuntimeError:
            raise
        print(f"din-kernels {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
