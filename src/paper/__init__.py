"""The reproduction of the paper: a DVC pipeline of notebooks on top of the library `multishield`."""

from importlib import import_module


def stage(name: str, item: str | None = None):
    """A stage as its notebook uses it: parameters, images, models, threat model and folder (see `paper.stages.base`).

    The name is that of its module in `paper.stages`; the item is the classifier, or the study, of this run.
    """
    return import_module(f"paper.stages.{name}").Stage(name, item)
