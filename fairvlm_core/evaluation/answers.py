"""Phi, the answer normaliser: what an answer in words says, as 1, 0 or undecided (FairMed-VLM, inference).

An answer is brought to one form (case, spelling, plural) and its words are looked up in the task's vocabulary: whole
words, the longest match wins, and a negation counts as far as it reaches ("no" is not in "normal", and "no evidence of
edema" says No). What is empty, unknown, uncertain or contradicts itself is undecided; nothing is guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fairvlm_core.cohort.table import Task

STOP, COMMA, COLON = ".", ",", ":"
ARTICLES = frozenset(("a", "an", "the"))
AFFIRMED, DENIED = frozenset(("yes", "yeah", "yep")), frozenset(("nope", "nah"))
# A "no" before one of these, or before a mark, is the answer itself; before another word it negates that word.
AFTER_A_PLAIN_NO = frozenset(("the", "i", "it", "there", "this", "that", "these", "those", "he", "she", "they", "we"))
NEGATIONS = frozenset(
    ("no", "not", "non", "without", "absent", "denies", "denied", "excludes", "excluded", "lacks", "lacking", "neither")
) | {"never", "none", "nor", "negative", "free", "absence", "lack", "resolved"}
# Before a phrase these negate it: two words at a time.
NEGATING_PAIRS = frozenset(
    (("rather", "than"), ("instead", "of"), ("opposed", "to"), ("rules", "out"), ("ruled", "out"), ("clear", "of"))
)
# "No change in the edema" and "not only edema" do not negate the edema.
UNCHANGED = frozenset(
    ("change", "increase", "decrease", "progression", "worsening", "improvement", "doubt", "question", "only", "just")
)
DEGREES = frozenset(("significant", "interval", "appreciable", "substantial", "further", "relevant", "real"))
# Where a negation ends, besides the end of a sentence.
TURNS = frozenset(("but", "however", "although", "though", "yet", "except", "besides", "there", "whereas", "while"))
NEW_CLAUSE = ARTICLES | {"i", "it", "this", "that", "shows", "only", "instead", "likely"}
AFTER = frozenset(("not", "absent", "negative", "no", "none", "excluded", "denied", "resolved", "never", "false"))
AFTER_ENDS = TURNS | {"and", "or", "with", "without", "which", "nor"}
SEEN = frozenset(
    ("present", "positive", "seen", "visible", "evident", "detected", "identified", "found", "observed", "noted")
) | {"apparent", "demonstrated", "shown", "appreciated", "true", "correct", "there", "confirmed"}
UNSEEN = frozenset(("absent", "negative", "none", "false", "incorrect", "nothing", "excluded"))
UNCERTAIN = frozenset(
    ("possible", "possibly", "probable", "probably", "may", "might", "maybe", "perhaps", "uncertain", "unclear")
) | {"unsure", "unknown", "equivocal", "indeterminate", "inconclusive", "questionable", "whether", "if", "unlikely"}
UNCERTAIN |= {"likely", "suspected", "suspicious"}
UNCERTAIN_WITH_NOT = frozenset(("exclude", "excluded", "rule", "ruled", "sure", "certain", "clear", "know"))
FILLERS = ARTICLES | frozenset(
    ("it", "is", "are", "was", "this", "that", "finding", "image", "in", "on", "of", "here", "be", "been", "to", "can")
)
FILLERS |= {"i", "see", "any", "has", "have", "does", "do", "answer", "condition", "patient", "evidence", "sign"}


@dataclass(frozen=True)
class Mention:
    """A phrase of the vocabulary in a text: tokens start..end (exclusive), and what it stands for."""

    start: int
    end: int
    value: int | None


def canonical(text: str) -> list[str]:
    """The words and marks of a text in one form: lower case, one spelling, singular, `n't` as "not".

    >>> canonical("Tumours aren't seen; NO oedema")
    ['tumor', 'are', 'not', 'seen', '.', 'no', 'edema']
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    text = re.sub(r"n't\b", " not", text).replace("cannot", "can not")
    # A dash between spaces parts clauses; a hyphen inside a word joins two words.
    text = re.sub(r"\s[-\u2013\u2014]+\s|\u2014", ", ", text)
    marks = {";": STOP, "!": STOP, "?": STOP, "\n": STOP, "(": COMMA, ")": COMMA}
    found = re.findall(r"[^\W_]+|[.;!?\n,:()]", text)
    return [_word(token) if token[0].isalnum() else marks.get(token, token) for token in found]


