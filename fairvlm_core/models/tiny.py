"""Small base models for a CPU, in the transformers layout, loaded like any published checkpoint.

`tiny`: a CLIP and a LLaVA of about a million parameters each, pretrained on generated pictures; LLaVA's tower is
CLIP's, as in LLaVA-Med. `small`: pretrained DINOv2 and MiniLM as a dual encoder, and the same DINOv2 as the tower of a
LLaVA whose language model is the tiny one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairvlm_core.cohort.prompts import DESCRIBE, IMAGE, NO, YES, chat, demographic_prompt, questions, zero_shot_prompts
from fairvlm_core.cohort.table import Task
from fairvlm_core.errors import CheckpointError
from fairvlm_core.losses.answers import instruction_loss
from fairvlm_core.models.packing import pack
from fairvlm_core.models.pictures import Picture, draw
from fairvlm_core.models.published import prepare_processor
from fairvlm_core.models.vlm import VLM, load_base

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", IMAGE, "[INST]", "[/INST]")
WIDTH, HEADS, TOWER_LAYERS, TEXT_LAYERS = 96, 4, 4, 2
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]  # CLIP's pixel statistics, to two digits
BATCH = 64
TALK, TALK_TOKENS = "Say something.", 24  # how the language of the cohort is learnt, without any image's help
Progress = Callable[[Iterable[int], str], Iterable[int]]


def corpus(task: Task, notes: Sequence[str]) -> list[str]:
    """The text a tiny tokenizer must be able to write: notes, prompts, captions of the pictures."""
    ages = [demographic_prompt(sex, age) for sex in ("female", "male") for age in range(0, 100, 10)]
    prompts = [prompt for group in zero_shot_prompts(task) for prompt in group]
    _, pictures = draw(200, 8, np.random.default_rng(0))
    described = [text for picture in pictures for text in (picture.caption, *picture.answers)]
    answers = [f" {answer}" for answer in (YES, NO, *task.concepts)]
    # As often as there are notes: yes and no must become one token each, for answers are scored at their first token.
    answers *= max(100, len(notes))
    return [*notes, *prompts, *questions(task), *ages, *described, DESCRIBE, TALK, *answers]


def train_tokenizer(texts: Iterable[str], *, vocabulary: int = 1200, end: bool):
    """A byte-level BPE tokenizer; with `end`, every text is closed by the end token, at which CLIP pools."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    form = "<s> $A </s>" if end else "<s> $A"
    numbered = [(token, SPECIAL.index(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=numbered)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=list(SPECIAL[4:]),
        model_max_length=128,
    )


def build_clip(folder: Path, tokenizer, *, image_size: int, seed: int) -> None:
    """Write an untrained CLIP with its tokenizer and image processor to `folder`."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    shape: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_attention_heads": HEADS,
        "projection_dim": WIDTH,
    }
    text = CLIPTextConfig(
        **shape,
        num_hidden_layers=TEXT_LAYERS,
        vocab_size=len(tokenizer),
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(**shape, num_hidden_layers=TOWER_LAYERS, image_size=image_size, patch_size=8)
    torch.manual_seed(seed)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)).save_pretrained(folder)
    save_processors(folder, tokenizer, image_size, MEAN, STD)


def build_llava(
    folder: Path, tokenizer, vision_config, *, image_size: int, mean, std, seed: int, tower: nn.Module
) -> None:
    """Write a LLaVA with the given tower and an untrained projector and language model to `folder`."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    text = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(image_size // vision_config.patch_size) ** 2,
    )
    vision_config._name_or_path = ""  # the folder it was read from says nothing about the model
    torch.manual_seed(seed)
    llava = LlavaForConditionalGeneration(config)
    llava.model.vision_tower.load_state_dict(tower.state_dict())
    llava.save_pretrained(folder)
    save_processors(folder, tokenizer, image_size, mean, std)
    processor, _ = prepare_processor(str(folder), config, image_size)
    processor.save_pretrained(folder)


