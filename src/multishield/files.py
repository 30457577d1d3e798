"""Files that are never half-written: text, JSON, and named tensors as safetensors."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from multishield.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary neighbour of `path`, then rename it: a killed run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # the user's umask, which safetensors ignores
        write(temporary)
        temporary.chmod(mode)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())  # or a power cut may keep the new name and lose the content
        os.replace(temporary, path)
    except SafetensorError as error:  # its words for a full disk
        raise OSError(None, str(error), str(path)) from None
    except OSError as error:
        if error.errno:  # a full disk has no name
            error.filename = error.filename or str(path)
        raise
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
    """Read JSON. Raises UserError if the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise missing(path, "a JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); {how_to_fix(path, 'a JSON file')}") from None


def missing(path: Path, wanted: str) -> UserError:
    """The error for a file that is not there."""
    return UserError(f"{path} does not exist; {how_to_fix(path, wanted)}")


def how_to_fix(path: Path, wanted: str) -> str:
    """The remedy for a file that cannot be used: a stage of the pipeline makes the files under artifacts/."""
    if "artifacts" not in path.parts[:-2]:
        return f"give the path of {wanted}"
    stage = path.parts[path.parts.index("artifacts") + 1]
    return f"the stage {stage} makes it: remove the file and run `make reproduce`"


def save_tensors(path: Path, tensors: dict) -> Path:
    """Write named tensors as safetensors, atomically."""
    from safetensors.torch import save_file  # torch is slow to import; commands that read JSON do without

    own, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        # Safetensors takes no views and no shared memory. Only those are copied, because splits are large.
        whole = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in storages
        storages.add(storage.data_ptr())
        own[name] = tensor if whole else tensor.clone()
    return write_atomically(path, lambda p: save_file(own, p))


def load_tensors(path: Path) -> dict:
    """Read a safetensors file into tensors by name. Raises UserError if it is missing or is not safetensors."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise missing(path, "a .safetensors file")
    try:
        return load_file(path)
    except PermissionError:
        raise UserError(f"{path} may not be read by this user; change its permissions") from None
    except SafetensorError as error:
        raise UserError(
            f"{path} is no valid safetensors file ({error}), and pickled checkpoints (.pt, .pth), which can run any "
            f"code, are not accepted; {how_to_fix(path, 'a file of safetensors.torch.save_file(state_dict, path)')}"
        ) from None
