"""Images per second through ingest and through each training step, beside a peer in the same run.

python benchmarks/throughput.py            # prints the table; under four minutes on two cores
python benchmarks/throughput.py --write    # also writes it to benchmarks/throughput.md

Ours and the peer's take turns, so that what else the machine does falls on both; the ratio is what to read. What each
peer is, and what the numbers do not say, is in benchmarks/README.md.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from side_by_side import Step, command, machine, speedups, spread, take_turns
from torch import Tensor, nn

from fairvlm_core.cohort.adapters import generated
from fairvlm_core.cohort.fundus import draw_fundus
from fairvlm_core.cohort.images import build_store, open_image
from fairvlm_core.cohort.strata import stratify
from fairvlm_core.cohort.table import Task, cohort_table, groups_of, write_cohort
from fairvlm_core.models import dual, pixels, tiny, vlm
from fairvlm_core.steps import fair_moe, stage1, stage2
from fairvlm_core.steps.stratify import Config as StratifyConfig
from fairvlm_core.training.batches import augment, read_samples
from fairvlm_core.training.engine import Schedule
from fairvlm_core.training.fairmed import train_stage1, train_stage2
from fairvlm_core.training.fairmoe import train_fair_moe
from fairvlm_core.training.job import Job
from fairvlm_core.training.objectives import Batch, conversation, demographics_of, texts_for

SIZE = 64  # pixels, as in params.yaml
PHOTOGRAPH = 512  # pixels: side of the JPEG files that ingest reads
PACKAGES = ("torch", "transformers", "peft", "numpy", "pillow")
SECONDS = 0.4  # how long each side works before it is the other's turn
ATTRIBUTES = ("sex", "age_group")
# The findings of CheXpert: as many questions per image as a chest radiograph is asked.
FINDINGS = (
    "no finding", "enlarged cardiomediastinum", "cardiomegaly", "lung opacity", "lung lesion", "edema", "consolidation",
    "pneumonia", "atelectasis", "pneumothorax", "pleural effusion", "another pleural disease", "fracture",
    "support devices",
)  # fmt: skip


@dataclass(frozen=True)
class Race:
    """Two ways to do the same work; a call of a step does its i-th piece.

    Attributes:
        images: images per call, of both.
    """

    name: str
    peer: str
    ours: Step
    theirs: Step
    images: int


@dataclass(frozen=True)
class Result:
    """Images per second (medians over the rounds), and ours / theirs of each round."""

    race: Race
    ours: float
    theirs: float
    ratios: list[float]


@dataclass(frozen=True)
class Watched(Job):
    """A job whose phases are kept as functions that do one optimiser step, instead of being run."""

    phases: dict[str, Step] = field(default_factory=dict)

    def batch(self, i: int) -> Batch:
        """Batches of full size, over and over."""
        full = [batch for batch in self.epoch(0) if len(batch.indices) == self.batch_size]
        return full[i % len(full)]

    def fit(
        self, parameters: Any, schedule: Schedule, gradients: Any, score: Any, name: str, *more: Any, **others: Any
    ) -> list:
        clear, update = optimiser(parameters.values(), schedule)

        def step(i: int) -> dict[str, Any]:
            clear()
            terms = gradients(self.batch(i), generator(i))
            update()
            return terms

        self.phases[name] = step
        return []


def generator(i: int) -> torch.Generator:
    return torch.Generator().manual_seed(i)


def optimiser(parameters: Any, schedule: Schedule) -> tuple[Callable[[], None], Callable[[], None]]:
    """Clearing the gradients, and clipping with AdamW, as in the training loop; the same for ours and the peer's."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    adam = torch.optim.AdamW(trained, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)

    def update() -> None:
        nn.utils.clip_grad_norm_(trained, schedule.clip)
        adam.step()

    return lambda: adam.zero_grad(set_to_none=True), update


