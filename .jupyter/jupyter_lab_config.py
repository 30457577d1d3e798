"""JupyterLab's settings for `make lab`: a notebook is saved without its outputs, so a run by hand leaves git clean."""

import json

from paper.pipeline.notebooks import cleared


def without_outputs(model: dict, **_) -> None:
    """Clear what is about to be saved; the outputs stay on the screen."""
    if model["type"] == "notebook":
        model["content"] = json.loads(cleared(json.dumps(model["content"])))


c.FileContentsManager.pre_save_hook = without_outputs  # noqa: F821 - Jupyter defines `c`
