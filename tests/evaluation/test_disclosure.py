"""What follows from the counts of a judgement, for a reader who adds and subtracts all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairvlm_core.evaluation.judgement import judge
from fairvlm_core.evaluation.predictions import Scores

MIN_CELL = 10
SIZES = st.one_of(st.integers(0, 12), st.integers(0, 60))


def predictions(groups, truth, kind="binary", seed=0):
    n, width = truth.shape
    score = np.random.default_rng(seed).random((n, width))
    if kind == "multiclass":
        score /= score.sum(axis=1, keepdims=True)
    ids = np.arange(n).astype(str).astype(object)
    decision = np.eye(width)[score.argmax(axis=1)] if kind == "multiclass" else (score > 0.5).astype(float)
    return Scores(ids, ids, tuple("abcd"[:width]), truth, score, decision, groups, kind, "model")


def races(*sizes):
    names = ["white", "black", "asian", "islander", "other", None]
    return np.repeat(np.array(names, dtype=object)[: len(sizes)], sizes)


def half_ill(n):
    return (np.arange(n) % 2 == 0).astype(float)[:, None]


def basis(rows):
    """An orthonormal basis of what can be added up from the rows."""
    _, sizes, directions = np.linalg.svd(np.array(rows), full_matrices=False)
    return directions[sizes > 1e-9 * sizes[0]]


def spanned(row, directions):
    return np.linalg.norm(row - directions.T @ (directions @ row)) < 1e-7 * np.linalg.norm(row)


class Reader:
    """Knows every number that is printed, and solves for what is not.

    An unknown of the system is how many images there are of one combination of groups (an unknown one among them) and
    of truths. A reader knows the groups' names, so that only combinations of named groups exist.
    """

    def __init__(self, scores, judged, *, reasons=False):
        self.values = {
            name: [*groups["groups"], None] for name, groups in judged["attributes"].items() if " x " not in name
        }
        states = range(scores.y_true.shape[1] + 1) if scores.kind == "multiclass" else (0, 1, None)
        self.kind, self.labels = scores.kind, scores.labels
        self.cells = [
            (dict(zip(self.values, groups, strict=True)), truth)
            for groups in itertools.product(*self.values.values())
            for truth in (itertools.product(states, repeat=1 if scores.kind == "multiclass" else len(scores.labels)))
        ]
        self.rows = []
        self.learn(judged["n"], lambda groups, truth: True)
        for label, told in judged["per_label"].items():
            # How common a label is in a split is taken as known.
            column = scores.y_true[:, scores.labels.index(label)]
            self.learn(int((~np.isnan(column)).sum()), lambda g, t, one=label: self.known(one, t))
            self.learn(int((column == 1).sum()), lambda g, t, one=label: self.ill(one, t))
            assert told["n"] in ((~np.isnan(column)).sum(), f"<{MIN_CELL}")
        if not np.isnan(scores.y_true).any():
            self.learn(0, lambda g, t: not all(self.known(label, t) for label in self.labels))
        for attribute, found in judged["attributes"].items():
            parts = attribute.split(" x ")
            self.learn(found["n"], lambda g, t, parts=parts: all(g[part] is not None for part in parts))
            self.learn(found["unknown"], lambda g, t, parts=parts: any(g[part] is None for part in parts))
            if found["unknown"] == 0:  # then there is none of any kind
                self.rows += [
                    one
                    for one, (g, _) in zip(np.eye(len(self.cells)), self.cells, strict=True)
                    if any(g[part] is None for part in parts)
                ]
            for item in found["unjudged"]:
                if reasons and item["reason"] in ("no positives", "no negatives"):
                    ill = self.row(self.member(attribute, item["group"], item["label"], self.ill))
                    known = self.row(self.member(attribute, item["group"], item["label"], self.known))
                    self.rows.append(ill if item["reason"] == "no positives" else known - ill)
        # How many lack an attribute is known, too, unless it is withheld; and why a group cannot be judged.
        self.public = basis(self.rows)
        for attribute, found in judged["attributes"].items():
            for group, told in found["groups"].items():
                self.learn(told["n"], self.member(attribute, group))
                if len(self.labels) == 1:
                    self.learn(told["positives"], self.member(attribute, group, self.labels[0], self.ill))
            told = [
                (label, group, cell) for label, of in found["labels"].items() for group, cell in of["groups"].items()
            ]
            told += [(item["label"], item["group"], item) for item in found["unjudged"]]
            for label, group, cell in told:
                self.learn(cell["n"], self.member(attribute, group, label, self.known))
                self.learn(cell["positives"], self.member(attribute, group, label, self.ill))
                if isinstance(cell["n"], int) and cell.get("prevalence") is not None:
                    self.learn(round(cell["n"] * cell["prevalence"]), self.member(attribute, group, label, self.ill))
        self.all = basis(self.rows)

    def known(self, label, truth):
        return (
            truth[0] != len(self.labels) if self.kind == "multiclass" else truth[self.labels.index(label)] is not None
        )

    def ill(self, label, truth):
        place = self.labels.index(label)
        return truth[0] == place if self.kind == "multiclass" else truth[place] == 1

    def member(self, attribute, group, label=None, what=None):
        parts = attribute.split(" x ")
        names = str(group).split(", ") if len(parts) > 1 else [group]
        inside = lambda g: all(g[part] == name for part, name in zip(parts, names, strict=True))  # noqa: E731
        return lambda g, t: inside(g) and (label is None or what(label, t))

    def row(self, rule):
        return np.array([float(rule(groups, truth)) for groups, truth in self.cells])

    def learn(self, value, rule):
        if isinstance(value, (int, np.integer)):
            self.rows.append(self.row(rule))

    def can_tell(self, row):
        """Whether it follows, and not from what everybody knows."""
        return bool(row.any()) and spanned(row, self.all) and not spanned(row, self.public)


def secrets(scores, reader):
    """Each small count of the data, and the reader's row for it."""
    groups = dict(scores.groups)
    if {"sex", "age_group"} <= groups.keys():
        pairs = zip(groups["sex"], groups["age_group"], strict=True)
        groups["sex x age_group"] = np.array([f"{a}, {b}" if a and b else None for a, b in pairs], dtype=object)
    for attribute, values in groups.items():
        small = []
        for group in {value for value in values if value is not None}:
            rows = values == group
            if rows.sum() < MIN_CELL:
                small.append((group, int(rows.sum())))
                yield f"{attribute} {group}", reader.row(reader.member(attribute, group))
            for j, label in enumerate(scores.labels):
                known, ill = (~np.isnan(scores.y_true[rows, j])).sum(), (scores.y_true[rows, j] == 1).sum()
                of_known, of_ill = (
                    reader.row(reader.member(attribute, group, label, what)) for what in (reader.known, reader.ill)
                )
                counts = {"known": (known, of_known), "ill": (ill, of_ill), "well": (known - ill, of_known - of_ill)}
                for name, (value, row) in counts.items():
                    if 0 < value < MIN_CELL:
                        yield f"{attribute} {group} {label} {name}", row
        if small and sum(size for _, size in small) < MIN_CELL:
            yield f"{attribute}, all small", sum(reader.row(reader.member(attribute, group)) for group, _ in small)


