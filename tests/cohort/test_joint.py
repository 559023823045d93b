"""The data card and the strata together: a reader who knows both finds out nothing that one of them hides."""

import json
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from attacker import Attacker, leaks, small_counts
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_cohorts import cases

from fairvlm_core.cohort import joint, kinds
from fairvlm_core.cohort.card_counts import FILE, counts_of, read_counts
from fairvlm_core.cohort.groups import attribute_groups, count_groups
from fairvlm_core.cohort.strata import plan
from fairvlm_core.cohort.table import SPLITS, Task, cohort_table
from fairvlm_core.errors import CohortError, FairVLMError
from fairvlm_core.steps.stratify import Config, summary

LEAST = 10
TASK = Task("binary", ("edema",), ("edema",), ("no edema",))
GROUPS = {"sex": ("female", "male"), "age_group": ("0-39", "40-59", "60+"), "race": ("asian", "white")}
ATTRIBUTES = [("sex", "age_group"), ("sex",), ("age_group",), ("race",), ("sex", "race"), ("sex", "age_group", "race")]
SIZES = st.one_of(st.just(0), st.integers(1, 9), st.integers(10, 30), st.integers(20, 120))


def cohort(sizes, *, race=None, images=lambda i: 1):
    """Patients of each (sex, age group, official split), of one image or several."""
    rows = []
    for k, ((sex, age_group, split), size) in enumerate(sizes.items()):
        for i in range(size):
            rows += [
                {
                    "sample_id": f"{k} {i} {j}",
                    "patient_id": f"{k} {i}",
                    "image": "i",
                    "labels": [0],
                    "sex": sex,
                    "age_group": age_group,
                    "race": race(k, i) if race else None,
                    "split": split,
                    "source": "made",
                }
                for j in range(images(i))
            ]
    return cohort_table(rows, task=TASK, groups=GROUPS)


@dataclass
class Documents:
    """What is published of a cohort, and what is protected."""

    card: dict
    strata: dict
    before: object
    after: object

    def leaks(self):
        return leaks(self.card, self.strata, self.before, self.after, LEAST)


def publish(table, config, folder):
    together, groups = attribute_groups(table, LEAST)
    counted = SimpleNamespace(splits=count_groups(table, (), LEAST), together=together, groups=groups, min_cell=LEAST)
    (folder / FILE).write_text(json.dumps(counts_of(counted)))
    decided = plan(kinds.of_table(table), config)
    strata = summary(decided, config.attributes, min_cell=LEAST, card=read_counts(folder))
    before = table.to_pandas()
    after = before.assign(split=[SPLITS[split] for split in decided.split])
    return Documents(counts_of(counted), strata, before, after)


def shown(documents, split):
    return [cell[split] for cell in documents.strata["cells"]]


def test_five_of_unknown_group_do_not_follow_from_twenty_five(tmp_path):
    sizes = {(sex, age, None): 200 for sex, age in product(GROUPS["sex"], GROUPS["age_group"])}
    config = Config(attributes=("sex",), validation_share=0.2, test_share=0, oversample_cap=1, majority_cap=None)
    documents = publish(cohort(sizes | {(None, "60+", None): 25}), config, tmp_path)
    of_card = [entry for entry in documents.card["counts"] if entry["groups"] == {"sex": "unknown"}]
    assert [entry["images"] for entry in of_card] == [25]
    unknown = documents.after["sex"].isna()
    assert (documents.after[unknown]["split"] == "validation").sum() == 5
    assert documents.strata["unknown"] == {"train_before": None, "train_after": None, "validation": None, "test": 0}
    # A second cell is hidden with it, in both splits, and nothing else.
    assert [shown(documents, split).count(None) for split in ("train_before", "validation", "test")] == [1, 1, 0]
    assert documents.leaks() == []
    # So it was published before.
    documents.strata["unknown"]["train_before"] = 20
    assert "strata unknown ('validation',)" in documents.leaks()


def test_a_second_cell_that_the_card_hides_is_hidden_in_the_strata(tmp_path):
    sizes = {key: 40 + 10 * k for k, key in enumerate(product(GROUPS["sex"], GROUPS["age_group"], SPLITS))}
    sizes["female", "0-39", "validation"] = 6
    documents = publish(cohort(sizes), Config(), tmp_path)
    of_card = {
        tuple(entry["groups"].values())
        for entry in documents.card["counts"]
        if entry["images"] is None and entry["split"] == "validation"
    }
    of_strata = {(cell["sex"], cell["age_group"]) for cell in documents.strata["cells"] if cell["validation"] is None}
    assert len(of_strata) == 4
    assert of_strata == {names for names in of_card if len(names) == 2}
    assert documents.leaks() == []
    # The one that is smallest in the strata alone gives the six away.
    documents.strata["cells"][-1]["validation"] = sizes["male", "60+", "validation"]
    documents.strata["cells"][-2]["validation"] = sizes["male", "40-59", "validation"]
    assert any("card" in name for name in documents.leaks())


