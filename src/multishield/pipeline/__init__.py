"""The pipeline around it: the runner of stages, the command line, predictions."""
