"""Presets of profiles/: one of them becomes the active params.yaml."""

import io
import os
import re
from pathlib import Path

from ruamel.yaml import YAML

from multishield.errors import UserError
from multishield.files import write_text
from paper import paths
from paper.params import DEFAULTS, Params, read_yaml

# ${NAME} or ${NAME:-a path of the project}: a folder of this machine.
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]+))?\}")
# It changes neither comments nor line breaks, and writes null as a word.
_YAML = YAML()
_YAML.preserve_quotes, _YAML.width = True, 2**20
_YAML.representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))


def use_profile(name: str) -> None:
    """Make a profile the active `params.yaml`. One that no profile made is saved as `params.backup.yaml` first."""
    text, target, last = profile_text(name), paths.root() / "params.yaml", paths.state("profile.yaml")
    old = paths.text_of(target, "save it as UTF-8")
    # A copy of the text that a profile wrote last tells the user's edits from it.
    if old not in (text, profile_text("demo"), last.read_text(encoding="utf-8") if last.is_file() else text):
        print(f"your params.yaml is saved as {_save(old).name}")
    write_text(target, text)
    write_text(last, text)


def profile_text(name: str) -> str:
    """The complete params.yaml of a profile: the commented defaults, with the keys of the profile laid over them.

    Raises UserError if the profile is unknown or not valid, or if an environment variable that it needs is not set.
    """
    values = _merged(name)
    _fill(values, name)
    Params.parse(values, f"profiles/{name}.yaml")
    for unused in set(values["training"]) - set(values["classifiers"]):
        del values["training"][unused]
    stream = io.StringIO()
    _YAML.dump(values, stream)
    head = re.match(r"(#.*\n)*", _file(name).read_text(encoding="utf-8"))[0]
    lines = [line for line in stream.getvalue().splitlines() if line.strip()]
    return head + "".join(("\n" if re.match(r"\w", line) else "") + line + "\n" for line in lines)


def _file(name: str) -> Path:
    names = {p.stem: p for p in sorted((paths.root() / "profiles").glob("*.yaml"))}
    if name not in names:
        raise UserError(f"the profile is {name!r}; accepted are {', '.join(names)}")
    return names[name]


def _merged(name: str) -> dict:
    """The values of a profile, laid over those of its `base`, or else over the defaults."""
    changes = read_yaml(_file(name), _YAML) or {}
    if not isinstance(changes, dict):
        raise UserError(f"profiles/{name}.yaml must hold keys of params.yaml; see profiles/cifar10.yaml")
    base = changes.pop("base", None)
    values = _merged(base) if base else read_yaml(DEFAULTS, _YAML)
    _lay_over(values, changes)
    return values


def _lay_over(values: dict, changes: dict) -> None:
    """Set the keys of `changes`, in place. A section that names its `source` replaces the whole section."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict) and "source" not in value:
            _lay_over(values[key], value)
        else:
            values[key] = value


def _fill(values: dict, name: str) -> None:
    """Replace variables by the paths that the environment holds, or by their fallbacks, in place; a key per line."""
    for key, value in values.items():
        if isinstance(value, dict):
            value.fa.set_block_style()
            _fill(value, name)
        elif isinstance(value, str) and (match := _VARIABLE.search(value)):
            variable, fallback = match.groups()
            folder = os.environ.get(variable)
            if not folder and not fallback:
                given = f"the profile {name} takes paths from environment variables, and {variable} is not set"
                raise UserError(f"{given}; run `{variable}=/path make reproduce PROFILE={name}`, see its first lines")
            values[key] = value.replace(match[0], os.path.abspath(folder) if folder else fallback)


def _save(text: str) -> Path:
    """Write the text to the first name that is free, or that holds it already."""
    names = ("params.backup.yaml", *(f"params.backup.{number}.yaml" for number in range(2, 1000)))
    files = map(paths.root().joinpath, names)
    return write_text(next(f for f in files if not f.exists() or f.read_text(encoding="utf-8") == text), text)
