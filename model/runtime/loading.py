"""From a checkpoint folder to a model on its device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from model.config import LanguageConfig, ModelConfig, load_config
from model.formats import ComputeFormat, WeightFormat, matrices, packing_of
from model.gpu import support as gpu
from model.native.library import is_fast, status
from model.nn.attention.native import HEAD_MULTIPLE, native_attention
from model.nn.attention.reference import reference_attention
from model.nn.kernels import LanguageKernels, TorchKernels
from model.nn.linear import PackedWeight
from model.nn.minicpmv import MiniCPMV
from model.nn.quant import packed_weight
from model.runtime.checkpoint import Progress, empty_model, list_checkpoint, load_weights
from model.runtime.device import DTYPES
from model.runtime.safetensors_file import StoredTensor


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A checkpoint whose files were found to fit, and nothing of them read yet."""

    config: ModelConfig
    """As the files have it: they decide whether the head is tied."""
    _empty: MiniCPMV
    _stored: dict[str, StoredTensor]

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """The checkpoint in a folder.

        Raises:
            ConfigError: config.json is missing, or asks for something not implemented.
            CheckpointError: the files are damaged or not this model's.
        """
        stored = list_checkpoint(folder)
        model = empty_model(load_config(folder), stored, reference_attention)
        return cls(model.config, model, stored)

    def load(
        self, *, device: torch.device, weights: WeightFormat, compute: ComputeFormat, progress: Progress
    ) -> MiniCPMV:
        """The networks, ready to compute. To be called once.

        Args:
            weights: in which format each matrix is held; see `model.formats`.
            compute: of everything else.

        Raises:
            CheckpointError: a file cannot be read, or has become shorter.
        """
        model = self._empty.to(DTYPES[compute])
        packed = _packed_weights(model, weights, device)
        for path in packed:
            module, _, name = path.rpartition(".")
            delattr(model.get_submodule(module), name)
        model.to_empty(device=device)
        for path, weight in packed.items():
            module, _, name = path.rpartition(".")
            model.get_submodule(module).register_module(name, weight)
        load_weights(model, self._stored, progress)
        model.language.use(_kernels(device, self.config.language))
        return model


def kernels_line(device: torch.device) -> str:
    """For whoever starts the server: which kernels run, or why none do."""
    return status() if device.type == "cpu" else gpu.status(device)


def _kernels(device: torch.device, config: LanguageConfig) -> LanguageKernels:
    """The best for the device and the model."""
    if device.type == "cpu" and is_fast() and config.head_size % HEAD_MULTIPLE == 0:
        return TorchKernels(native_attention)
    if gpu.is_available(device):
        from model.nn.triton_kernels import TritonKernels  # needs triton

        torch.cuda.set_device(device)  # Triton launches on the current one
        return TritonKernels()
    return TorchKernels(reference_attention)


def _packed_weights(model: MiniCPMV, weights: WeightFormat, device: torch.device) -> dict[str, PackedWeight]:
    """What takes the place of parameters that the setting packs, by their names."""
    return {
        path: packed_weight(packing, group.outputs, group.inputs, dtype=model.dtype, device=device)
        for group in matrices(model.config)
        if (packing := packing_of(weights, group.part)) is not None
        for path in group.parameters
    }
