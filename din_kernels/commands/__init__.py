"""The subcommands: each module has a docstring, `add_arguments(parser)` and `run(options)`, the exit status."""

from din_kernels.commands import bench, check, demo, info, train

COMMANDS = {"info": info, "check": check, "train": train, "demo": demo, "bench": bench}
