"""Parameters, gradients and the optimiser's state sharded over all devices (FSDP2), with checkpoints in one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from s2kit.errors import UserError

#: Ways into a backbone beside ``forward``; their parameters must be gathered, too.
ENTRIES = ("forward_visible", "forward_tokens", "intermediate")


def shard(task: nn.Module, mesh: DeviceMesh, compute: torch.dtype | None = None) -> None:
    """Shard the parts of a task over the devices of ``mesh``, in place; does nothing to parts that are sharded.

    Each block of a backbone or a decoder is gathered for itself, and so is a window tokenizer; what is left of a part
    (embeddings, norms, a head) with the part. Activation checkpointing and compilation, which a block does inside of
    itself, lie within what is sharded. A teacher, whose parts are entries of a ``ModuleDict``, is laid out as its
    student is.

    Args:
        task: Its children are the parts. All ranks must hold equal parameters.
        mesh: One-dimensional.
        compute: What parameters are gathered in, e.g. bfloat16 under autocast to it; None leaves their own type.
            Gradients are reduced in float32.
    """
    # Activations keep their type: the residual stream and the rotary tables stay in float32 as on one device.
    policy = MixedPrecisionPolicy(compute, torch.float32 if compute else None, cast_forward_inputs=False)
    for part in _parts(task):
        if isinstance(part, FSDPModule):
            continue
        for unit in (*_units(part), part):
            fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        for entry in ENTRIES:
            if hasattr(part, entry):
                register_fsdp_forward_method(part, entry)


def _parts(task: nn.Module) -> Iterator[nn.Module]:
    for child in task.children():
        for part in child.children() if isinstance(child, nn.ModuleDict) else (child,):
            if any(True for _ in part.parameters()):
                yield part


def _units(part: nn.Module) -> list[nn.Module]:
    """What is gathered for itself; a transformer of timm is wrapped, as ``model``."""
    inner = getattr(part, "model", part)
    blocks = getattr(inner, "blocks", None) or getattr(inner, "layers", None) or []
    tokenizer = getattr(part, "tokenizer", None)
    return [*blocks] + ([tokenizer] if isinstance(tokenizer, nn.Module) else [])


def gather(state: Any, keep: bool = True) -> Any:
    """Return a nested state with whole tensors on the CPU in place of sharded ones; all ranks must call it.

    Args:
        state: Dicts, lists and tuples of tensors and plain values.
        keep: Whether this rank needs the result; one that does not takes part and gets tensors without elements.
    """
    if isinstance(state, dict):
        return type(state)((name, gather(value, keep)) for name, value in state.items())
    if isinstance(state, list | tuple):
        return type(state)(gather(value, keep) for value in state)
    if not isinstance(state, Tensor):
        return state
    whole = state.detach().full_tensor() if isinstance(state, DTensor) else state.detach()
    return whole.cpu() if keep else whole.new_empty(0)


def laid_out_like(value: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor, which every rank has, sharded as ``other`` is, if it is and their shapes agree."""
    if not isinstance(other, DTensor) or value.shape != other.shape:
        return value
    mesh = other.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, other.placements, src_data_rank=None)


def load_whole_state(module: nn.Module, state: dict[str, Tensor], strict: bool = True) -> None:
    """Load a state of whole tensors into a module that may be sharded; see ``Module.load_state_dict``."""
    now = module.state_dict()
    laid_out = {name: laid_out_like(value, now[name]) if name in now else value for name, value in state.items()}
    module.load_state_dict(laid_out, strict=strict)


def load_whole_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's state of whole tensors, parameter by parameter in the order of its groups."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    laid_out = dict(state["state"])
    for number, parameter in zip(numbers, parameters):
        if number in laid_out:
            entries = laid_out[number].items()
            laid_out[number] = {
                name: laid_out_like(value, parameter) if isinstance(value, Tensor) else value for name, value in entries
            }
    optimizer.load_state_dict({**state, "state": laid_out})


class FSDP2Strategy(ModelParallelStrategy):
    """Data parallelism over all devices, each of which keeps a share of every parameter (FSDP2).

    Two things differ from Lightning's ``ModelParallelStrategy``, whose default is tensor parallelism. A checkpoint is
    one file of whole tensors, the same as on one device: a run goes on with any strategy and any number of devices, and
    ``load_task`` and the checkpoint tools read it. Lightning's form of such a file numbers the optimiser's parameters
    in the order of the module, which is not that of groups by learning rate. And parameters stay gathered during an
    evaluation, in which ranks may have different numbers of batches.

    Args:
        process_group_backend: ``nccl`` or ``gloo``; by default that of the device.

    Raises:
        UserError: torch is older than 2.8, which cannot keep parameters gathered.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        if not hasattr(FSDPModule, "set_reshard_after_forward"):
            raise UserError(f"FSDP2Strategy needs torch 2.8 or newer, this is {torch.__version__}; ddp works here")
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    # ------------------------------------------------------------------------------------------------ checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole model's state on rank 0."""
        return gather(self.lightning_module.state_dict(), self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole optimiser's state on rank 0, as on one device."""
        return gather(getattr(optimizer, "_optimizer", optimizer).state_dict(), self.is_global_zero)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load the model's and the optimisers' state from a file of any strategy and return the file's contents."""
        path = Path(self.broadcast(checkpoint_path))
        checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        load_whole_state(self.lightning_module, checkpoint["state_dict"], self.lightning_module.strict_loading)
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", [])):
            load_whole_optimizer(optimizer, state)
        return checkpoint

    # ------------------------------------------------------------------------------------------------ evaluation

    def _sharded(self) -> list[FSDPModule]:
        return [module for module in self.lightning_module.modules() if isinstance(module, FSDPModule)]

    def _hold(self) -> None:
        """Gather all parameters and keep them gathered: no forward pass needs the other ranks any more."""
        for module in self._sharded():
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()

    def _release(self) -> None:
        for module in self._sharded():
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()

    def on_validation_start(self) -> None:
        self._hold()

    def on_validation_end(self) -> None:
        self._release()

    def on_test_start(self) -> None:
        self._hold()

    def on_test_end(self) -> None:
        self._release()

    def on_predict_start(self) -> None:
        self._hold()

    def on_predict_end(self) -> None:
        self._release()
