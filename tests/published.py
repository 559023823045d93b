"""A small LLaVA with random weights in the very layout in which conversions of LLaVA-Med are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from fairvlm_core.cohort.prompts import chat

SIZE, PATCH = 56, 14
TEXTS = [
    "Does this image show glaucoma? Does this image show edema? Does this image show a fracture?",
    "The optic disc is pale and the cup is large. What does the image show? It shows a melanoma.",
    *[chat("Does this image show edema?"), "Yes No melanoma melanocytic nevus basal cell carcinoma edema a fracture"]
    * 9,
]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
# `prepend`: Mistral v0.1 and v0.2 as they were first converted; `llama`: transformers' class for them now;
# `controls`: [INST] and [/INST] are tokens of their own, as in Mistral v0.3.
TOKENIZERS = ("prepend", "llama", "controls")


def sentencepiece(kind: str = "llama") -> Any:
    """A byte-fallback BPE tokenizer as sentencepiece makes them: a space is the beginning of the next word's token."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    # The image's token stands for itself and must not leave pieces behind.
    trained.train_from_iterator(
        [text.replace("<image>", "") for text in TEXTS],
        trainers.BpeTrainer(vocab_size=330, special_tokens=["<unk>"], show_progress=False),
    )
    learnt = json.loads(trained.to_str())["model"]
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].get)
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(["<unk>", "<s>", "</s>", *BYTES, *pieces]))}
    merges = [tuple(merge) for merge in learnt["merges"]]
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    added = ["<image>", *(["[INST]", "[/INST]"] if kind == "controls" else [])]
    if kind == "llama":
        tokenizer = LlamaTokenizer(
            vocab=vocab, merges=merges, additional_special_tokens=added, pad_token="<pad>", add_bos_token=True
        )
        tokenizer.add_tokens(["<pad>"], special_tokens=True)
        return tokenizer
    fast = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if kind == "prepend":  # the third kind lacks what adds the begin token
        fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=fast, additional_special_tokens=added, **special)


def write_published(
    folder: Path, *, kind: str = "llama", layer: Any = -2, strategy: str = "default", tower: str = "clip"
) -> Any:
    """Write the checkpoint: old names of the tensors, three shards, no processor_config.json, no chat template.

    Returns:
        The model whose weights were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = sentencepiece(kind)
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    shape |= {"image_size": SIZE, "patch_size": PATCH}
    vision: Any = {
        "clip": lambda: CLIPVisionConfig(**shape, intermediate_size=64, projection_dim=16),
        "siglip": lambda: SiglipVisionConfig(**shape, intermediate_size=64),
        "dinov2": lambda: Dinov2Config(**shape, mlp_ratio=2),
    }[tower]()
    text = MistralConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        max_position_embeddings=512,
        sliding_window=None,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIZE // PATCH) ** 2,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
    )
    torch.manual_seed(0)
    llava = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():  # the initialisation is so small that every answer is equally likely
        for parameter in llava.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    told = json.loads(config.to_json_string(use_diff=False))
    told |= {"architectures": ["LlavaForConditionalGeneration"], "torch_dtype": "float32", "ignore_index": -100}
    (folder / "config.json").write_text(json.dumps(told))
    tensors = {_published_name(name, tower): value.contiguous() for name, value in llava.state_dict().items()}
    places = {name: f"model-{i % 3 + 1:05d}-of-00003.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({n: v for n, v in tensors.items() if places[n] == file}, folder / file, metadata={"format": "pt"})
    size = sum(value.numel() * 4 for value in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "CLIPImageProcessor",
                "do_center_crop": True,
                "do_convert_rgb": True,
                "do_normalize": True,
                "do_rescale": True,
                "do_resize": True,
                "crop_size": {"height": SIZE, "width": SIZE},
                "size": {"shortest_edge": SIZE},
                "resample": 3,
                "rescale_factor": 1 / 255,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
            }
        )
    )
    return llava


def _published_name(name: str, tower: str) -> str:
    for now, then in (
        ("lm_head", "language_model.lm_head"),
        ("model.language_model", "language_model.model"),
        ("model.vision_tower", "vision_tower" if tower == "dinov2" else "vision_tower.vision_model"),
        ("model.multi_modal_projector", "multi_modal_projector"),
    ):
        if name.startswith(now):
            return then + name.removeprefix(now)
    raise AssertionError(name)


def edit(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    content = json.loads(file.read_text()) if file.is_file() else {}
    content |= changes
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
