"""Extensions: a data set, a classifier or a CLIP from a function of one's own, named in params.yaml."""

import sys
from collections.abc import Callable
from importlib import import_module

from multishield.storage import paths
from multishield.storage.errors import UserError


def load_factory(key: str, name: str) -> Callable:
    """The function that `name` ("module:function") names; modules of the project's root are found.

    Args:
        key: the key of params.yaml that holds the name, for the message.

    Raises:
        UserError: there is no such module, it cannot be imported, or it has no such function.
    """
    module, _, function = name.partition(":")
    root = str(paths.root())
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        found = getattr(import_module(module), function, None)
    except ImportError as error:
        raise UserError(
            f"{key} is {name!r}, but {module} cannot be imported ({error}); put {module}.py into {root}, or install it"
        ) from None
    if not callable(found):
        raise UserError(f"{key} is {name!r}, but {module} has no function {function}; correct the name")
    return found
