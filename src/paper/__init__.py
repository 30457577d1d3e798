"""The reproduction of the paper: a DVC pipeline of notebooks on top of the library `multishield`."""

import gc
import os
import sys
import warnings
from importlib import import_module

from multishield.progress import PROGRESS


def stage(name: str, item: str | None = None):
    """A stage as its notebook uses it: parameters, images, models, threat model and folder (see `paper.stages.base`).

    The name is that of its module in `paper.stages`; the item is the classifier, or the study, of this run. A notebook
    that is run by hand computes as the pipeline does, and writes to a folder beside the pipeline's results.
    """
    if PROGRESS not in os.environ:  # only the kernel of a stage has it
        _by_hand(name)
    gc.disable()  # thousands of modules are loaded: what they hold is not looked through each time
    made = import_module(f"paper.stages.{name}").Stage(name, item)
    gc.freeze()
    gc.enable()
    return made


def _by_hand(name: str) -> None:
    from paper import paths
    from paper.params import Params
    from paper.pipeline import arithmetic

    before, paths.by_hand = dict(os.environ), name
    arithmetic.choose(Params.load().arithmetic)
    if os.environ != before and {"numpy", "torch"} & sys.modules.keys():
        warnings.warn("this kernel's arithmetic is not the pipeline's; restart it and call `stage` first", stacklevel=3)
    print(f"Run by hand: results go to {paths.artifacts(name)}, and the pipeline's stay as they are.")
