"""14 findings of an image in one pass, beside the usual ways to ask for them, in the same run.

python benchmarks/answers.py            # prints the table; about three minutes on one core
python benchmarks/answers.py --write    # also writes it to benchmarks/answers.md

Scoring: all findings from one prefill, beside `generate()`. Training: questions packed behind one image prefix, beside
a padded row per question. Before anything is timed, both sides must give the same scores, or the same loss and
gradients. The model is LLaVA-Med scaled down: image tokens (196, or 576 as at 336 px) are most of what it reads.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from side_by_side import command, machine, one_thread, speedups, spread, take_turns
from torch import Tensor, nn

from fairvlm_core.cohort.adapters import generated
from fairvlm_core.cohort.table import Task
from fairvlm_core.losses.answers import instruction_loss
from fairvlm_core.models import pixels, tiny
from fairvlm_core.models.packing import Turn, pack
from fairvlm_core.models.vlm import VLM, load_base
from fairvlm_core.training.objectives import conversation

# Image side and patch side in pixels: 196 and 576 image tokens.
SHAPES = ((224, 16), (336, 14))
HIDDEN, LAYERS, HEADS = 256, 4, 4
NEW_TOKENS = 2  # "Yes" or "No" and the end: the fewest that an answer in words takes
# The findings of CheXpert.
FINDINGS = (
    "no finding", "enlarged cardiomediastinum", "cardiomegaly", "lung opacity", "lung lesion", "edema", "consolidation",
    "pneumonia", "atelectasis", "pneumothorax", "pleural effusion", "another pleural disease", "fracture",
    "support devices",
)  # fmt: skip
TASK = Task("multilabel", FINDINGS, FINDINGS, tuple(f"no {finding}" for finding in FINDINGS))

Work = Callable[[], Any]


SECONDS = 0.4  # how long each side works, about, before it is the other's turn


@dataclass(frozen=True)
class Race:
    """Two ways to the same numbers; `alike` raises where they are not, and says how far they differ."""

    name: str
    peer: str
    ours: Work
    theirs: Work
    alike: Callable[[], str]
    images: int


@dataclass(frozen=True)
class Result:
    """Images per second (medians over the rounds), ours / theirs of each round, and what `alike` said."""

    race: Race
    ours: float
    theirs: float
    ratios: list[float]
    difference: str


def make(folder: Path, image: int, patch: int, *, hidden: int = HIDDEN, layers: int = LAYERS) -> VLM:
    """An untrained LLaVA with a light CLIP tower: how fast it is does not depend on what it knows."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tokenizer = tiny.train_tokenizer(tiny.corpus(TASK, notes(200)), end=False)
    tower = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=image,
        patch_size=patch,
    )
    text = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(image // patch) ** 2,
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    tiny.save_processors(folder, tokenizer, image, tiny.MEAN, tiny.STD)
    vlm = load_base(str(folder), TASK, image)
    vlm.llava.eval()
    return vlm


def notes(count: int) -> list[str]:
    """Notes of the generated cohort: sentences of different lengths, as a radiologist's are."""
    release = generated.read(None, generated.Options(patients=count, pixels=16), age_edges=(40, 60), seed=0)
    return [note for note in release.table.column("note").to_pylist() if note]


def draw_images(count: int, size: int) -> np.ndarray:
    """Noise, uint8 [count, size, size, 3]: no side looks at what it shows."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def scoring_races(vlm: VLM, images: np.ndarray) -> list[Race]:
    """P(yes) of all findings: from one prefill, beside `generate()` for each finding or for all in one padded batch."""
    ids = [torch.tensor(turn.ids[: turn.answer]) for turn in vlm.turns()]
    end, (yes, no) = vlm.tokenizer.eos_token_id, vlm.yes_no
    length = max(len(row) for row in ids)
    padded = torch.stack([nn.functional.pad(row, (length - len(row), 0), value=end) for row in ids])
    filled = torch.stack([(torch.arange(length) >= length - len(row)).long() for row in ids])

    def generated_scores(rows: Tensor, mask: Tensor, image: np.ndarray) -> Tensor:
        with torch.inference_mode():
            found = vlm.llava.generate(
                input_ids=rows,
                attention_mask=mask,
                pixel_values=pixels(image[None], vlm.mean, vlm.std).expand(len(rows), -1, -1, -1),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                pad_token_id=end,
                return_dict_in_generate=True,
                output_logits=True,
            ).logits[0]
        return torch.sigmoid(found[:, yes] - found[:, no])

    def one_by_one() -> np.ndarray:
        scored = [[generated_scores(row[None], torch.ones_like(row)[None], image) for row in ids] for image in images]
        return np.array([[float(value) for value in row] for row in scored])

    def in_a_batch() -> np.ndarray:
        return torch.stack([generated_scores(padded, filled, image) for image in images]).numpy()

    def alike(theirs: Callable[[], np.ndarray]) -> Callable[[], str]:
        def compared() -> str:
            ours, given = vlm.score(images), theirs()
            np.testing.assert_allclose(ours, given, atol=1e-5)
            return f"scores {np.abs(ours - given).max():.0e}"

        return compared

    name = f"scoring, {len(FINDINGS)} findings, {vlm.image_tokens} image tokens"
    return [
        Race(name, peer, lambda: vlm.score(images), theirs, alike(theirs), len(images))
        for peer, theirs in (
            (f"`generate()` per finding, {NEW_TOKENS} new tokens", one_by_one),
            (f"`generate()` once per image, {len(FINDINGS)} padded rows", in_a_batch),
        )
    ]


def training_race(vlm: VLM, images: np.ndarray) -> Race:
    """Loss and gradients of LoRA and projector: questions packed behind their image, beside a padded row for each."""
    vlm.add_adapter(rank=8, alpha=16, tower=False)
    randomised(vlm)
    vlm.llava.train()
    answers = np.random.default_rng(1).integers(0, 2, (len(images), len(FINDINGS))).astype(np.float32)
    turns = [conversation(vlm, row, None, [], "")[0] for row in answers]
    packed, batch = pack(turns), padded_rows(turns)
    rows = torch.arange(len(images)).repeat_interleave(len(FINDINGS))
    values = pixels(images, vlm.mean, vlm.std)

    def learn(loss: Tensor) -> float:
        vlm.llava.zero_grad(set_to_none=True)
        loss.backward()
        return float(loss.detach())

    def ours() -> float:
        with torch.no_grad():
            features = vlm.features(images)
        return learn(instruction_loss(vlm.answer_logits(vlm.project(features), packed), packed.target))

    def theirs() -> float:
        return learn(vlm.llava(**batch, pixel_values=values[rows]).loss)

    def alike() -> str:
        loss, mine = ours(), gradients(vlm)
        given, other = theirs(), gradients(vlm)
        np.testing.assert_allclose(loss, given, rtol=1e-5)
        largest = max(float(value.abs().max()) for value in other.values())
        apart = max(float((mine[name] - value).abs().max()) for name, value in other.items()) / largest
        if mine.keys() != other.keys() or not apart < 1e-4:
            raise AssertionError(f"the gradients differ by {apart:.1e} of the largest")
        return f"loss {abs(loss - given) / given:.0e}, gradients {apart:.0e}"

    name = f"training, {len(FINDINGS)} questions per image, {vlm.image_tokens} image tokens; batch {len(images)}"
    return Race(name, "a padded row per question, logits of all tokens", ours, theirs, alike, len(images))


def randomised(vlm: VLM) -> None:
    """LoRA's B starts at zero, where A has no gradient: a step later both have one."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in vlm.llava.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=random))


def gradients(vlm: VLM) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in vlm.llava.named_parameters() if p.grad is not None}


