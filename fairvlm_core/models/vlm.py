"""The LLaVA family (FairMed-VLM): a vision tower, a projector and a language model that answers questions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairvlm_core.cohort.prompts import NO, YES, chat, questions
from fairvlm_core.cohort.table import Task
from fairvlm_core.errors import CheckpointError, CohortError, ConfigError
from fairvlm_core.files import process_rank, read_json, write_json
from fairvlm_core.losses.answers import option_scores
from fairvlm_core.models import checkpoint_config, device, pixel_statistics, pixels, write_description
from fairvlm_core.models.adapters import check_adapter, fingerprint, record_base
from fairvlm_core.models.packing import Packed, Turn, pack
from fairvlm_core.models.published import FIXED_POSITIONS, image_tokens, load_weights, prepare_processor, said
from fairvlm_core.models.trunk import Trunk, blocks, enter, modules_below, settings_of
from fairvlm_core.models.turns import Speech, conversation, sequence, split_answer

SCORE_BATCH = 64
# Which linear layers carry LoRA, by the names that CLIP, DINOv2, LLaMA and Mistral give them.
LORA_LAYERS = r"(?:q_proj|k_proj|v_proj|o_proj|out_proj|fc1|fc2|gate_proj|up_proj|down_proj)"


class VLM:
    """A Llava checkpoint with its tokenizer and task.

    The model runs in parts (`features`, `project`, `answer_logits`), so that what is frozen is computed once and the
    projector's output, on which the fairness losses act, is at hand.

    Attributes:
        base: fingerprint of the checkpoint's weights, recorded beside each adapter that is trained on it.
        speech: how text and image become tokens.
        base_trunk: the blocks of the vision tower that are the base's; None where none is known to be.
    """

    def __init__(self, llava: Any, checkpoint: str, task: Task, image_size: int, adapters: Sequence[str] = ()) -> None:
        from transformers import AutoTokenizer

        self.llava, self.task, self.image_size = llava.to(device()), task, image_size
        self.adapters = tuple(adapters)
        self.base_trunk: Trunk | None = None
        self.base = fingerprint(self.llava)
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        mean, std = pixel_statistics(checkpoint)
        self.mean, self.std = mean.to(device()), std.to(device())
        config = llava.config
        self.image_token = config.image_token_index
        self.image_tokens = image_tokens(config, image_size)
        text = config.text_config
        longest = min(
            text.max_position_embeddings, getattr(text, "sliding_window", None) or text.max_position_embeddings
        )
        self.speech = Speech(self.tokenizer, self.image_token, self.image_tokens, longest)
        self.sequence = lru_cache(maxsize=4096)(self._sequence)

    @property
    def parts(self) -> Any:
        """The LlavaModel itself, whether or not adapters are wrapped around it."""
        inner = self.llava.get_base_model() if hasattr(self.llava, "get_base_model") else self.llava
        return inner.model

    def features(self, images: np.ndarray | Tensor) -> Tensor:
        """Patch features [n, P, d_vision] of the layer that the projector reads (of several, side by side).

        Raises:
            CohortError: the images are of another size than the model was loaded for.
        """
        config = self.llava.config
        tower = self.parts.vision_tower
        side = images.shape[2]  # of [n, S, S, 3] and of [n, 3, S, S]
        if side != self.image_size:
            # Of features that are too many, the last would be left out without a word.
            raise CohortError(
                f"Images of {side} pixels were given to a model for {self.image_size} pixels.",
                mend="Ingest the images in the size that the model was trained with.",
            )
        extra = {}
        if config.vision_config.model_type in FIXED_POSITIONS and config.vision_config.image_size != side:
            extra["interpolate_pos_encoding"] = True
        hidden = tower(pixels(images, self.mean, self.std), output_hidden_states=True, **extra).hidden_states
        layers = config.vision_feature_layer
        chosen = torch.cat([hidden[layer] for layer in ([layers] if isinstance(layers, int) else layers)], dim=-1)
        return chosen[:, 1:] if config.vision_feature_select_strategy == "default" else chosen

    @property
    def layers_read(self) -> list[int]:
        """Which hidden states of the tower the projector reads; number 0 enters its first block."""
        layers, count = self.llava.config.vision_feature_layer, len(blocks(self.parts.vision_tower))
        return [layer % (count + 1) for layer in ([layers] if isinstance(layers, int) else layers)]

    def lower(self, images: np.ndarray | Tensor, block: int) -> Tensor:
        """Tokens [n, T, d_vision] that enter block number `block`, from 0, of the tower."""
        tower = self.parts.vision_tower
        tokens = enter(tower, pixels(images, self.mean, self.std))
        for layer in blocks(tower)[:block]:
            tokens = layer(tokens, attention_mask=None)
        return tokens

    def upper(self, tokens: Tensor, block: int) -> Tensor:
        """`features` of the tokens that enter block number `block`, which is no later than any that is read."""
        read, states = self.layers_read, {block: tokens}
        for number, layer in enumerate(blocks(self.parts.vision_tower)[block : max(read)], start=block + 1):
            states[number] = layer(states[number - 1], attention_mask=None)
        chosen = torch.cat([states[number] for number in read], dim=-1)
        return chosen[:, 1:] if self.llava.config.vision_feature_select_strategy == "default" else chosen

    def trunk_below(self, tower_blocks: int | None) -> Trunk:
        """The tower without the last `tower_blocks` of the blocks that the projector reads, and the rest.

        Where that is 0 or None, the trunk is all that the projector reads, and there is no rest.
        """
        tower, read, config = self.parts.vision_tower, self.layers_read, self.llava.config
        block = min(max(read) - tower_blocks, *read) if tower_blocks else max(read)
        cut = {"block": block} if tower_blocks else {"read": read, "select": config.vision_feature_select_strategy}
        return Trunk(
            lower=(lambda images: self.lower(images, block)) if tower_blocks else lambda images: self.features(images),
            upper=(lambda tokens: self.upper(tokens, block)) if tower_blocks else lambda features: features,
            modules=tuple(modules_below(tower, block)),
            dtype=next(tower.parameters()).dtype,
            settings=settings_of(tower, **cut, mean=self.mean.tolist(), std=self.std.tolist(), size=self.image_size),
        )

    def project(self, features: Tensor) -> Tensor:
        """Image tokens [n, P, d] in the space of the language model's input embeddings.

        While the projector is trained it is float32, and so is what it gives, whatever the rest of the model is.
        """
        projector = self.parts.multi_modal_projector
        return projector(features.to(projector.linear_1.weight.dtype))

    def embed(self, images: np.ndarray) -> Tensor:
        """z: the mean-pooled projector output [n, d] (FairMed-VLM, Stage 2)."""
        self.llava.eval()
        with torch.inference_mode():
            batches = [images[start : start + SCORE_BATCH] for start in range(0, len(images), SCORE_BATCH)]
            return torch.cat([self.project(self.features(batch)).mean(1) for batch in batches])

    def concept_embeddings(self, phrases: Sequence[str]) -> Tensor:
        """e_c [C, d]: the mean of the input embeddings over each phrase's tokens (FairMed-VLM, Stage 1)."""
        table = self.parts.language_model.get_input_embeddings()
        rows = []
        for phrase in phrases:
            # Behind a word, as in a sentence: alone, some tokenizers put a space of their own before it.
            ids, start = split_answer(self.tokenizer, "a", f"a {phrase}")
            rows.append(table(torch.tensor(ids[start:], device=table.weight.device)).mean(0))
        return torch.stack(rows)

    def _sequence(self, prompt: str, answer: str, limit: int = 0) -> Turn:
        """Ids of prompt and answer; the answer (`limit` tokens at most, 0: all) ends with the end-of-sequence token.

        Raises:
            CohortError: a text holds the image's token, or is longer than the language model can take.
        """
        return sequence(self.speech, prompt, answer, limit)

    def conversation_turn(self, rounds: Sequence[tuple[str, str]], demographics: str = "", limit: int = 0) -> Turn:
        """Several rounds of (question, answer) about one image; see `turns.conversation`."""
        return conversation(self.speech, rounds, demographics, limit)

    def turns(self, demographics: str = "") -> list[Turn]:
        """One sequence per option (multiclass), or per label and with the answer yes (binary, multilabel)."""
        if self.task.kind == "multiclass":
            return [self.sequence(chat(self.task.question, demographics), option) for option in self.task.concepts]
        return [self.sequence(chat(question, demographics), YES) for question in questions(self.task)]

    def embedded(self, ids: Tensor, image_tokens: Tensor) -> Tensor:
        """Input embeddings [B, T, d] of ids [B, T], with each image's tokens [B, P, d] in their place."""
        found = self.parts.language_model.get_input_embeddings()(ids)
        return found.masked_scatter((ids == self.image_token)[..., None], image_tokens.to(found.dtype))

    def read(self, image_tokens: Tensor) -> Tensor:
        """The mean [n, d] over the image's tokens [n, P, d] of the language model's last hidden state.

        It is the same whatever is asked, for nothing that comes after the image is seen from there.
        """
        prompt = self.turns()[0].ids
        start = prompt.index(self.image_token)
        ids = torch.tensor([prompt[: start + self.image_tokens]] * len(image_tokens), device=image_tokens.device)
        embedded = self.embedded(ids, image_tokens)
        hidden = self.parts.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        return hidden[:, start:].float().mean(1)

    def answer_logits(self, image_tokens: Tensor, packed: Packed) -> Tensor:
        """Logits [A, V] for the answer tokens of a packed batch; the head runs at these positions only."""
        language = self.parts.language_model
        embedded = self.embedded(packed.ids, image_tokens)
        hidden = language(
            inputs_embeds=embedded,
            attention_mask=packed.attention_mask(embedded.dtype),
            position_ids=packed.positions,
            use_cache=False,
        ).last_hidden_state
        return self.llava.get_output_embeddings()(hidden[packed.row, packed.source]).float()

    @property
    def yes_no(self) -> tuple[int, int]:
        """First tokens of the answers yes and no."""
        first = [self.sequence(chat(questions(self.task)[0]), answer) for answer in (YES, NO)]
        yes, no = (turn.ids[turn.answer] for turn in first)
        if yes == no:
            raise CheckpointError(
                "The tokenizer begins yes and no with the same token, so answers cannot be scored.",
                mend="Use a checkpoint whose tokenizer knows whole words.",
            )
        return yes, no

    def score_features(self, features: Tensor) -> Tensor:
        """Probabilities [n, L] from tower features: what AUC, thresholds and calibration use."""
        turns = self.turns()
        packed = pack([turns] * len(features)).to(features.device)
        logits = self.answer_logits(self.project(features), packed)
        width = len(turns)
        if self.task.kind == "multiclass":
            chosen = logits.log_softmax(-1).gather(1, packed.target[:, None])[:, 0]
            likelihood = torch.zeros(len(packed.lengths), device=logits.device).index_add(0, packed.sequence, chosen)
            return option_scores(likelihood.view(-1, width), packed.lengths.view(-1, width))
        first = torch.cumsum(packed.lengths, 0) - packed.lengths
        yes, no = self.yes_no
        return torch.sigmoid(logits[first, yes] - logits[first, no]).view(-1, width)

    def score(self, images: np.ndarray) -> np.ndarray:
        """Probabilities float32 [n, L]: P(yes) against P(no) per label, or a softmax over the options."""
        self.llava.eval()
        with torch.inference_mode():
            batches = [images[start : start + SCORE_BATCH] for start in range(0, len(images), SCORE_BATCH)]
            return torch.cat([self.score_features(self.features(batch)) for batch in batches]).float().cpu().numpy()

    def add_adapter(self, *, rank: int, alpha: int, tower: bool, tower_blocks: int | None = None) -> None:
        """Put LoRA on the language model (and the vision tower), and make the projector trainable.

        The vision layers behind the one that the projector reads get none: no gradient would reach them.

        Args:
            tower_blocks: how many of the blocks that are read get LoRA, the last ones; None: all.

        Raises:
            ConfigError: when the projector reads fewer blocks.
        """
        from peft import LoraConfig, get_peft_model

        targets = [rf"model\.language_model\.layers\.\d+\..*\.{LORA_LAYERS}"]
        if tower:
            used = range(max(self.layers_read))
            if tower_blocks is not None and tower_blocks > len(used):
                raise ConfigError(
                    f"The projector reads {len(used)} blocks of the vision tower, so {tower_blocks} cannot be trained.",
                    where="stage2.tower_blocks",
                    mend="Lower it, or set it to null: all blocks that are read.",
                )
            used = used[len(used) - tower_blocks :] if tower_blocks is not None else used
            numbers = "|".join(str(number) for number in used)
            targets.append(rf"model\.vision_tower\..*layers?\.(?:{numbers})\..*\.{LORA_LAYERS}")
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules="|".join(f"(?:{target})" for target in targets),
            modules_to_save=["multi_modal_projector"],
        )
        self.llava = get_peft_model(self.llava, config)
        # In bfloat16 a step of AdamW at 2e-5 would be rounded away.
        for parameter in self.llava.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def merge_adapter(self) -> None:
        """Fold the adapter into the weights in memory, so that the next stage starts from them."""
        self.llava = self.llava.merge_and_unload()
        self.parts.multi_modal_projector.to(self.llava.dtype)

    def checkpoint_gradients(self, on: bool = True) -> None:
        """Recompute the layers' activations in the backward pass instead of keeping them: less memory, more time.

        Off unless this is called; it acts in training mode only, with and without an adapter.
        """
        if on:
            # The reentrant kind would give no gradient where the embeddings that enter are frozen.
            self.llava.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            self.llava.gradient_checkpointing_disable()

    def save(self, folder: Path) -> None:
        """Write the adapter that was trained last, and which base it needs, without any path of this machine."""
        trained = {
            # Where the weights are spread over several processes, each has a part of every one.
            name: parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            for name, parameter in self.llava.named_parameters()
            if parameter.requires_grad
        }
        self.llava.save_pretrained(str(folder), save_embedding_layers=False, state_dict=trained)
        (folder / "README.md").unlink(missing_ok=True)
        config = folder / "adapter_config.json"
        # peft notes where the base lay; which base it is, is `bases.json`'s to say, and it may lie elsewhere tomorrow.
        write_json(config, {**read_json(config, made_by="stage1"), "base_model_name_or_path": None})
        record_base(folder, self.base)


