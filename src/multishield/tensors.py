"""Named tensors as safetensors, and fingerprints of what a computation depends on."""

import hashlib
import json
import math
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from multishield.errors import UserError
from multishield.files import mend, missing, write_atomically
from paper import paths

# Bytes of a tensor that memory is asked to hold.
IN_MEMORY = 2**30


def roomy(*shape: int) -> torch.Tensor:
    """A tensor of bytes to be filled; a large one lies in a file without a name, which goes when the tensor goes."""
    size = math.prod(shape)
    if size <= IN_MEMORY:
        return torch.empty(shape, dtype=torch.uint8)
    folder = paths.state()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        return torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8).view(shape)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write named tensors as safetensors, atomically."""
    own, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        # Safetensors takes no views and no shared memory; a copy only of those, because splits are large.
        whole = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        own[name] = tensor if whole else tensor.clone()
    return write_atomically(path, lambda p: save_file(own, p))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file. Pickles are refused: loading one can run any code.

    Raises:
        UserError: the file is missing or is not safetensors.
    """
    if not path.is_file():
        raise missing(path, "a .safetensors file")
    try:
        return load_file(path)
    except PermissionError:
        raise UserError(f"{path} may not be read by this user; change its permissions") from None
    except SafetensorError as error:
        if "artifacts" in path.parts:
            raise UserError(f"{path} is damaged ({error}); {mend(path, '')}") from None
        raise UserError(
            f"{path} is not a safetensors file ({error}); pickled checkpoints (.pt, .pth) are not accepted because "
            "loading one can run any code: convert it once with safetensors.torch.save_file(state_dict, path)"
        ) from None


def fingerprint(*parts) -> str:
    """SHA-256 over tensors, modules (their state), and JSON values: 16 hex digits that name a computation."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.nn.Module):
            part = dict(sorted(part.state_dict().items()))
        if isinstance(part, dict) and all(isinstance(v, torch.Tensor) for v in part.values()):
            for name, tensor in part.items():
                digest.update(name.encode())
                digest.update(fingerprint(tensor).encode())
        elif isinstance(part, torch.Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            # A view, not a copy: splits on disk are larger than memory.
            digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]
