"""The console script `din-kernels`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch

from din_kernels import __version__
from din_kernels.backends import BackendError
from din_kernels.commands import COMMANDS
from din_kernels.training.errors import Diverged

MISTAKE = 2  # exit status of what the user can put right
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Parser(argparse.ArgumentParser):
    """A parser that tells a mistake in one line, as every other error of the command line is told."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"{self.prog}: {message} (--help lists the options)\n")


def parser() -> argparse.ArgumentParser:
    """The command line, one subcommand per module of `din_kernels.commands`."""
    made = Parser(prog="din-kernels", description="Fused kernels for Deep Interest Network.")
    made.add_argument("--version", action="version", version=f"din-kernels {__version__}")
    commands = made.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        summary = (command.__doc__ or "").strip().partition("\n")[0]
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
        status = options.run(options)
        sys.stdout.flush()
    except (ValueError, OSError, BackendError, Diverged, MemoryError, torch.OutOfMemoryError) as error:
        _abandon_output()
        _tell(options.command, _line(error))
        return MISTAKE
    except KeyboardInterrupt as stop:
        _tell(options.command, str(stop) or "interrupted: nothing was kept")
        return INTERRUPTED
    return status


def _tell(command: str, line: str) -> None:
    print(f"din-kernels {command}: {line}", file=sys.stderr)


def _line(error: BaseException) -> str:
    """An error in one line; of an OSError the path and the reason, without its number."""
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or ("out of memory" if isinstance(error, MemoryError) else repr(error))


def _abandon_output() -> None:
    """Sends what stdout still holds nowhere if it cannot be written, so that Python's end does not try it again."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
