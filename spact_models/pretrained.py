"""torchvision's Kinetics and ImageNet weights into f_T and f_B, with an account of what arrived and what did not.

Names are compared, then shapes. With group norm the affine weights of batch norm are taken over and its running
statistics are left behind; the first steps of training then settle the scale.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from spact_models.errors import UserError

# Our name -> torchvision's name and the edition of its weights.
HUB_WEIGHTS = {
    "r3d18": ("r3d_18", "KINETICS400_V1"),
    "r2plus1d18": ("r2plus1d_18", "KINETICS400_V1"),
    "mc318": ("mc3_18", "KINETICS400_V1"),
    "resnet18": ("resnet18", "IMAGENET1K_V1"),
    "resnet50": ("resnet50", "IMAGENET1K_V2"),
}
RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
WRAPPERS = ("state_dict", "model_state_dict", "model")  # how training scripts commonly wrap a state dict


@dataclass(frozen=True)
class LoadReport:
    """Names of the tensors that arrived, and of those that did not with the reason. `str` is meant for a log."""

    loaded: tuple[str, ...]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        names_by_reason: dict[str, list[str]] = defaultdict(list)
        for name, reason in self.skipped.items():
            names_by_reason[reason].append(name)
        lines = [f"{len(self.loaded)} tensors loaded, {len(self.skipped)} not"]
        for reason, names in names_by_reason.items():
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            lines.append(f"  {shown}: {reason}")
        return "\n".join(lines)


def load_pretrained(network: nn.Module, name: str, source: Path | str) -> LoadReport:
    """Fill `network` (an action network, or the trunk of a privacy network) from published weights, in place.

    Args:
        name: the network's name ("r3d18", "resnet50", …): which weights "hub" means, and what errors call it.
        source: a local .pth or .safetensors file holding a state dict, or "hub" for torchvision's download.
    Raises UserError for a file that is missing or holds no weights, for weights of another network altogether, and
    for a hub that has no such weights or cannot be reached.
    """
    state = _from_hub(name) if str(source) == "hub" else _from_file(Path(source))
    trunk = getattr(network, "trunk", network)
    assert isinstance(trunk, nn.Module)
    prefix = "trunk." if trunk is not network else ""
    arriving, skipped = _match(trunk.state_dict(), state)
    if not any(tensor.dim() > 1 for tensor in arriving.values()):  # norms and counters of any network would fit
        raise UserError(f'pretrained = "{source}", holds no layer of {name}; name the weights of {name}')
    trunk.load_state_dict(arriving, strict=False)
    skipped = {prefix + key: reason for key, reason in skipped.items()}
    heads = [key for key in network.state_dict() if not key.startswith(prefix)]
    skipped |= dict.fromkeys(heads, "behind the trunk: keeps its start")
    return LoadReport(tuple(prefix + key for key in arriving), skipped)


def _match(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors whose name and shape agree, and the reason for every other on either side."""
    arriving: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    for key, tensor in state.items():
        if key in own and own[key].shape == tensor.shape:
            arriving[key] = tensor
        elif key in own:
            head = ", another set of classes" if key.startswith("fc.") else ""
            skipped[key] = f"{_shape(tensor)} in the weights, {_shape(own[key])} in the network{head}"
        elif key.rsplit(".", 1)[-1] in RUNNING_STATISTICS:
            skipped[key] = "running statistics of batch norm, which group norm does not keep"
        elif key.startswith("fc."):
            skipped[key] = "classes of the weights' own task, the trunk has no such head"
        else:
            skipped[key] = "the network has no such layer"
    skipped |= dict.fromkeys(own.keys() - state.keys(), "not in the weights: keeps its start")
    return arriving, skipped


def _shape(tensor: Tensor) -> str:
    return "×".join(str(length) for length in tensor.shape) or "scalar"


def _from_hub(name: str) -> Mapping[str, Tensor]:
    if name not in HUB_WEIGHTS:
        known = ", ".join(HUB_WEIGHTS)
        raise UserError(f'pretrained = "hub" for {name}, torchvision has none; name a file or take one of {known}')
    model, edition = HUB_WEIGHTS[name]
    import torchvision.models  # here, because it loads readers of pictures, and the server must have none

    weights: Any = torchvision.models.get_model_weights(model)[edition]
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, a refused connection, a broken download
        raise UserError(
            f'pretrained = "hub" for {name}, {weights.url} could not be fetched ({error}); '
            "download it on a machine with internet and name the local file"
        ) from error
    return state


def _from_file(path: Path) -> Mapping[str, Tensor]:
    """A state dict from disk, without running any code the file may hold."""
    remedy = "name a .pth or .safetensors file that holds a state dict, as torchvision publishes them"
    if not path.is_file():
        raise UserError(f'pretrained = "{path}", no such file; {remedy}, or "hub" to download')
    try:
        if path.suffix == ".safetensors":
            content: object = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(f'pretrained = "{path}", is not a file of weights; {remedy}') from error
    except (EOFError, RuntimeError, ValueError, OSError) as error:  # truncated, foreign or unreadable
        raise UserError(f'pretrained = "{path}", could not be read as weights ({error}); {remedy}') from error
    return _state_dict(content, path, remedy)


def _state_dict(content: object, path: Path, remedy: str) -> Mapping[str, Tensor]:
    """The mapping of names to tensors inside what was read, out of the usual wrappings."""
    if isinstance(content, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    if not isinstance(content, Mapping):
        raise UserError(f'pretrained = "{path}", holds a {type(content).__name__} and no state dict; {remedy}')
    # DataParallel puts "module." before every name.
    state = {str(name).removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f'pretrained = "{path}", holds no tensors; {remedy}')
    return state
