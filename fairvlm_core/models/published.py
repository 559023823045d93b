"""What a published checkpoint must hold before it is used: all its weights, and, of a Llava, tokenizer, image processor
and chat template.

Published conversions lack some of it, and `transformers` passes that through silently: without a patch size a processor
fails late, and with another number of image tokens it fails at the first image. What the model's configuration settles
is repaired; what contradicts it is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairvlm_core.cohort.prompts import IMAGE, chat
from fairvlm_core.errors import CheckpointError

# Vision towers that are known, and the tokens they put before the patches. The strategy "default" drops one token,
# whether it is a class token or not.
CLASS_TOKENS = {"clip_vision_model": 1, "dinov2": 1, "siglip_vision_model": 0}
# Towers that interpolate their position embeddings only when they are told to; DINOv2 takes images of any size.
FIXED_POSITIONS = ("clip_vision_model", "siglip_vision_model")
STATISTICS = ("image_mean", "image_std")
OTHER_FILES = "Take tokenizer, processor and weights from one and the same published checkpoint."


def image_tokens(config: Any, image_size: int) -> int:
    """Image tokens of one square image of `image_size` pixels: patches, and class tokens as far as they are kept.

    Raises:
        CheckpointError: the image size is no multiple of the tower's patch size.
    """
    patch = config.vision_config.patch_size
    if image_size % patch:
        raise CheckpointError(
            f"Images of {image_size} pixels cannot be cut into patches of {patch} pixels.",
            where="ingest.image_size",
            mend=f"Use a multiple of {patch}, such as {max(1, round(image_size / patch)) * patch}.",
        )
    dropped = int(config.vision_feature_select_strategy == "default")
    return (image_size // patch) ** 2 + CLASS_TOKENS[config.vision_config.model_type] - dropped


def chat_template(tokenizer: Any) -> str:
    """The Mistral instruct template over several rounds, with the image before the first question.

    The begin token is the tokenizer's to add: `prepare_processor` sees to it.
    """
    return (
        "{% for message in messages %}"
        "{% if message['role'] not in ('user', 'assistant') %}"
        "{{ raise_exception('This model knows the roles user and assistant only.') }}"
        "{% endif %}"
        "{{ ' ' if message['role'] == 'assistant' else '[INST] ' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] if part['type'] == 'image' %}" + f"{{{{ '{IMAGE}\\n' }}}}" + "{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
        "{% endif %}"
        "{{ '" + tokenizer.eos_token + "' if message['role'] == 'assistant' else ' [/INST]' }}"
        "{% endfor %}"
    )


def check_weights(checkpoint: str) -> None:
    """Refuse a folder without safetensors: other formats can run code when they are read.

    Raises:
        CheckpointError: the folder holds no safetensors file. A hub name is checked when its weights are loaded.
    """
    folder = Path(checkpoint)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            "The checkpoint has no safetensors weights, and no other format is read.",
            where=checkpoint,
            mend="Load it where it came from, and save it with `save_pretrained`, which writes safetensors.",
        )


def load_weights(architecture: Any, checkpoint: str, **settings: Any) -> Any:
    """A model with all weights of a checkpoint, of which nothing but safetensors is opened.

    Args:
        architecture: the class of `transformers`.
        checkpoint: folder or hub name.
        settings: of its `from_pretrained`.

    Raises:
        CheckpointError: it holds no safetensors, they cannot be read, or tensors of the model are not among them.
    """
    from safetensors import SafetensorError

    check_weights(checkpoint)
    try:
        model, info = architecture.from_pretrained(
            checkpoint, use_safetensors=True, output_loading_info=True, **settings
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            "The weights of the checkpoint cannot be loaded.",
            where=checkpoint,
            mend=f"Have all its safetensors files, as they were published ({str(error).splitlines()[0]}).",
        ) from None
    if info["missing_keys"]:
        # transformers would draw them at random and go on.
        raise CheckpointError(
            f"The checkpoint lacks {len(info['missing_keys'])} of the model's tensors.",
            where=f"{checkpoint}, {min(info['missing_keys'])}",
            mend="Use a complete checkpoint in the transformers layout.",
        )
    return model


def prepare_processor(checkpoint: str, config: Any, image_size: int | None = None) -> tuple[Any, list[str]]:
    """The checkpoint's processor, complete and in agreement with the model.

    Args:
        checkpoint: folder or hub name.
        config: its LlavaConfig.
        image_size: side in pixels of the images it is to take; by default the side that the processor makes.

    Returns:
        A LlavaProcessor, and what had to be repaired: one phrase each.

    Raises:
        CheckpointError: the vision tower is of an unknown type; the tokenizer or the processor contradicts the model,
            or lacks what the model cannot settle; the image size is no multiple of the patch size.
    """
    from transformers import AutoTokenizer, LlavaProcessor
    from transformers.image_processing_base import ImageProcessingMixin

    if config.vision_config.model_type not in CLASS_TOKENS:
        raise CheckpointError(
            f'The vision tower is of the type "{config.vision_config.model_type}".',
            where=f"{checkpoint}/config.json, vision_config",
            mend="Use a checkpoint with a CLIP, SigLIP or DINOv2 tower.",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        settings, _ = LlavaProcessor.get_processor_dict(checkpoint)
        pictures, _ = ImageProcessingMixin.get_image_processor_dict(checkpoint)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "The checkpoint has no usable tokenizer or image processor.",
            where=checkpoint,
            mend=f"Take the files that were published with the weights ({str(error).splitlines()[0]}).",
        ) from None
    _check_tokenizer(checkpoint, config, tokenizer, settings)
    fields, repaired = _fields(checkpoint, config, settings)
    repaired += _repair_ends(tokenizer)
    side = _side(checkpoint, config, pictures, repaired)
    _check_count(checkpoint, config, fields, side)
    image_tokens(config, image_size or side)
    processor = LlavaProcessor(
        square_processor(checkpoint, pictures, image_size or side), tokenizer, image_token=IMAGE, **fields
    )
    template = settings.get("chat_template") or getattr(tokenizer, "chat_template", None)
    processor.chat_template = template
    if template is None:
        repaired.append("chat_template (missing)")
    elif not _is_ours(processor):
        repaired.append("chat_template (another form than the one in which the model is trained and asked)")
    if repaired and repaired[-1].startswith("chat_template"):
        processor.chat_template = chat_template(tokenizer)
    return processor, repaired


def said(checkpoint: str, repaired: list[str]) -> str:
    """One sentence that says what was repaired."""
    return f"The processor of {checkpoint} was repaired to fit the model: {', '.join(repaired)}."


def _check_tokenizer(checkpoint: str, config: Any, tokenizer: Any, settings: dict[str, Any]) -> None:
    def refuse(what: str, mend: str = OTHER_FILES) -> None:
        raise CheckpointError(what, where=f"{checkpoint}, tokenizer", mend=mend)

    index, rows = config.image_token_index, config.text_config.vocab_size
    if settings.get("image_token", IMAGE) != IMAGE:
        refuse(f'The processor marks an image by "{settings["image_token"]}", not by "{IMAGE}".')
    found = tokenizer(IMAGE, add_special_tokens=False)["input_ids"]
    if len(found) != 1 or found[0] == tokenizer.unk_token_id:
        refuse(
            f'The tokenizer has no token "{IMAGE}".', f"Add it as a special token; the model expects the id {index}."
        )
    if found[0] != index:
        refuse(f'The tokenizer gives "{IMAGE}" the id {found[0]}, the model expects {index}.')
    if tokenizer.eos_token_id is None:
        refuse("The tokenizer has no end-of-sequence token, so no answer could end.")
    for name in ("image_token", "bos_token", "eos_token"):
        number = index if name == "image_token" else getattr(tokenizer, f"{name}_id")
        if number is not None and number >= rows:
            refuse(f"The {name} has the id {number}, but the language model knows {rows} tokens.")


def _repair_ends(tokenizer: Any) -> list[str]:
    """A prompt begins with the begin token, where there is one, and does not end with the end token."""
    repaired = []
    written = tokenizer("a")["input_ids"]
    if tokenizer.bos_token_id is not None and written[0] != tokenizer.bos_token_id:
        repaired.append("add_bos_token true")
    if written[-1] == tokenizer.eos_token_id:
        repaired.append("add_eos_token false")
    if repaired:  # either setting rewrites what is added at both ends
        tokenizer.add_eos_token = False
        tokenizer.add_bos_token = tokenizer.bos_token_id is not None
    return repaired


def _fields(checkpoint: str, config: Any, settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Patch size, strategy and number of extra tokens: those of the model, where the processor does not contradict."""
    model = {
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": CLASS_TOKENS[config.vision_config.model_type],
    }
    repaired = []
    for name, value in model.items():
        told = settings.get(name)
        if told is None:
            repaired.append(f"{name} {value}")
        elif told != value and name != "num_additional_image_tokens":  # this one is judged by the count it leads to
            raise CheckpointError(
                f"The processor says {name} {told}, the model {value}.",
                where=f"{checkpoint}/processor_config.json",
                mend=OTHER_FILES,
            )
        else:
            model[name] = told
    return model, repaired


