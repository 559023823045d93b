"""What is said to a model about an image: questions, answers, captions, demographic prompts."""

from __future__ import annotations

from collections.abc import Sequence

from fairvlm_core.cohort.table import Task

YES, NO = "Yes", "No"
DESCRIBE = "Describe the findings."
IMAGE = "<image>"


def chat(question: str, demographics: str = "") -> str:
    """The Mistral instruct form that LLaVA-Med is trained in, up to where the answer begins.

    >>> chat("Does this image show edema?")
    '[INST] <image>\\nDoes this image show edema? [/INST]'
    """
    return f"[INST] {IMAGE}\n{demographics + ' ' if demographics else ''}{question} [/INST]"


def questions(task: Task) -> list[str]:
    """One yes/no question per label (binary, multilabel), or the one question whose options are the concepts."""
    if task.kind == "multiclass":
        return [task.question]
    return [task.question.format(concept=concept) for concept in task.concepts]


def demographic_prompt(sex: str | None, age: float | None) -> str:
    """The demographic prompt of FairMed-VLM (training only); what is unknown is left out.

    >>> demographic_prompt("female", 63.0), demographic_prompt(None, None)
    ('Patient: Female, Age group: 60-69.', '')
    """
    parts = []
    if sex:
        parts.append(f"Patient: {sex.capitalize()}")
    if age is not None:
        decade = int(age) // 10 * 10
        parts.append(f"Age group: {decade}-{decade + 9}")
    return ", ".join(parts) + "." if parts else ""


def zero_shot_prompts(task: Task) -> list[list[str]]:
    """Captions that a dual encoder compares an image with (Fair-MoE, evaluation).

    Multiclass: one list of L captions. Otherwise: L pairs, absence before presence.
    """
    if task.kind == "multiclass":
        return [[task.prompt.format(concept=concept) for concept in task.concepts]]
    return [
        [task.prompt.format(concept=negative), task.prompt.format(concept=concept)]
        for negative, concept in zip(task.negatives, task.concepts, strict=True)
    ]


def caption(task: Task, labels: Sequence[float | None]) -> str | None:
    """The caption that states an image's labels, in the words of the zero-shot prompts; None when none is known.

    Several findings are joined; a multilabel image without any finding is captioned by the absences.
    """
    known = [(j, value) for j, value in enumerate(labels) if value is not None and value == value]
    present = [task.concepts[j] for j, value in known if value > 0]
    phrases = present or [task.negatives[j] for j, _ in known if task.negatives]
    return task.prompt.format(concept=" and ".join(phrases)) if phrases else None
