"""What params.yaml chooses by name: an entry of a table, or a function of one's own."""

import sys
from collections.abc import Callable
from importlib import import_module

from multishield.errors import UserError
from paper import paths


class ByParameter(dict):
    """A table that is looked up by a value of params.yaml, and by nothing else.

    It is said so because `pipeline.fingerprints` follows only the entries that an experiment names: a new entry, or a
    change behind another one, makes none of its stages stale. Keys are written out as texts.
    """


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
    except Exception as error:  # noqa: BLE001 - whatever one's own code does when it is imported
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{key} is {name!r}, but {module} cannot be imported ({reason}); put {module}.py into {root}, or mend it"
        ) from None
    if not callable(found):
        raise UserError(f"{key} is {name!r}, but {module} has no function {function}; correct the name")
    return found