def leaks(scores, *, reasons=False):
    reader = Reader(scores, judge(scores, min_cell=MIN_CELL), reasons=reasons)
    return [name for name, row in secrets(scores, reader) if reader.can_tell(row)]


def test_two_people_do_not_follow_from_the_other_groups():
    groups = {"race": races(424, 101, 73, 2)}
    scores = predictions(groups, half_ill(600))
    found = judge(scores)["attributes"]["race"]
    assert (found["suppressed"], found["withheld"]) == (["islander"], ["asian"])
    asian = found["groups"]["asian"]
    assert (asian["n"], asian["positives"], asian["prevalence"]) == ("10 or more", None, None)
    # Its numbers stay, and it stays in the gaps.
    assert asian["auc"] is not None
    rates = [group["selection_rate"] for group in found["groups"].values() if group["selection_rate"] is not None]
    assert len(rates) == 3
    assert found["dpd"] == pytest.approx(max(rates) - min(rates), abs=2e-6)
    assert [found["groups"][name]["n"] for name in ("white", "black", "islander")] == [424, 101, "<10"]
    assert leaks(scores) == []


def test_nothing_is_withheld_in_vain():
    for sizes in ((424, 101, 73), (400, 80, 6, 7)):
        found = judge(predictions({"race": races(*sizes)}, half_ill(sum(sizes))))["attributes"]["race"]
        assert found["withheld"] == []
        assert [group["n"] for group in found["groups"].values()].count("10 or more") == 0


