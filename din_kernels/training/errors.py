"""What can stop a training run."""

from __future__ import annotations

from pathlib import Path


class Diverged(FloatingPointError):
    """The loss or the scores are no longer finite. The epoch is not saved, so the checkpoint keeps the one before."""


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged, or belongs to another model or other options."""


class Interrupted(KeyboardInterrupt):
    """Training was interrupted.

    Args:
        epoch: the epoch that was running, from 1.
        epochs: how many were asked for.
        checkpoint: the file that keeps the epochs, if one was given.
        kept: epochs that this run left in it.
    """

    def __init__(self, epoch: int, epochs: int, checkpoint: str | Path | None, kept: int):
        self.epoch, self.epochs, self.checkpoint, self.kept = epoch, epochs, checkpoint, kept
        if checkpoint is None:
            what = "nothing was kept, as no checkpoint was asked for"
        elif not kept:
            what = f"no epoch was complete, so nothing was written to {checkpoint}"
        else:
            what = f"{checkpoint} keeps {kept} complete epoch{'s' if kept > 1 else ''}"
        super().__init__(f"interrupted in epoch {epoch} of {epochs}: {what}")