def save_processors(folder: Path, tokenizer, image_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
    """Write the tokenizer and the image processor beside the weights."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer.save_pretrained(folder)
    square = {"height": image_size, "width": image_size}
    CLIPImageProcessorPil(size=square, crop_size=square, image_mean=list(mean), image_std=list(std)).save_pretrained(
        folder
    )


def pretrain_clip(folder: Path, *, image_size: int, steps: int, seed: int, progress: Progress) -> float:
    """Contrastive pretraining on generated pictures and captions; returns the last loss.

    Pictures with the same caption are not each other's negatives.
    """
    from transformers import AutoTokenizer, CLIPModel

    model, tokenizer = CLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    rng, last = np.random.default_rng([seed, 1]), 0.0
    model.train()
    for step in progress(range(steps), "Pretraining CLIP on generated pictures"):
        images, shown = draw(2 * BATCH, image_size, rng)
        captions = [picture.caption for picture in shown]
        tokens = tokenizer(captions, padding=True, return_tensors="pt", return_token_type_ids=False)
        pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
        output = model(pixel_values=pixels, **tokens)
        same = torch.tensor([[a == b for b in captions] for a in captions], dtype=torch.float32)
        target = same / same.sum(1, keepdim=True)
        loss = (
            _soft_cross_entropy(output.logits_per_image, target) + _soft_cross_entropy(output.logits_per_text, target)
        ) / 2
        last = _update(optimizer, loss, step, steps, 1e-3)
    model.save_pretrained(folder)
    return last


def pretrain_llava(
    folder: Path,
    task: Task,
    notes: Sequence[str],
    *,
    image_size: int,
    steps: int,
    pool: int,
    seed: int,
    progress: Progress,
) -> float:
    """Train projector and language model on generated pictures: to answer questions, to describe, and to speak.

    Speaking is a note or a concept of the cohort beside a picture that has nothing to do with it: a base model knows
    the language of its field, but nothing about these patients' images. The tower is frozen.

    Args:
        pool: pictures drawn in all; their tower features are computed once.
    """
    vlm = load_base(str(folder), task, image_size)
    parts = vlm.parts
    parts.vision_tower.requires_grad_(False)
    images, shown = draw(pool, image_size, np.random.default_rng([seed, 2]))
    vlm.llava.eval()
    with torch.no_grad():
        batches = [vlm.features(images[start : start + BATCH]) for start in range(0, pool, BATCH)]
    features = torch.cat(batches)
    trained = [p for p in vlm.llava.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.01)
    rng, last = np.random.default_rng([seed, 3]), 0.0
    spoken = [*notes, *task.concepts]
    vlm.llava.train()
    for step in progress(range(steps), "Pretraining LLaVA on generated pictures"):
        rows = rng.choice(pool, BATCH, replace=False)
        said = [spoken[i] for i in rng.integers(len(spoken), size=BATCH)]
        loss = _picture_loss(vlm, features[rows], [shown[i] for i in rows], said)
        last = _update(optimizer, loss, step, steps, 2e-3)
    vlm.llava.save_pretrained(folder)
    return last


def _picture_loss(vlm: VLM, features: Tensor, shown: Sequence[Picture], said: Sequence[str]) -> Tensor:
    turns = []
    for picture, sentence in zip(shown, said, strict=True):
        asked = [vlm.sequence(chat(question), YES if yes else NO) for question, yes in picture.answers.items()]
        described = vlm.sequence(chat(DESCRIBE), picture.caption)
        turns.append([*asked, described, vlm.sequence(chat(TALK), sentence, TALK_TOKENS)])
    packed = pack(turns)
    return instruction_loss(vlm.answer_logits(vlm.project(features), packed), packed.target)


def _soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return -(target * F.log_softmax(logits, -1)).sum(-1).mean()


def _update(optimizer: torch.optim.Optimizer, loss: Tensor, step: int, steps: int, peak: float) -> float:
    warm = max(1, steps // 20)
    for group in optimizer.param_groups:
        group["lr"] = peak * min((step + 1) / warm, max(0.02, 1 - step / steps))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    return float(loss.detach())


def build_small_dual(folder: Path, vision: Path, text: Path, *, image_size: int, seed: int) -> None:
    """Write a dual encoder of two pretrained towers with untrained projections to `folder`."""
    from transformers import AutoTokenizer, VisionTextDualEncoderModel

    from fairvlm_core.models import pixel_statistics

    for path in (vision, text):
        _require(path)
    torch.manual_seed(seed)
    model = VisionTextDualEncoderModel.from_vision_text_pretrained(str(vision), str(text), projection_dim=256)
    model.half().save_pretrained(folder)
    mean, std = pixel_statistics(str(vision))
    save_processors(
        folder, AutoTokenizer.from_pretrained(str(text)), image_size, mean.flatten().tolist(), std.flatten().tolist()
    )


def _require(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise CheckpointError(
            "The pretrained checkpoint is missing.",
            where=str(path / "config.json"),
            mend="Put it there, or set base_models.vision and base_models.text to where it is.",
        )
