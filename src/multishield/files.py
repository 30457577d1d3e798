"""Files that are never half-written."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from multishield.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary neighbour of `path`, then rename it: a killed run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # the user's umask, which safetensors does not look at
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())  # or a power cut may keep the new name and lose what it holds
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text with Unix line ends, atomically."""
    return write_atomically(path, lambda p: p.write_bytes(text.encode()))


def write_json(path: Path, value) -> Path:
    """Write JSON, indented, keys in the given order, atomically."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path):
    """Read JSON.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise missing(path, "a JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {mend(path, 'a JSON file')}") from None


def missing(path: Path, wanted: str) -> UserError:
    """The error for a file that is not there."""
    return UserError(f"{path} does not exist; {mend(path, wanted)}")


def mend(path: Path, wanted: str) -> str:
    """What to do about a file that cannot be used: one of a stage's is made by that stage."""
    parts = path.parts
    if "artifacts" in parts[:-2]:
        stage = parts[parts.index("artifacts") + 1]
        return f"the stage {stage} makes it: remove what is there and run `make reproduce`"
    return f"give the path of {wanted}"