def races(folder: Path, *, pictures: int, patients: int, batch_size: int) -> list[Race]:
    """All comparisons, on a cohort and untrained tiny base models that are made in `folder`."""
    one = make_job(folder / "one", patients=patients, batch_size=batch_size)
    many = make_job(folder / "many", patients=patients, batch_size=max(2, batch_size // 4), findings=FINDINGS)
    peer = "one sequence per question, logits of all tokens"
    return [
        ingest_race(folder / "photographs", pictures),
        llava_race("Stage 1, a question and a note per image", peer, one, folder / "one", tower=False),
        llava_race(f"Stage 1, {len(FINDINGS)} questions and a note", peer, many, folder / "many", tower=False),
        llava_race(
            "Stage 2, a question and a note per image", f"{peer}; no fairness loss", one, folder / "one", tower=True
        ),
        clip_race("Fair-MoE", "CLIP fine-tuning: no experts, no group batches", one, folder / "one"),
    ]


def ingest_race(folder: Path, count: int) -> Race:
    """Decode, shrink and store square JPEG files: the image store against a plain loop with Pillow."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, picture in enumerate(draw_fundus(rng, cup_to_disc=rng.random(count), size=PHOTOGRAPH)):
        Image.fromarray(picture).save(folder / f"{i}.jpg", quality=90)
    keys = [f"{i}.jpg" for i in range(count)]

    def ours(_: int) -> np.ndarray:
        return build_store(keys, lambda key: open_image(folder / key, where=""), folder, size=SIZE).pixels

    def theirs(_: int) -> np.ndarray:
        pictures = [Image.open(folder / key).convert("RGB").resize((SIZE, SIZE)) for key in keys]
        np.save(folder / "plain.npy", np.stack(pictures))
        return np.load(folder / "plain.npy", mmap_mode="r")

    return Race(f"ingest, JPEG of {PHOTOGRAPH} px to {SIZE} px", "Pillow in a loop", ours, theirs, count)


def make_job(folder: Path, *, patients: int, batch_size: int, findings: Sequence[str] = ()) -> Watched:
    """Write a generated cohort and its base models; with `findings`, each image has random labels for them."""
    release = generated.read(None, generated.Options(patients=patients, pixels=SIZE), age_edges=(40, 60), seed=0)
    build_store(release.table.column("image").to_pylist(), release.load, folder, size=SIZE)
    table = stratify(release.table, StratifyConfig(attributes=ATTRIBUTES))
    task = generated.TASK
    if findings:
        rng = np.random.default_rng(0)
        absences = [f"no {finding}" for finding in findings]
        task = Task("multilabel", tuple(findings), tuple(findings), tuple(absences))
        rows = [{**row, "labels": rng.integers(2, size=len(findings)).tolist()} for row in table.to_pylist()]
        table = cohort_table(rows, task=task, groups=groups_of(table))
    write_cohort(table, folder)
    write_bases(folder, task, [note for note in table.column("note").to_pylist() if note])
    return Watched(
        train=read_samples(folder, folder, "train", ATTRIBUTES),
        validation=read_samples(folder, folder, "validation", ATTRIBUTES),
        checkpoint=folder / "checkpoint",
        key="",
        seed=0,
        batch_size=batch_size,
        oversample=1.5,
        augment=True,
        criterion="auc",
    )


def write_bases(folder: Path, task: Task, notes: Sequence[str]) -> None:
    """An untrained CLIP and a LLaVA with its tower: how fast they are does not depend on what they know."""
    from transformers import CLIPVisionModel

    texts = tiny.corpus(task, notes)
    tiny.build_clip(folder / "dual", tiny.train_tokenizer(texts, end=True), image_size=SIZE, seed=0)
    tower = CLIPVisionModel.from_pretrained(folder / "dual")
    speaker = tiny.train_tokenizer(texts, end=False)
    statistic = {"mean": tiny.MEAN, "std": tiny.STD}
    tiny.build_llava(folder / "llava", speaker, tower.config, image_size=SIZE, seed=0, tower=tower, **statistic)


def llava_race(name: str, peer: str, job: Watched, folder: Path, *, tower: bool) -> Race:
    """A step of FairMed-VLM against the usual instruction tuning of the same model with the same LoRA matrices."""
    ours, theirs = (vlm.load_base(str(folder / "llava"), job.train.task, SIZE) for _ in range(2))
    if tower:
        config: Any = stage2.Config(batch_size=job.batch_size)
        train_stage2(ours, job, config)
        step = job.phases["fairness_tuning"]
    else:
        config = stage1.Config(batch_size=job.batch_size)
        train_stage1(ours, job, config)
        step = job.phases["instruction_tuning"]
    theirs.add_adapter(rank=config.lora_rank, alpha=config.lora_alpha, tower=tower)
    theirs.llava.train()
    clear, update = optimiser(theirs.llava.parameters(), Schedule(config.epochs, config.learning_rate))

    def plain(i: int) -> Tensor:
        batch, random = job.batch(i), generator(i)
        images = pixels(augment(job.train.images(batch.indices), batch.repeated, random), theirs.mean, theirs.std)
        asked = demographics_of(job.train, batch.indices, config.demographic_dropout, random)
        loss = theirs.llava(**plain_batch(theirs, images, job, batch, asked)).loss
        clear()
        loss.backward()
        update()
        return loss

    return Race(name, peer, step, plain, job.batch_size)


def plain_batch(model: vlm.VLM, images: Tensor, job: Job, batch: Batch, asked: Sequence[str]) -> dict[str, Tensor]:
    """The usual batch: a padded row per question with its own copy of the image, the prompt's labels masked."""
    rows, labels, image = [], [], []
    for place, (i, demographics) in enumerate(zip(batch.indices, asked, strict=True)):
        turns, learnt = conversation(model, job.train.labels[i], job.train.notes[i], [], demographics)
        for turn in (turn for turn, told in zip(turns, learnt, strict=True) if told):
            rows.append(torch.tensor(turn.ids))
            labels.append(torch.tensor([-100] * turn.answer + list(turn.ids[turn.answer :])))
            image.append(place)
    stack = nn.utils.rnn.pad_sequence
    mask = stack([torch.ones_like(row) for row in rows], batch_first=True)
    return {
        "input_ids": stack(rows, batch_first=True),
        "attention_mask": mask,
        "labels": stack(labels, batch_first=True, padding_value=-100),
        "pixel_values": images[image],
    }


def clip_race(name: str, peer: str, job: Watched, folder: Path) -> Race:
    """A step of Fair-MoE against fine-tuning the same CLIP with its own loss."""
    from transformers import AutoTokenizer, CLIPModel

    config = fair_moe.Config(batch_size=job.batch_size)
    experts = dual.Experts(config.experts, config.top_k, config.capacity, config.gate)
    train_fair_moe(dual.load_base(str(folder / "dual"), job.train.task, SIZE, experts=experts, seed=0), job, config)
    clip, tokenizer = CLIPModel.from_pretrained(folder / "dual"), AutoTokenizer.from_pretrained(folder / "dual")
    clip.train()
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (tiny.MEAN, tiny.STD))
    clear, update = optimiser(clip.parameters(), Schedule(config.epochs, config.learning_rate, config.weight_decay))

    def plain(i: int) -> Tensor:
        batch, random = job.batch(i), generator(i)
        texts = texts_for(job.train, batch.indices, config.prompt_share, random)
        images = pixels(augment(job.train.images(batch.indices), batch.repeated, random), mean, std)
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt", return_token_type_ids=False)
        loss = clip(pixel_values=images, **tokens, return_loss=True).loss
        clear()
        loss.backward()
        update()
        return loss

    return Race(name, peer, job.phases["fair_moe"], plain, job.batch_size)


def run(race: Race, rounds: int) -> Result:
    """Let both work in turn."""
    ours, theirs = take_turns(race.ours, race.theirs, rounds=rounds, seconds=SECONDS)
    speed = [race.images / statistics.median(times) for times in (ours, theirs)]
    return Result(race, *speed, speedups(ours, theirs))


def table(results: Sequence[Result]) -> str:
    """The results as Markdown, with what they were measured on."""
    lines = [
        "| | images/s | peer | its images/s | ratio (lowest to highest) |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for result in results:
        race = result.race
        name = race.name if race.name.startswith("ingest") else f"{race.name}; batch {race.images}"
        lines.append(f"| {name} | {result.ours:.0f} | {race.peer} | {result.theirs:.0f} | {spread(result.ratios, 2)} |")
    return "\n".join([*lines, "", f"{machine(*PACKAGES)} Rounds: {len(results[0].ratios)}."]) + "\n"


def measure(rounds: int) -> str:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        return table([run(race, rounds) for race in races(Path(folder), pictures=128, patients=400, batch_size=64)])


if __name__ == "__main__":
    command(__file__, __doc__, "Throughput", measure, rounds=9)
