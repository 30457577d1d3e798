"""Files, paths, checkpoints, progress and the one error that users see."""
