"""A cohort's data card as a page: `card` counts, this module says it in words and tables, `document` writes it."""

from __future__ import annotations

from fairvlm_core.cohort.card import LARGE_LOSS, Card, Prevalence
from fairvlm_core.cohort.document import Picture, Section, Table, to_html, to_markdown
from fairvlm_core.cohort.duplicates import FILE as DUPLICATES_FILE
from fairvlm_core.cohort.duplicates import NEAR, SAME_DETAIL
from fairvlm_core.cohort.groups import ALL, Groups, count_text, shown_kinds, shown_places, shown_splits
from fairvlm_core.cohort.notes import STATEMENTS

KINDS = {
    "binary": "One finding, present or absent",
    "multiclass": "One diagnosis of several",
    "multilabel": "Several findings, each present or absent",
}


def pages(card: Card, picture: Picture) -> tuple[str, str]:
    """The card as Markdown and as HTML; the picture shows the groups."""
    facts = [
        f"{card.images:,} images of {card.patients:,} patients",
        f"{card.task.kind} task: {', '.join(card.task.labels)}",
        *card.modalities,
    ]
    sections: list[Section] = [
        ("Where it comes from", _source(card)),
        ("What is asked", _task(card)),
        ("Who is in it", _groups(card, picture)),
        ("How common each label is", _prevalence(card)),
        ("What is missing", _missing(card)),
        ("Image sizes", _sizes(card)),
        ("Pictures that are there more than once", _duplicates(card)),
        ("What the notes give away", _notes(card)),
        ("How to read this card", _reading(card)),
    ]
    content = (f"Data card: {card.dataset}", " · ".join(facts), warnings(card), sections)
    return to_markdown(*content), to_html(*content)


def warnings(card: Card) -> list[str]:
    """What somebody should look at before training."""
    found, told = card.duplicates, []
    across, between = (found.counts[name]["pairs"] for name in ("across splits", "between patients"))
    if across:
        told.append(
            f"{_pairs(across)} of pictures that look the same lie in different splits, so a model might be tested on"
            f" what it has seen in training. {DUPLICATES_FILE} lists them; stratify leaves out the copy nearer to"
            " training."
        )
    if between:
        told.append(
            f"{_pairs(between)} of pictures that look the same belong to different patients, who may be one."
            f" {DUPLICATES_FILE} lists them; stratify keeps such patients in one split."
        )
    if found.blank:
        told.append(f"{_pictures(found.blank)} nothing: all pixels have nearly the same value.")
    if not found.complete:
        told.append(
            "So many pictures look the same that not all of them were compared: there are more pairs than these."
        )
    return told


def _pairs(count: int) -> str:
    return f"{count:,} pair{'s' * (count != 1)}"


def _pictures(count: int) -> str:
    return f"{count:,} pictures show" if count != 1 else "1 picture shows"


def _source(card: Card) -> list[str | Table]:
    told: list[str | Table] = [
        card.source,
        f"Read by the adapter {card.dataset}"
        + (f" with {', '.join(f'{name}: {value}' for name, value in card.options.items())}" if card.options else "")
        + f"; each picture's central square is stored with {card.image_size} x {card.image_size} pixels.",
    ]
    if card.counted:
        rows = [[name.replace("_", " "), f"{n:,}" if isinstance(n, int) else n] for name, n in card.counted.items()]
        told.append(Table("What was left out or lacks something.", ["Reason", "Rows"], rows))
    return told


def _task(card: Card) -> list[str | Table]:
    task = card.task
    heads = ["Label", "Finding", *(["Its absence"] if task.negatives else [])]
    phrases = [task.concepts, *([task.negatives] if task.negatives else [])]
    rows = [[label, *(words[j] for words in phrases)] for j, label in enumerate(task.labels)]
    question = f'{KINDS[task.kind]}. A generative model is asked: "{task.question}"'
    return [question, Table("Each label and its phrase.", heads, rows, text=len(heads))]


def _groups(card: Card, picture: Picture) -> list[str | Table | Picture]:
    splits = shown_splits(card.splits)
    rows = [
        [kind, *(f"{int(counts[s]):,}" for s in range(len(splits)))]
        for kind, counts in shown_kinds(card.splits).items()
    ]
    told: list[str | Table | Picture] = [Table("Images and patients per split.", ["", *splits], rows), picture]
    several = [card.together] if len(card.together.attributes) > 1 else []
    return told + [_group_table(groups) for groups in (*several, *card.groups)]


def _group_table(groups: Groups) -> Table:
    """A row per group, a column per split."""
    splits, kinds = shown_splits(groups), shown_kinds(groups)
    rows = []
    for place, name in shown_places(groups):
        numbers = [groups.shown(counts, (*place, s)) for s in range(len(splits)) for counts in kinds.values()]
        rows.append([*name, *map(count_text, numbers)])
    heads = [_words(name) for name in groups.attributes]
    heads += [f"{split}: {kind}" if len(splits) > 1 else kind for split in splits for kind in kinds]
    caption = f"By {' and '.join(map(_words, groups.attributes))}."
    return Table(caption, heads, rows, text=len(groups.attributes))