def test_where_nothing_is_small_all_is_shown(tmp_path):
    sizes = dict.fromkeys(product(GROUPS["sex"], GROUPS["age_group"], SPLITS), 30)
    documents = publish(cohort(sizes), Config(), tmp_path)
    assert all(count == 30 for split in ("train_before", "validation", "test") for count in shown(documents, split))


def test_what_an_attribute_that_is_not_balanced_hides_in_the_card_stays_hidden(tmp_path):
    """Six are asian: the card hides them under race, and neither sex nor age tells of them."""
    sizes = dict.fromkeys(product(GROUPS["sex"], GROUPS["age_group"], SPLITS), 60)
    table = cohort(sizes, race=lambda k, i: "asian" if k in (0, 5) and i < 3 else "white")
    for attributes in (("race",), ("sex", "race"), ("sex", "age_group", "race")):
        documents = publish(table, Config(attributes=attributes, allow_empty_cells=True), tmp_path)
        assert documents.leaks() == []
        attacker = Attacker(documents.card, documents.strata)
        assert len(list(small_counts(attacker, documents.card, documents.before, documents.after, LEAST))) > 2


@st.composite
def cohorts(draw):
    """Groups of all sizes, some of them unknown, with official splits, without or with some."""
    official = draw(st.sampled_from([(None,), SPLITS, ("train", "test"), ("train", "test", None)]))
    unknown = draw(st.sampled_from([(), (None,)]))
    places = list(product((*GROUPS["sex"], *unknown), (*GROUPS["age_group"], *unknown), official))
    sizes = draw(st.lists(SIZES, min_size=len(places), max_size=len(places)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    races = rng.choice(np.array(["asian", "white", None], dtype=object), 120, p=[0.06, 0.92, 0.02])
    several = rng.random(120) < 0.2
    with_race = draw(st.booleans())
    table = cohort(
        {
            (sex, age, split): size // (3 if None in (sex, age) else 1)
            for (sex, age, split), size in zip(places, sizes, strict=True)
        },
        race=(lambda k, i: races[(k + i) % 120]) if with_race else None,
        images=lambda i: 1 + int(several[i]),
    )
    attributes = draw(st.sampled_from(ATTRIBUTES if with_race else ATTRIBUTES[:3]))
    return table, Config(attributes=attributes, allow_empty_cells=True, seed=draw(st.integers(0, 99)))


@settings(max_examples=25, deadline=None)
@given(cohorts())
def test_no_small_count_follows_from_both(tmp_path_factory, drawn):
    table, config = drawn
    assume(len(table))
    try:
        documents = publish(table, config, tmp_path_factory.mktemp("card"))
    except FairVLMError:  # there are too few patients to split
        assume(False)
    assert documents.leaks() == []


@settings(max_examples=15, deadline=None)
@given(cases())
def test_nor_where_a_patient_is_in_several_groups(tmp_path_factory, case):
    assume(len(case.table))
    try:
        documents = publish(case.table, case.config, tmp_path_factory.mktemp("card"))
    except FairVLMError:
        assume(False)
    assert documents.leaks() == []


@pytest.mark.parametrize("limit", ["MOST_NUMBERS", "MOST_PRODUCTS"])
def test_of_very_many_cells_with_something_to_hide_none_is_shown(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(joint, limit, 17)
    sizes = dict.fromkeys(product(GROUPS["sex"], GROUPS["age_group"], SPLITS), 30)
    assert None not in shown(publish(cohort(sizes), Config(), tmp_path), "train_before")
    documents = publish(cohort(sizes | {("male", "60+", "test"): 3}), Config(), tmp_path)
    assert all(count is None for split in ("train_before", "train_after", "test") for count in shown(documents, split))
    assert documents.strata["total"]["train_before"] == 180
    assert documents.leaks() == []


def test_a_cohort_without_a_card_and_one_with_a_broken_one(tmp_path):
    assert read_counts(tmp_path) == []
    for text in ("[]", '{"counts": [{}]}', '{"counts": 3}', '{"counts": [{"groups": 3, "split": "all"}]}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(CohortError, match="no list of the counts") as caught:
            read_counts(tmp_path)
        assert str(tmp_path / FILE) in caught.value.where
