"""Presets of profiles/: one of them becomes the active params.yaml."""

import json
import os
import re
from pathlib import Path

from multishield.errors import UserError
from multishield.files import write_text
from paper import paths
from paper.params import Params, parse_yaml, read_yaml

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
    text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
    unset = [name for name, fallback in _VARIABLE.findall(text) if not os.environ.get(name) and not fallback]
    if unset:
        raise UserError(
            f"the profile {name} takes paths from environment variables, and {unset[0]} is not set; "
            f"run `{unset[0]}=/path make reproduce PROFILE={name}`; profiles/{name}.yaml says what it names"
        )
    text = "".join(_filled(line) for line in text.splitlines(keepends=True))
    target = paths.root() / "params.yaml"
    old = target.read_text(encoding="utf-8")
    if text == old:
        return
    candidate = write_text(paths.state("params.candidate.yaml"), text)
    Params.parse(read_yaml(candidate), f"profiles/{name}.yaml")
    candidate.unlink()
    if not any(_filled_in((folder / f"{n}.yaml").read_text(encoding="utf-8"), old) for n in names):
        print(f"your params.yaml was kept as {_keep(old).name}")
    write_text(target, text)


def _filled(line: str) -> str:
    """A line with its variables filled in; quoted where YAML would read the path as something else."""
    if line.lstrip().startswith("#") or not _VARIABLE.search(line):
        return line
    key, value, rest = re.fullmatch(r"(\s*[\w-]+: )(\S+)(.*\n?)", line, re.DOTALL).groups()
    value = _VARIABLE.sub(lambda m: os.path.abspath(os.environ[m[1]]) if os.environ.get(m[1]) else m[2][2:], value)
    try:
        plain = parse_yaml(f"value: {value}", "a path") == {"value": value}
    except UserError:
        plain = False
    return key + (value if plain else json.dumps(value, ensure_ascii=False)) + rest


def _filled_in(profile: str, text: str) -> bool:
    """Whether a text is a profile's, whatever its variables were when it was made."""
    fixed = re.sub(rf"(?m)(?<=: )\S*{_VARIABLE.pattern}\S*", "\0", profile).split("\0")
    return re.fullmatch(".+".join(re.escape(part) for part in fixed), text) is not None


def _keep(text: str) -> Path:
    """Write the text to the first name that is free, or that holds it already."""
    path, number = paths.root() / "params.backup.yaml", 1
    while path.exists() and path.read_text(encoding="utf-8") != text:
        number += 1
        path = path.with_name(f"params.backup.{number}.yaml")
    return write_text(path, text)
