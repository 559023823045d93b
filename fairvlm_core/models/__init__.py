"""Two families of models behind one protocol: load, embed, score, save. `predict` does not know which it holds."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from fairvlm_core.cohort.table import Task
from fairvlm_core.errors import CheckpointError
from fairvlm_core.model_files import BASES_FILE as BASES_FILE
from fairvlm_core.model_files import MODEL_FILE as MODEL_FILE
from fairvlm_core.model_files import base_path, describe
from fairvlm_core.model_files import write_description as write_description

# A step's output is its own: progress of the work and mistakes, not what a library says while it loads.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")

FAMILIES = {"vlm": "fairvlm_core.models.vlm", "dual": "fairvlm_core.models.dual"}
# Model types and architectures of the original LLaVA code, which transformers does not know.
ORIGINAL_LLAVA = ("llava_mistral", "llava_llama", "llava_mpt", "llava_qwen")
ORIGINAL_CLASSES = ("LlavaMistralForCausalLM", "LlavaLlamaForCausalLM", "LlavaMptForCausalLM", "LlavaQwenForCausalLM")
CONVERSION = "chaoyinshe/llava-med-v1.5-mistral-7b-hf"


class Model(Protocol):
    """What every family offers.

    Attributes:
        task: what it was trained for.
        image_size: side of the square images it takes, in pixels.
    """

    task: Task
    image_size: int

    def embed(self, images: np.ndarray) -> Tensor:
        """Image embeddings [n, d] (not normalised) of uint8 images [n, S, S, 3]."""
        ...

    def score(self, images: np.ndarray) -> np.ndarray:
        """Probabilities float32 [n, L] of the task's labels, from the images alone."""
        ...

    def save(self, folder: Path) -> None:
        """Write what was trained, never the base weights."""
        ...


def load(folder: Path, base: Path) -> Model:
    """Load a trained model from the folder a training step wrote and the folder that `base_models` wrote.

    Raises:
        CheckpointError: when the model or its base is missing.
    """
    described = describe(folder)
    module = importlib.import_module(FAMILIES[described["family"]])
    return module.load(folder, base_path(base, described["family"]), described)


def device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def checkpoint_config(checkpoint: str, model_types: tuple[str, ...]) -> Any:
    """The configuration of a checkpoint in a folder or on the hub.

    Raises:
        CheckpointError: when it cannot be found, is of none of the model types, or is in LLaVA's original layout.
    """
    from transformers import AutoConfig, PreTrainedConfig

    try:
        told, _ = PreTrainedConfig.get_config_dict(checkpoint)
        if told.get("model_type") in ORIGINAL_LLAVA or set(told.get("architectures") or ()) & set(ORIGINAL_CLASSES):
            raise CheckpointError(
                f'The checkpoint is of the type "{told.get("model_type")}", that of the original LLaVA code, which '
                "transformers cannot load.",
                where=checkpoint,
                mend=f"Use a conversion to the transformers layout; for LLaVA-Med v1.5 that is {CONVERSION}.",
            )
        config = AutoConfig.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            "The checkpoint cannot be read.",
            where=checkpoint,
            mend=f"Give a folder or a hub name, in the transformers layout ({reason}).",
        ) from None
    if config.model_type not in model_types:
        raise CheckpointError(
            f'The checkpoint is of the model type "{config.model_type}".',
            where=checkpoint,
            mend=f"Use one in the transformers layout, of the type {' or '.join(model_types)}.",
        )
    return config


def pixel_statistics(checkpoint: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, float32 [3, 1, 1], that a checkpoint's images are normalised with."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(checkpoint)
    except OSError:
        raise CheckpointError(
            "The checkpoint has no image processor, so its pixel statistics are unknown.",
            where=f"{checkpoint}/preprocessor_config.json",
            mend="Take the preprocessor_config.json that was published with the weights.",
        ) from None
    told = [torch.tensor(settings.get(name) or ()) for name in ("image_mean", "image_std")]
    if any(len(values) != 3 for values in told):
        raise CheckpointError(
            "The image processor has no mean and standard deviation of three channels.",
            where=f"{checkpoint}/preprocessor_config.json",
            mend="Take the preprocessor_config.json that was published with the weights.",
        )
    mean, std = (values.reshape(3, 1, 1) for values in told)
    return mean, std


def pixels(images: np.ndarray | Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 images [n, S, S, 3], or floats [n, 3, S, S] in 0..1, to the normalised [n, 3, S, S] a tower takes."""
    if isinstance(images, np.ndarray):
        # Bytes travel to the device, a quarter of what floats would be; they are converted there, in one buffer.
        floats = torch.from_numpy(images).to(mean.device).permute(0, 3, 1, 2).float()
        return floats.div_(255).sub_(mean).div_(std)
    return (images.to(mean.device) - mean) / std