def _side(checkpoint: str, config: Any, pictures: dict[str, Any], repaired: list[str]) -> int:
    """Side of the squares that the image processor makes."""
    where = f"{checkpoint}/preprocessor_config.json"
    for name in STATISTICS:
        if len(pictures.get(name) or ()) != 3:
            raise CheckpointError(
                f"The image processor has no {name} of three channels.",
                where=where,
                mend="Take the preprocessor_config.json that was published with the weights.",
            )
    cropped = pictures.get("crop_size") if pictures.get("do_center_crop", True) else None
    told = cropped or pictures.get("size")
    both = told if isinstance(told, dict) else {"shortest_edge": told}
    sides: set[Any] = {both.get(name) or both.get("shortest_edge") for name in ("height", "width")}
    expected = config.vision_config.image_size
    if sides == {None}:
        repaired.append(f"image size {expected}")
        return expected
    if len(sides) != 1 or None in sides:
        raise CheckpointError("The image processor makes images that are not square.", where=where, mend=OTHER_FILES)
    side = int(sides.pop())
    if config.vision_config.model_type in FIXED_POSITIONS and side != expected:
        raise CheckpointError(
            f"The image processor makes images of {side} pixels, the vision tower takes {expected}.",
            where=where,
            mend=OTHER_FILES,
        )
    return side