def padded_rows(turns: Sequence[Sequence[Turn]]) -> dict[str, Tensor]:
    """The usual batch: a row per question, padded on the right, all but the answer masked in the labels."""
    rows = [turn for asked in turns for turn in asked]
    stack = nn.utils.rnn.pad_sequence
    ids = [torch.tensor(turn.ids) for turn in rows]
    labels = [torch.tensor([-100] * turn.answer + list(turn.ids[turn.answer :])) for turn in rows]
    return {
        "input_ids": stack(ids, batch_first=True),
        "attention_mask": stack([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": stack(labels, batch_first=True, padding_value=-100),
    }


def waste(vlm: VLM, images: int = 64) -> list[str]:
    """How much of a batch is padding, packed and as padded rows: of the findings alone, and with a note per image."""
    lines = []
    random, written = np.random.default_rng(2), notes(images * 2)
    answers = random.integers(0, 2, (images, len(FINDINGS))).astype(np.float32)
    for what, told in (("findings", [None] * images), ("findings and a note", written[:images])):
        turns = [conversation(vlm, row, note, [], "")[0] for row, note in zip(answers, told, strict=True)]
        packed, rows = pack(turns), padded_rows(turns)
        used = sum(pack([asked]).ids.numel() for asked in turns)  # a row on its own has no padding
        ours, theirs = 1 - used / packed.ids.numel(), 1 - float(rows["attention_mask"].float().mean())
        tokens = f"{used / images:.0f} tokens per image against {float(rows['attention_mask'].sum()) / images:.0f}"
        lines.append(f"- {len(FINDINGS)} {what}, batch {images}: {ours:.1%} packed, {theirs:.1%} in rows; {tokens}.")
    return lines


def run(race: Race, rounds: int) -> Result:
    """Prove that both sides agree, then let them work in turn."""
    difference = race.alike()
    ours, theirs = take_turns(lambda _: race.ours(), lambda _: race.theirs(), rounds=rounds, seconds=SECONDS)
    speed = [race.images / statistics.median(times) for times in (ours, theirs)]
    return Result(race, *speed, speedups(ours, theirs), difference)


def table(results: Sequence[Result], wasted: Sequence[str]) -> str:
    """The results as Markdown, with what they were measured on."""
    lines = [
        "| | images/s | peer | its images/s | ratio (lowest to highest) | differ by at most |",
        "| --- | ---: | --- | ---: | ---: | --- |",
    ]
    for result in results:
        race = result.race
        speeds = f"{result.ours:.2f} | {race.peer} | {result.theirs:.2f}"
        lines.append(f"| {race.name} | {speeds} | {spread(result.ratios, 1)} | {result.difference} |")
    measured = (
        f"{machine('torch', 'transformers', 'peft', 'numpy')} "
        f"Language model: hidden size {HIDDEN}, {LAYERS} layers. Rounds: {len(results[0].ratios)}."
    )
    return "\n".join([*lines, "", "Padding:", "", *wasted, "", measured]) + "\n"


def races(folder: Path, image: int, patch: int, *, count: int, **shape: int) -> tuple[list[Race], VLM]:
    """The races at one shape, and the model that they share: it is scored first, for training adds adapters to it."""
    vlm = make(folder / "scored", image, patch, **shape)
    images = draw_images(count, image)
    learner = load_base(str(folder / "scored"), TASK, image)
    return [*scoring_races(vlm, images), training_race(learner, images)], vlm


def measure(rounds: int) -> str:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results: list[Result] = []
    wasted: list[str] = []
    with one_thread():
        for image, patch in SHAPES:
            with tempfile.TemporaryDirectory() as folder:
                compared, vlm = races(Path(folder), image, patch, count=1)
                results += [run(race, rounds) for race in compared]
                wasted = waste(vlm)
        return table(results, wasted)


if __name__ == "__main__":
    command(__file__, __doc__, "Answers", measure)
