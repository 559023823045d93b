"""Make the base models ready: pretrain tiny ones, assemble small ones, or name published checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairvlm_core.config import Port, check, option

INPUTS = {"cohort": Port("Folder that stratify wrote; the text of its training split trains the tiny tokenizer.")}
OUTPUTS = {"out": Port("Folder to write: bases.json, weights.json, and the models where they are made here.")}
PRESETS = ("tiny", "small", "published")


@dataclass(frozen=True)
class Config:
    """Parameters of the step."""

    preset: str = option(
        "tiny",
        "tiny: both pretrained here; small: made of `vision` and `text`; published: `vlm` and `dual` as they are.",
        choices=PRESETS,
    )
    image_size: int = option(64, "Side of the images in pixels, as in ingest.", low=16)
    clip_steps: int = option(250, "Pretraining steps of the tiny CLIP, 128 pictures each.", low=0)
    llava_steps: int = option(250, "Pretraining steps of the tiny language model, 64 pictures each.", low=0)
    pictures: int = option(3000, "Pictures that the language model is pretrained on.", low=64)
    vision: str = option("pretrained/dinov2-small", "Vision checkpoint of the preset small.")
    text: str = option("pretrained/minilm-l6", "Text checkpoint of the preset small.")
    vlm: str = option("", "Llava checkpoint of the preset published: folder or hub name.")
    dual: str = option("", "CLIP checkpoint of the preset published: folder or hub name.")
    seed: int = option(0, "Seed of initialisation and pictures.", low=0)

    def __post_init__(self) -> None:
        check(self)


def run(config: Config, inputs: Mapping[str, Path], outputs: Mapping[str, Path]) -> dict[str, Any]:
    """Write `bases.json` (family -> folder or hub name), `weights.json` (their hashes) and the models it names."""
    from fairvlm_core.cohort.table import read_cohort, rows_of, task_of
    from fairvlm_core.errors import ConfigError
    from fairvlm_core.files import write_json

    out = outputs["out"]
    if config.preset == "published":
        for family in ("vlm", "dual"):
            if not getattr(config, family):
                raise ConfigError(f"base_models.{family} is empty.", mend="Name a checkpoint: a folder or a hub name.")
        references = {
            family: str(Path(name).resolve()) if Path(name).is_dir() else name
            for family, name in (("vlm", config.vlm), ("dual", config.dual))
        }
        _check_published(references, config.image_size)
        write_json(out / "bases.json", references)
        _record_weights(out, references)
        return {"preset": config.preset}

    table = read_cohort(inputs["cohort"])
    notes = sorted({note for note in rows_of(table, "train").column("note").to_pylist() if note})
    losses = _make(config, out, task_of(table), notes)
    write_json(out / "bases.json", {"vlm": "llava", "dual": "dual"})
    _record_weights(out, {name: str(out / folder) for name, folder in (("vlm", "llava"), ("dual", "dual"))})
    return {"preset": config.preset, **losses}


def _record_weights(out: Path, checkpoints: Mapping[str, str]) -> None:
    """Write what the weights hash to, so that no later step has to read 15 GB for that; hub names are not fetched."""
    from fairvlm_core.files import write_json
    from fairvlm_core.registry.base import WEIGHTS_FILE, weights_of

    local = {family: checkpoint for family, checkpoint in checkpoints.items() if Path(checkpoint).is_dir()}
    write_json(out / WEIGHTS_FILE, {family: weights_of(checkpoint) for family, checkpoint in local.items()})


def _check_published(references: Mapping[str, str], image_size: int) -> None:
    """Refuse a folder that a training step could not use, hours later; a hub name is checked when it is fetched."""
    from fairvlm_core.errors import CheckpointError
    from fairvlm_core.models import checkpoint_config, pixel_statistics
    from fairvlm_core.models.dual import MODEL_TYPES
    from fairvlm_core.models.published import check_weights, prepare_processor

    for family, checkpoint in references.items():
        if Path(checkpoint).is_dir():
            config = checkpoint_config(checkpoint, ("llava",) if family == "vlm" else MODEL_TYPES)
            check_weights(checkpoint)
            if family == "vlm":
                prepare_processor(checkpoint, config, image_size)
            else:
                pixel_statistics(checkpoint)
        elif checkpoint.startswith((".", "/")) or checkpoint.count("/") > 1:
            raise CheckpointError(
                "The pretrained checkpoint is missing.",
                where=checkpoint,
                mend=f"Put it there, or set base_models.{family} to the folder that has it, or to a hub name.",
            )


def _make(config: Config, out: Path, task: Any, notes: list[str]) -> dict[str, float]:
    from fairvlm_core.models import tiny
    from fairvlm_core.progress import track

    texts = tiny.corpus(task, notes)
    size, seed = config.image_size, config.seed
    llava, dual = out / "llava", out / "dual"
    speaker = tiny.train_tokenizer(texts, end=False)
    if config.preset == "tiny":
        from transformers import CLIPVisionModel

        tiny.build_clip(dual, tiny.train_tokenizer(texts, end=True), image_size=size, seed=seed)
        clip_loss = tiny.pretrain_clip(dual, image_size=size, steps=config.clip_steps, seed=seed, progress=track)
        tower, mean, std = CLIPVisionModel.from_pretrained(dual), tiny.MEAN, tiny.STD
    else:
        from transformers import AutoModel

        from fairvlm_core.models import pixel_statistics

        tiny.build_small_dual(dual, Path(config.vision), Path(config.text), image_size=size, seed=seed)
        clip_loss = 0.0
        tower = AutoModel.from_pretrained(config.vision)
        mean, std = (values.flatten().tolist() for values in pixel_statistics(config.vision))
    tiny.build_llava(llava, speaker, tower.config, image_size=size, mean=mean, std=std, seed=seed, tower=tower.float())
    llava_loss = tiny.pretrain_llava(
        llava, task, notes, image_size=size, steps=config.llava_steps, pool=config.pictures, seed=seed, progress=track
    )
    return {"clip_loss": clip_loss, "llava_loss": llava_loss}
