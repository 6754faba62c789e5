"""Backbones as folders of transformers or timm, and the proof that they hold what the run had."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForTextEncoding, PreTrainedModel

from runner.backbones.base import Backbone
from runner.backbones.hrnet import HRNetTrunk
from runner.backbones.pretrained import quiet
from runner.backbones.timm_checkpoints import read_weights
from runner.specs import InputSpec

TOLERANCE = 1e-4
"""Largest difference, relative to the largest output, at which two forward passes count as equal."""


@dataclass
class Trunk:
    """One backbone of a model, and where it went.

    Attributes:
        name: of the backbone in the run's model, such as "backbone" or "backbones.depth".
        folder: relative to the exported folder; None where transformers cannot hold it.
        auto, arguments: the call that loads it: `transformers.<auto>.from_pretrained(folder, **arguments)`.
        library: "timm" where that loads it instead: `timm.create_model("local-dir:" + folder, pretrained=True)`.
        kind: its class in transformers, its architecture in timm.
        size: what `backbone.size` stands for, of networks of runner's own whose checkpoints say it.
        difference: largest difference between the run's outputs and those of the loaded model, relative to the largest
            output; None where they cannot be compared.
        problem: why transformers cannot load it, or gives other features; empty where all is well.
    """

    name: str
    folder: str | None = None
    auto: str = "AutoModel"
    arguments: dict[str, Any] = field(default_factory=dict)
    library: str = "transformers"
    kind: str = ""
    size: str | None = None
    difference: float | None = None
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        """For export.json."""
        return asdict(self)

    def call(self, place: str) -> str:
        """The Python expression that loads it from the folder `place`."""
        if self.library == "timm":
            return f'timm.create_model("local-dir:{place}", pretrained=True)'
        return f'{self.auto}.from_pretrained("{place}"{"".join(f", {k}={v}" for k, v in self.arguments.items())})'


def find_backbones(model: nn.Module) -> dict[str, Backbone]:
    """Name → backbone, for every backbone of a model; one inside another is a part of that."""
    found: dict[str, Backbone] = {}
    for name, module in model.named_modules():
        if isinstance(module, Backbone) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def write_trunks(model: nn.Module, inputs: InputSpec, folder: Path) -> list[Trunk]:
    """Write every backbone that transformers or timm has, load it again and compare; the others are named."""
    backbones = find_backbones(model)
    trunks = []
    for name, backbone in backbones.items():
        place = "." if len(backbones) == 1 else f"backbones/{name.rpartition('.')[2]}"
        trunks.append(_write(name, backbone, inputs, folder, place))
    return trunks


def _write(name: str, backbone: Backbone, inputs: InputSpec, folder: Path, place: str) -> Trunk:
    trunk = getattr(backbone, "trunk", None)
    if isinstance(trunk, HRNetTrunk):
        return _write_hrnet(name, trunk, folder, place)
    if not isinstance(trunk, PreTrainedModel):
        return Trunk(name, problem=f"{type(backbone).__name__} is a network of runner's own, not one of transformers")
    found = Trunk(name, place, kind=type(trunk).__name__)
    autos = (auto.__name__ for auto in (AutoModel, AutoModelForTextEncoding) if _made_by(auto, trunk))
    found.auto = next(autos, type(trunk).__name__)  # its own class where no auto class makes it
    if not hasattr(transformers, found.auto):
        return Trunk(name, problem=f"transformers has no {found.auto}")
    if "add_pooling_layer" in inspect.signature(type(trunk).__init__).parameters and trunk.pooler is None:
        found.arguments = {"add_pooling_layer": False}
    state = trunk_state(trunk)
    expected = _expected_shapes(trunk, found)
    if strange := sorted(set(state) ^ set(expected)) or sorted(k for k in state if state[k].shape != expected[k]):
        words = ", ".join(strange[:3]) + (f", … ({len(strange)} in all)" if len(strange) > 3 else "")
        return Trunk(name, problem=f"its tensors are not those of a {type(trunk).__name__}: {words}")
    with quiet():
        trunk.save_pretrained(folder / place, state_dict=state)
    found.difference = _difference(trunk, inputs, folder, found)
    if found.difference is None or not found.difference <= TOLERANCE:
        found.problem = (
            f"the backbone's settings change how a {type(trunk).__name__} computes: from the same weights "
            f"transformers gives {_how_far(found.difference)}"
        )
    return found


def _write_hrnet(name: str, trunk: HRNetTrunk, folder: Path, place: str) -> Trunk:
    found = Trunk(name, kind=trunk.architecture, library="timm", size=trunk.size)
    if trunk.size == "tiny":
        found.problem = "timm has no HRNet of size tiny"
    elif not trunk.complete():
        found.problem = f"its tensors are not those of a {trunk.architecture}: other norms, or not all levels were read"
    if found.problem:
        return found
    found.folder = place
    trunk.save_pretrained(folder / place)
    plain = HRNetTrunk(trunk.size)  # computes as timm does
    plain.load_state_dict(read_weights(folder / place))
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with _evaluating(trunk), torch.inference_mode():
        both = list(zip(trunk(pixels), plain.eval()(pixels), strict=True))
    found.difference = max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in both)
    if not found.difference <= TOLERANCE:
        found.problem = (
            f"the backbone's settings change how a {trunk.architecture} computes: from the same weights timm gives "
            f"{_how_far(found.difference)}"
        )
    return found


def _how_far(difference: float | None) -> str:
    if difference is None:
        return "features of another size"
    return f"features that differ by {difference:.2g} of the largest"


def _made_by(auto: Any, trunk: PreTrainedModel) -> bool:
    mapping = auto._model_mapping
    return type(trunk.config) in mapping and mapping[type(trunk.config)] is type(trunk)


def trunk_state(trunk: PreTrainedModel) -> dict[str, Tensor]:
    """The trunk's tensors by the names that transformers gives them; nothing is shared with the trunk."""
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in trunk.state_dict().items()}
    if trunk.config.model_type == "t5" and "shared.weight" not in state:  # the backbone keeps one of the two names
        state["shared.weight"] = state["encoder.embed_tokens.weight"].clone()
    return state