def test_a_group_without_positives_does_not_give_away_those_of_a_small_one():
    """That the Asians have none is told; so the Black people's, the next few, are not."""
    truth = np.concatenate([half_ill(525), np.zeros((73, 1)), np.ones((2, 1))])
    scores = predictions({"race": races(424, 101, 73, 2)}, truth)
    found = judge(scores)["attributes"]["race"]["groups"]
    assert [found[name]["positives"] for name in ("white", "black", "asian", "islander")] == [212, None, "<10", None]
    assert found["black"]["n"] == 101
    assert leaks(scores, reasons=True) == []


def test_a_small_group_does_not_follow_from_how_many_lack_the_attribute():
    for sizes in ((4, 0, 0, 0, 0, 50), (4,)):
        found = judge(predictions({"race": races(*sizes)}, half_ill(sum(sizes))))["attributes"]["race"]
        assert (found["n"], found["unknown"], found["groups"]["white"]["n"]) == (None, None, "<10")
    # With two groups there is no need.
    found = judge(predictions({"race": races(4, 30, 0, 0, 0, 20)}, half_ill(54)))["attributes"]["race"]
    assert (found["n"], found["unknown"], found["withheld"]) == (34, 20, ["black"])


def test_the_reader_of_these_tests_finds_a_leak_where_there_is_one():
    scores = predictions({"race": races(424, 101, 73, 2)}, half_ill(600))
    judged = judge(scores)
    judged["attributes"]["race"]["groups"]["asian"]["n"] = 73
    reader = Reader(scores, judged)
    assert reader.can_tell(reader.row(reader.member("race", "islander")))


@settings(max_examples=30, deadline=None)
@given(st.lists(SIZES, min_size=2, max_size=6), st.lists(st.floats(0, 1), min_size=6, max_size=6), st.integers(0, 99))
def test_no_small_count_of_one_attribute_follows(sizes, shares, seed):
    group = races(*sizes)
    if len(group) < 2:
        return
    rng = np.random.default_rng(seed)
    share = np.repeat(shares[: len(sizes)], sizes)
    truth = (rng.random((len(group), 2)) < share[:, None]).astype(float)
    assert leaks(predictions({"race": group}, truth[:, :1])) == []
    truth[rng.random(truth.shape) < 0.2] = np.nan
    assert leaks(predictions({"race": group}, truth, "multilabel")) == []


@settings(max_examples=15, deadline=None)
@given(st.lists(SIZES, min_size=12, max_size=12), st.integers(0, 99))
def test_no_small_cell_of_sex_and_age_follows_from_its_margins(sizes, seed):
    pairs = list(itertools.product(("female", "male", None), ("0-39", "40-59", "60+", None)))
    sex, age = (np.repeat(np.array([pair[i] for pair in pairs], dtype=object), sizes) for i in (0, 1))
    if len(sex) < 2:
        return
    truth = (np.random.default_rng(seed).random((len(sex), 1)) < 0.3).astype(float)
    assert leaks(predictions({"sex": sex, "age_group": age}, truth)) == []


@settings(max_examples=15, deadline=None)
@given(st.lists(SIZES, min_size=2, max_size=4), st.integers(0, 99))
def test_no_small_class_of_a_group_follows_from_the_other_classes(sizes, seed):
    group = races(*sizes)
    if len(group) < 2:
        return
    truth = np.eye(4)[np.random.default_rng(seed).choice(4, len(group), p=[0.6, 0.2, 0.15, 0.05])]
    assert leaks(predictions({"race": group}, truth, "multiclass")) == []