def _check_count(checkpoint: str, config: Any, fields: dict[str, Any], side: int) -> None:
    made = (side // fields["patch_size"]) ** 2 + fields["num_additional_image_tokens"]
    made -= fields["vision_feature_select_strategy"] == "default"
    expected = image_tokens(config, side)
    if made != expected:
        raise CheckpointError(
            f"The processor makes {made} image tokens of an image, the model {expected} features.",
            where=f"{checkpoint}/processor_config.json, num_additional_image_tokens",
            mend=f"Write {CLASS_TOKENS[config.vision_config.model_type]} there, or remove the line.",
        )


def square_processor(checkpoint: str, pictures: dict[str, Any], side: int) -> Any:
    """The central square, as the image store keeps it, normalised as the checkpoint says.

    Args:
        checkpoint: for the error's words.
        pictures: settings of its image processor.
        side: in pixels, of what it is to make.

    Raises:
        CheckpointError: it does not normalise.
    """
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    if not pictures.get("do_normalize", True) or not pictures.get("do_rescale", True):
        raise CheckpointError(
            "The image processor does not normalise, but images are normalised in training and scoring.",
            where=f"{checkpoint}/preprocessor_config.json",
            mend=OTHER_FILES,
        )
    mean, std = (list(pictures[name]) for name in STATISTICS)
    square = {"height": side, "width": side}
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square, image_mean=mean, image_std=std)


def _is_ours(processor: Any) -> bool:
    """Whether the template writes one question about an image as `chat` does."""
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    try:
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
    except Exception:  # a template is a program of its own: whatever it raises, it does not write what is needed
        return False
    return text.strip() == chat("What is this?")