def _prevalence(card: Card) -> list[str | Table]:
    told: list[str | Table] = [
        "Shares of the patients of whom the label is known, with Wilson's 95 % intervals. A patient with several images"
        " has a label if one of them shows it. Where few have a label, or few have it not, its share is hidden."
    ]
    if len(card.task.labels) == 1:
        lines = [("all", "", card.prevalence_of_all[0])]
        lines += [
            (_words(kind), name, found)
            for kind, groups in card.prevalence
            for name, (found,) in groups
            if kind != "split" or len(groups) > 1
        ]
        bars = [found.interval for _, _, found in lines]
        rows = [[kind, name, *_numbers(found)] for kind, name, found in lines]
        heads = ["Patients", "", "Known", "With it", "Share", "95 % interval"]
        return [*told, Table(f"Patients with {card.task.concepts[0]}.", heads, rows, text=2, bars=bars)]
    (_, splits), *attributes = card.prevalence
    everybody = [(ALL, card.prevalence_of_all), *(splits if len(splits) > 1 else [])]
    for kind, groups in [("split", everybody), *attributes]:
        rows = [[label, *(_interval(found[j]) for _, found in groups)] for j, label in enumerate(card.task.labels)]
        told.append(Table(f"By {_words(kind)}.", ["Label", *(name for name, _ in groups)], rows))
    return told


def _numbers(found: Prevalence) -> list[str]:
    shares = ["-", "-"]
    if found.interval:
        low, share, high = (100 * end for end in found.interval)
        shares = [f"{share:.1f} %", f"{low:.1f} to {high:.1f} %"]
    return [count_text(found.patients), count_text(found.positive), *shares]


def _interval(found: Prevalence) -> str:
    if found.interval is None:
        return "-"
    low, share, high = (100 * end for end in found.interval)
    return f"{share:.1f} % ({low:.1f} to {high:.1f})"


def _missing(card: Card) -> list[str | Table]:
    heads = ["", *shown_splits(card.splits)]
    rows = [[_words(name), *(shares[: len(heads) - 1])] for name, shares in card.missing]
    told: list[str | Table] = [
        Table("Share of the images that lack it.", heads, [list(map(_text, row)) for row in rows])
    ]
    if card.unpublished:
        told.append(f"Known of no image: {', '.join(map(_words, card.unpublished))}.")
    return told


def _sizes(card: Card) -> list[str | Table]:
    sizes = card.sizes
    told: list[str | Table] = []
    if sizes.different == 1:
        told.append(f"All pictures have {sizes.width[0]:,.0f} x {sizes.height[0]:,.0f} pixels.")
    else:
        rows = [
            [kind, *(f"{value:,.0f}" for value in values)]
            for kind, values in (("width", sizes.width), ("height", sizes.height))
        ]
        frequent = [[f"{w:,} x {h:,}", _percent(part)] for w, h, part in sizes.common]
        told += [
            Table("Pixels, as the release has the pictures.", ["", "Smallest", "Median", "Largest"], rows),
            Table(f"The most frequent of {sizes.different:,} sizes.", ["Width x height", "Share"], frequent),
        ]
    if sizes.lost_most > 0:
        told.append(
            f"Only the central square is kept. The median picture loses {_percent(sizes.lost_median)} of its pixels,"
            f" the one that loses most {_percent(sizes.lost_most)}; {_percent(sizes.large_loss)} of the pictures lose"
            f" more than {LARGE_LOSS:.0%}."
        )
    if sizes.enlarged:
        told.append(
            f"{_percent(sizes.enlarged)} of the pictures have a shorter side of less than {card.image_size} pixels and"
            " were enlarged."
        )
    return told


def _duplicates(card: Card) -> list[str | Table]:
    found = card.duplicates
    heads = ["Where", "Pairs", "Identical", "Labels differ"]
    keys = ("pairs", "identical", "labels differ")
    rows = [[where, *(f"{counts[key]:,}" for key in keys)] for where, counts in found.counts.items()]
    return [
        Table("Pairs of images that look the same.", heads, rows),
        f"Their 64-bit perceptual hashes differ in at most {NEAR} bits, and their detail correlates by {SAME_DETAIL} or"
        " more; identical are those whose stored pixels are all equal. Pictures that show nothing are not compared:"
        f" {found.blank:,}. {DUPLICATES_FILE}, beside the cohort, lists the pairs.",
    ]


def _notes(card: Card) -> list[str | Table]:
    notes = card.notes
    if notes is None:
        return ["There are no notes."]
    heads = ["Label", "Named, with it", "Named, without it"]
    if card.task.negatives:
        heads += ["Absence named, with it", "Absence named, without it"]
    of_labels = [[label, *map(_text, shares[: len(heads) - 1])] for label, shares in notes.labels]
    of_people = [[_words(kind), name, *map(_text, shares)] for kind, name, shares in notes.people]
    return [
        f"{notes.notes:,} images have a note. These are the shares of the notes in which words were found, whatever is"
        ' said with them: "no evidence of edema" names edema. The expressions know English and miss some statements.',
        Table("Notes that name the label, among images with it and without it.", heads, of_labels),
        Table("Notes that state ...", ["Patients", "", *STATEMENTS], of_people, text=2),
    ]


def _reading(card: Card) -> list[str | Table]:
    return [
        f"A number is replaced by - where it would tell of fewer than {card.min_cell} patients of a group, by itself or"
        " by subtraction from the others; larger numbers may be hidden with it. Who is of unknown group counts as no"
        f" group: such numbers below {card.min_cell} are given as <{card.min_cell}.",
        "Patients are what must not be in two splits; where a release identifies lesions instead, these. A patient with"
        " images from several years can be in several age groups.",
    ]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _text(words: str | None) -> str:
    return "-" if words is None else words


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"