def _expected_shapes(trunk: PreTrainedModel, found: Trunk) -> dict[str, torch.Size]:
    """What a fresh model of the same configuration holds, without giving it memory."""
    cls = getattr(transformers, found.auto)
    make = getattr(cls, "from_config", None) or cls._from_config  # of an auto class, of a model
    with torch.device("meta"):
        fresh = make(trunk.config, **found.arguments)
    return {name: tensor.shape for name, tensor in fresh.state_dict().items()}


def read_trunk(folder: Path, found: Trunk) -> dict[str, Tensor]:
    """The weights of a written backbone by their names in its trunk."""
    assert found.folder is not None
    return read_weights(folder / found.folder) if found.library == "timm" else load_trunk(folder, found).state_dict()


def load_trunk(folder: Path, found: Trunk) -> PreTrainedModel:
    """Load a backbone of transformers as the model card tells people to."""
    auto = getattr(transformers, found.auto)
    assert found.folder is not None
    with quiet():
        return auto.from_pretrained(
            folder / found.folder,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            **found.arguments,
        ).eval()


def _difference(trunk: PreTrainedModel, inputs: InputSpec, folder: Path, found: Trunk) -> float | None:
    """Largest difference between the two on made-up inputs, as a part of the largest output; None: other shapes."""
    probe = _probe(trunk, inputs)
    loaded = load_trunk(folder, found)
    with _evaluating(trunk), torch.inference_mode():
        ours, theirs = (m(**probe).last_hidden_state for m in (trunk, loaded))
    if ours.shape != theirs.shape:
        return None
    return float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-12))


def _probe(trunk: PreTrainedModel, inputs: InputSpec) -> dict[str, Tensor]:
    """Inputs of the size the trunk was configured for: there both sides need no interpolation."""
    generator = torch.Generator().manual_seed(0)
    if inputs.kind == "text":
        ids = torch.randint(trunk.config.vocab_size, (2, min(inputs.max_length or 16, 32)), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, ids.shape[1] // 2 :] = 0
        return {"input_ids": ids, "attention_mask": mask}
    size = getattr(trunk.config, "image_size", None) or 64
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return {"pixel_values": torch.rand(1, 3, height, width, generator=generator)}


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    was = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was)