def normalise(texts: Sequence[str], task: Task) -> np.ndarray:
    """Phi: the answers to the questions about one image, float64 [L]: 1, 0, or NaN where undecided.

    Args:
        texts: one answer per label (binary, multilabel), or the one answer that names an option (multiclass).
        task: its labels, concepts and negatives are the vocabulary.

    Raises:
        ValueError: when the number of answers is not the number of questions.
    """
    asked = 1 if task.kind == "multiclass" else len(task.labels)
    if len(texts) != asked:
        raise ValueError(f"The task asks {asked} questions, not {len(texts)}.")
    if task.kind == "multiclass":
        chosen = option_answer(texts[0], [(label, c) for label, c in zip(task.labels, task.concepts, strict=True)])
        if chosen is None:
            return np.full(len(task.labels), np.nan)
        return np.eye(len(task.labels))[chosen]
    found = []
    for j, text in enumerate(texts):
        others = [
            phrase for k, pair in enumerate(zip(task.labels, task.concepts, strict=True)) if k != j for phrase in pair
        ]
        said = finding_answer(text, (task.labels[j], task.concepts[j]), (task.negatives[j],), others)
        found.append(np.nan if said is None else said)
    return np.array(found, dtype=float)


def finding_answer(
    text: str, present: Sequence[str], absent: Sequence[str] = (), others: Sequence[str] = ()
) -> int | None:
    """What an answer says about a finding: 1 present, 0 absent, None undecided.

    Args:
        present: phrases for the finding; absent: phrases for its absence; others: phrases for other findings, which
            decide nothing but may be longer matches.

    >>> [finding_answer(text, ["edema"]) for text in ("Yes.", "No evidence of edema.", "The lungs are normal.")]
    [1, 0, None]
    """
    tokens = canonical(text)
    # A phrase that two findings share belongs to the one that was asked for.
    own = [tuple(_phrase(phrase)) for phrase in (*present, *absent)]
    vocabulary: list[tuple[str, int | None]] = [(phrase, 1) for phrase in present]
    vocabulary += [(phrase, 0) for phrase in absent]
    vocabulary += [(phrase, None) for phrase in others if tuple(_phrase(phrase)) not in own]
    mentions = _mentions(tokens, vocabulary)
    verdicts: set[int | None] = set()
    for mention in mentions:
        if mention.value is not None:
            negated = _negated(tokens, mention, mentions)
            unsure = negated is None or _uncertain(tokens, mention)
            verdicts.add(None if unsure else mention.value ^ int(bool(negated)))
    plain = _plain(tokens, mentions)
    if plain:
        verdicts = (verdicts - {None}) | plain
    elif not mentions:
        verdicts = {_status(tokens)}
    return verdicts.pop() if len(verdicts) == 1 else None


def option_answer(text: str, options: Sequence[Sequence[str]]) -> int | None:
    """Which option an answer names: its place, or None where it names none or several that are not ruled out.

    Args:
        options: the phrases (label, concept) of each option.

    >>> option_answer("A melanocytic nevus, not melanoma.", [["mel", "melanoma"], ["nv", "melanocytic nevus"]])
    1
    """
    tokens = canonical(text)
    mentions = _mentions(tokens, [(phrase, number) for number, phrases in enumerate(options) for phrase in phrases])
    named = {mention.value for mention in mentions if _negated(tokens, mention, mentions) is not True}
    return named.pop() if len(named) == 1 else None


def _word(word: str) -> str:
    """One spelling and the singular: oedema, edema; tumours, tumor; keratoses, keratosis."""
    word = word.replace("ae", "e").replace("oe", "e") if len(word) > 4 else word
    if len(word) > 6 and word.endswith("oses"):
        word = word[:-2] + "is"
    elif len(word) > 4 and word.endswith("s") and word[-2] not in "sui":
        word = word[:-1]
    return word[:-3] + "or" if len(word) > 4 and word.endswith("our") else word


def _phrase(phrase: str) -> list[str]:
    """The tokens of a phrase without a leading article and without marks at its end."""
    tokens = canonical(phrase)
    while tokens and not tokens[-1][0].isalnum():
        tokens.pop()
    return tokens[1:] if tokens and tokens[0] in ARTICLES else tokens


def _mentions(tokens: Sequence[str], vocabulary: Iterable[tuple[str, int | None]]) -> list[Mention]:
    """Where phrases of the vocabulary stand, as whole words; what lies inside a longer match is no mention."""
    found = set()
    for phrase, value in vocabulary:
        written = _phrase(phrase)
        # A phrase with a bracket or a comma is also said without.
        for words in (written, [word for word in written if word[0].isalnum()]):
            for start in range(len(tokens) - len(words) + 1) if words else ():
                if list(tokens[start : start + len(words)]) == words:
                    found.add(Mention(start, start + len(words), value))
    kept: list[Mention] = []
    for mention in sorted(found, key=lambda m: (m.start - m.end, m.start)):
        longer = [other for other in kept if other.end - other.start > mention.end - mention.start]
        if not any(mention.start < other.end and other.start < mention.end for other in longer):
            kept.append(mention)
    return kept


