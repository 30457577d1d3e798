"""Presets of profiles/: one of them becomes the active params.yaml."""

import os
import re
from pathlib import Path

from multishield.params import Params, read_yaml
from multishield.storage import paths
from multishield.storage.errors import UserError
from multishield.storage.files import write_text

# ${NAME} or ${NAME:-a path of the project}: where files are, on this machine.
_VARIABLE = re.compile(r"\$\{(\w+)(:-[^}]+)?\}")


def use_profile(name: str) -> None:
    """Copy `profiles/<name>.yaml` to `params.yaml`, with environment variables (or what stands for them) filled in.

    A params.yaml that no profile made is kept as `params.backup.yaml`, or with a number if that name is taken.

    Raises:
        UserError: unknown profile, a variable that is not set, or a profile that is not valid.
    """
    folder = paths.root() / "profiles"
    names = sorted(p.stem for p in folder.glob("*.yaml"))
    if name not in names:
        raise UserError(f"the profile is {name!r}; accepted are {', '.join(names)}")
    text = (folder / f"{name}.yaml").read_text()
    unset = [name for name, fallback in _VARIABLE.findall(text) if not os.environ.get(name) and not fallback]
    if unset:
        raise UserError(
            f"the profile {name} takes paths from environment variables, and {unset[0]} is not set; "
            f"run `{unset[0]}=/path make reproduce PROFILE={name}`; profiles/{name}.yaml says what it names"
        )
    text = _VARIABLE.sub(lambda m: os.path.abspath(os.environ[m[1]]) if os.environ.get(m[1]) else m[2][2:], text)
    target = paths.root() / "params.yaml"
    old = target.read_text()
    if text == old:
        return
    candidate = write_text(paths.state("params.candidate.yaml"), text)
    Params.parse(read_yaml(candidate), f"profiles/{name}.yaml")
    candidate.unlink()
    if not any(_filled_in((folder / f"{n}.yaml").read_text(), old) for n in names):
        print(f"your params.yaml was kept as {_keep(old).name}")
    write_text(target, text)


def _filled_in(profile: str, text: str) -> bool:
    """Whether a text is a profile's, whatever its variables were when it was made."""
    fixed = _VARIABLE.sub("\0", profile).split("\0")
    return re.fullmatch(".+".join(re.escape(part) for part in fixed), text) is not None


def _keep(text: str) -> Path:
    """Write the text to the first name that is free, or that holds it already."""
    path, number = paths.root() / "params.backup.yaml", 1
    while path.exists() and path.read_text() != text:
        number += 1
        path = path.with_name(f"params.backup.{number}.yaml")
    return write_text(path, text)