def load_base(checkpoint: str, task: Task, image_size: int, *, dtype: torch.dtype | None = None) -> VLM:
    """Load a Llava checkpoint from a folder or the hub.

    Args:
        image_size: side in pixels of the images that it will be given.
        dtype: of the weights in memory; by default bfloat16 on a GPU and float32 on a CPU.

    Raises:
        CheckpointError: when it cannot be found, is of another model type, holds no safetensors, lacks weights, or has
            a tokenizer or processor that contradicts the model.
    """
    from transformers import LlavaForConditionalGeneration

    config = checkpoint_config(checkpoint, ("llava",))
    _, repaired = prepare_processor(checkpoint, config, image_size)
    if repaired and process_rank() == 0:
        print(said(checkpoint, repaired), flush=True)
    if dtype is None:
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    llava = load_weights(LlavaForConditionalGeneration, checkpoint, config=config, dtype=dtype)
    return VLM(llava, checkpoint, task, image_size)


def load(folder: Path, checkpoint: str, described: dict[str, Any]) -> VLM:
    """Load a trained model: the base, then each adapter in the order in which the stages trained them."""
    vlm = load_base(checkpoint, described["task"], described["image_size"])
    for name in described["adapters"]:
        apply_adapter(vlm, folder / name)
    vlm.adapters = tuple(described["adapters"])
    # Models of an earlier release do not say so.
    if described.get("base_below") is not None:
        vlm.base_trunk = vlm.trunk_below(described["base_below"])
    vlm.llava.eval()
    return vlm


def apply_adapter(vlm: VLM, folder: Path) -> None:
    """Load an adapter from `folder` and fold it into the weights in memory.

    Raises:
        CheckpointError: it is missing, or was trained on another base.
    """
    from peft import PeftModel

    check_adapter(vlm.llava, folder, vlm.base)
    vlm.llava = PeftModel.from_pretrained(vlm.llava, str(folder))
    vlm.merge_adapter()


def save(
    vlm: VLM, folder: Path, *, name: str, seed: int, earlier: Path | None = None, tower_blocks: int | None = None
) -> None:
    """Write a trained model: its adapter, the adapters of `earlier` stages (small files), and `model.json`.

    Args:
        tower_blocks: blocks of the tower, of those that are read, that may not be the base's; None: all.
    """
    import shutil

    vlm.save(folder / f"adapter-{name}")
    for adapter in vlm.adapters:
        shutil.copytree(Path(earlier or "") / adapter, folder / adapter)
    write_description(
        folder,
        name=name,
        family="vlm",
        task=vlm.task,
        image_size=vlm.image_size,
        seed=seed,
        adapters=[*vlm.adapters, f"adapter-{name}"],
        base_below=tower_blocks,
    )