def _negated(tokens: Sequence[str], mention: Mention, mentions: Sequence[Mention]) -> bool | None:
    """Whether a negation reaches a mention; None where what stands behind it cannot be read."""
    taken = {place for other in mentions for place in range(other.start, other.end)}
    negations = 0
    for place in range(mention.start - 1, -1, -1):
        token = tokens[place]
        behind = tokens[place + 1]
        if token in (STOP, *TURNS) or (token == COMMA and behind in NEW_CLAUSE | TURNS):
            break
        if place in taken:
            continue
        pair = place + 1 < mention.start and (token, behind) in NEGATING_PAIRS
        if pair or (token in NEGATIONS and not _idle(tokens, place) and not _plain_no(tokens, place)):
            # "Free of" and "absence of" negate, "free fluid" does not.
            negations += token not in ("free", "absence", "lack", "negative") or behind in ("of", "for")
    after = _denied_after(tokens, mention)
    if after is None:
        return None
    # "Does not rule out edema": two negations leave the question open.
    return None if negations + after > 1 and not _same_list(tokens, mention) else bool(negations + after)


def _same_list(tokens: Sequence[str], mention: Mention) -> bool:
    """Whether the negations before a mention are those of a list: no effusion, no edema; neither effusion nor edema."""
    start = max((i for i in range(mention.start) if tokens[i] == STOP), default=-1) + 1
    before = [token for token in tokens[start : mention.start] if token in NEGATIONS]
    return all(token in ("no", "without", "neither", "nor", "none", "non") for token in before)


def _denied_after(tokens: Sequence[str], mention: Mention) -> int | None:
    """1 where the words behind a mention deny it ("is absent", "was not seen"), else 0; None where it is unclear."""
    for place in range(mention.end, len(tokens)):
        token = tokens[place]
        if token in (STOP, COMMA, *AFTER_ENDS):
            return 0
        if token == "ruled" and tokens[place + 1 : place + 2] == ["out"]:
            return 1
        if token in ("not", "never"):
            rest = [word for word in tokens[place + 1 :] if word not in ("be", "been", "clearly", "definitely", "any")]
            if _idle(tokens, place):
                return 0
            return 1 if not rest or rest[0] in SEEN or not rest[0].isalnum() else None
        if token in AFTER:
            return 1
    return 0


def _idle(tokens: Sequence[str], place: int) -> bool:
    """Whether a negation is one of a change or a doubt, not of a finding."""
    following = [token for token in tokens[place + 1 : place + 5] if token not in DEGREES]
    return bool(following) and following[0] in UNCHANGED


def _plain_no(tokens: Sequence[str], place: int) -> bool:
    """Whether this "no" is an answer of its own."""
    if tokens[place] != "no":
        return False
    following = tokens[place + 1] if place + 1 < len(tokens) else STOP
    return following in AFTER_A_PLAIN_NO or not following[0].isalnum()


def _plain(tokens: Sequence[str], mentions: Sequence[Mention]) -> set[int | None]:
    """The plain answers yes and no in a text; a "no" straight behind a mention ("edema: no") speaks of that mention."""
    taken = {place for mention in mentions for place in range(mention.start, mention.end)}
    told = {mention.end + 1 for mention in mentions if tokens[mention.end : mention.end + 1] == [COLON]}
    found: set[int | None] = set()
    for place, token in enumerate(tokens):
        if place in taken or place in told:
            continue
        if token in AFFIRMED:
            found.add(1)
        elif token in DENIED or _plain_no(tokens, place):
            found.add(0)
    return found


def _uncertain(tokens: Sequence[str], mention: Mention) -> bool:
    """Whether the sentence of a mention leaves it open."""
    start = max((i for i in range(mention.start) if tokens[i] == STOP), default=-1) + 1
    end = next((i for i in range(mention.end, len(tokens)) if tokens[i] == STOP), len(tokens))
    sentence = tokens[start:end]
    refused = any(
        token in UNCERTAIN_WITH_NOT and "not" in sentence[max(0, i - 3) : i] for i, token in enumerate(sentence)
    )
    return refused or any(token in UNCERTAIN for token in sentence)


def _status(tokens: Sequence[str]) -> int | None:
    """What an answer without any finding says, if it says nothing else: "not seen", "it is present", "none"."""
    words = [token for token in tokens if token[0].isalnum()]
    if any(word not in FILLERS | SEEN | UNSEEN | {"no", "not"} for word in words):
        return None
    denied = len({"no", "not"} & set(words)) + any(word in UNSEEN for word in words)
    if denied:
        return 0 if denied == 1 else None
    return 1 if any(word in SEEN for word in words) else None
