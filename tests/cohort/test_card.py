"""The numbers of the data card, against plain loops, SciPy and what a reader could compute."""

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from fairvlm_core.cohort.card import (
    DuplicateCounts,
    make_card,
    measure_sizes,
    missing,
    prevalence,
    unpublished,
    wilson,
)
from fairvlm_core.cohort.card_page import pages, warnings
from fairvlm_core.cohort.document import Picture, Table, to_html, to_markdown
from fairvlm_core.cohort.duplicates import Duplicates
from fairvlm_core.cohort.groups import (
    NOT_SPLIT,
    attribute_groups,
    cell_counts,
    count_groups,
    known_attributes,
)
from fairvlm_core.cohort.pictures import size_of
from fairvlm_core.cohort.table import Task, cohort_table

BINARY = Task("binary", ("edema",), ("edema",), ("no edema",))
SEVERAL = Task("multilabel", ("edema", "mass"), ("edema", "mass"), ("no edema", "no mass"))
ONE_OF = Task("multiclass", ("mel", "nv", "bcc"), ("melanoma", "nevus", "basal cell carcinoma"))
GROUPS = {"sex": ("female", "male"), "age_group": ("0-39", "40+"), "race": ("asian", "black", "white")}
NOTHING = Duplicates(*(np.zeros(0, dtype=np.int64) for _ in range(7)), blank=0, complete=True)


def cohort(people, task=BINARY, groups=GROUPS):
    """A cohort from mappings, each for `n` patients of one image, or of those images that `images` says."""
    rows = []
    for k, person in enumerate(people):
        person = dict(person)
        n, images = person.pop("n", 1), person.pop("images", [{}])
        for p in range(n):
            for i, image in enumerate(images):
                rows.append(
                    {"sample_id": f"{k}-{p}-{i}", "image": f"{k}-{p}-{i}", "patient_id": f"{k}-{p}", "source": "s"}
                    | {"labels": [0] * len(task.labels)}
                    | person
                    | image
                )
    return cohort_table(rows, task=task, groups=groups)


def card_of(table, **given):
    arguments = {
        "dataset": "clinic", "source": "A clinic.", "options": {}, "counted": {}, "sizes": [(64, 64)] * len(table),
        "duplicates": NOTHING, "image_size": 64, "min_cell": 10,
    }  # fmt: skip
    return make_card(table, **(arguments | given))


@pytest.mark.parametrize(("positive", "n"), [(0, 12), (1, 12), (6, 12), (12, 12), (3, 1000), (421, 1500), (1, 1)])
def test_intervals_are_wilsons(positive, n):
    expected = binomtest(positive, n).proportion_ci(0.95, method="wilson")
    low, high = wilson(np.array([positive]), np.array([n]))
    np.testing.assert_allclose([low[0], high[0]], [expected.low, expected.high], atol=1e-12)


def test_nobody_has_no_interval():
    assert np.isnan(wilson(np.array([0]), np.array([0]))).all()


def test_images_and_patients_per_group_and_split():
    table = cohort(
        [
            {"n": 12, "sex": "female", "age_group": "0-39", "split": "train", "images": [{}, {}]},
            {"n": 30, "sex": "male", "age_group": "40+", "split": "train"},
            {"n": 15, "sex": "female", "age_group": "40+", "split": "test"},
            {"n": 11, "sex": "male", "age_group": "0-39"},
        ]
    )
    together, single = attribute_groups(table, 10)
    assert together.names == (
        ("female", "male", "unknown", "all"), ("0-39", "40+", "unknown", "all"), ("train", "test", NOT_SPLIT, "all"),
    )  # fmt: skip
    assert [groups.attributes for groups in single] == [("sex",), ("age_group",)]
    sex = single[0]
    assert sex.images.tolist() == [[24, 15, 0, 39], [30, 0, 11, 41], [0, 0, 0, 0], [54, 15, 11, 80]]
    assert sex.patients.tolist() == [[12, 15, 0, 27], [30, 0, 11, 41], [0, 0, 0, 0], [42, 15, 11, 68]]
    assert not together.hidden.any()
    assert cell_counts(together)["train"] == {
        ("female", "0-39"): 24, ("female", "40+"): 0, ("male", "0-39"): 0, ("male", "40+"): 30,
        ("unknown", "unknown"): 0,
    }  # fmt: skip
    assert known_attributes(table) == ("sex", "age_group")


def test_small_groups_are_hidden_by_patients_not_by_images():
    # Nine patients with two images each are still nine patients.
    table = cohort(
        [
            {"n": 9, "sex": "female", "age_group": "0-39", "images": [{}, {}]},
            {"n": 4, "sex": "male", "age_group": "0-39"},
            {"n": 12, "sex": "male", "age_group": "40+", "images": [{}, {}]},
        ]
    )
    together, (sex, age) = attribute_groups(table, 10)
    assert cell_counts(together) == {
        NOT_SPLIT: {
            ("female", "0-39"): None,
            ("female", "40+"): 0,
            ("male", "0-39"): None,
            ("male", "40+"): 24,
            ("unknown", "unknown"): 0,
        }
    }
    # The number of men is hidden, because it is all but nine of the patients.
    assert [sex.shown(sex.images, (g, 0)) for g in range(4)] == [None, None, 0, 46]
    assert not age.hidden.any()


def test_tables_do_not_give_one_anothers_small_groups_away():
    # The women of 40 and over follow from all women, or from everybody of 40 and over, as soon as the others are shown.
    table = cohort(
        [
            {"n": 40, "sex": "female", "age_group": "0-39"},
            {"n": 3, "sex": "female", "age_group": "40+"},
            {"n": 50, "sex": "male", "age_group": "0-39"},
            {"n": 60, "sex": "male", "age_group": "40+"},
        ]
    )
    together, (sex, age) = attribute_groups(table, 10)
    assert together.hidden[:2, :2, 0].all()
    assert not sex.hidden.any()
    assert not age.hidden.any()


def test_few_of_unknown_group_are_told_as_few():
    table = cohort(
        [
            {"n": 40, "sex": "female", "age_group": "0-39"},
            {"n": 50, "sex": "male", "age_group": "0-39"},
            {"n": 2, "sex": "male"},
            {"n": 1},
        ]
    )
    together, (sex, _) = attribute_groups(table, 10)
    assert not together.hidden.any()
    assert cell_counts(together)[NOT_SPLIT]["unknown", "unknown"] == "<10"
    assert sex.shown(sex.patients, (2, 0)) == "<10"
    assert sex.shown(sex.patients, (3, 0)) == 93


def test_a_cohort_without_demographics_is_counted_per_split():
    table = cohort([{"n": 5, "split": "train"}, {"n": 4, "split": "test"}], groups={})
    together, single = attribute_groups(table, 10)
    assert single == []
    assert cell_counts(together) == {"train": {(): 5}, "test": {(): 4}}
    table = cohort([{"n": 12, "sex": "female"}, {"n": 14, "sex": "male"}])
    together, (sex,) = attribute_groups(table, 10)
    assert together.attributes == sex.attributes == ("sex",)
    assert cell_counts(together) == {NOT_SPLIT: {("female",): 12, ("male",): 14, ("unknown",): 0}}


def shares(found):
    """Name -> (patients, positive) per label."""
    return {name: [(entry.patients, entry.positive) for entry in entries] for name, entries in found}


def test_a_patient_is_positive_if_an_image_is():
    table = cohort(
        [
            {"n": 20, "sex": "female", "images": [{"labels": [0]}, {"labels": [1]}, {"labels": [None]}]},
            {"n": 30, "sex": "female", "images": [{"labels": [0]}, {"labels": [None]}]},
            {"n": 25, "sex": "male", "images": [{"labels": [1]}]},
            {"n": 15, "sex": "male", "images": [{"labels": [0]}]},
            {"n": 40, "sex": "male", "images": [{"labels": [None]}]},
            {"n": 12, "images": [{"labels": [1]}]},
        ]
    )
    found = prevalence(table, count_groups(table, ("sex",), 10), 10)
    assert shares(found) == {"female": [(50, 20)], "male": [(40, 25)], "all": [(102, 57)]}
    low, share, high = dict(found)["female"][0].interval
    expected = binomtest(20, 50).proportion_ci(0.95, method="wilson")
    assert (low, share, high) == pytest.approx((expected.low, 0.4, expected.high))


@pytest.mark.parametrize("few", [{"labels": [1]}, {"labels": [0]}])
def test_few_with_a_label_or_without_it_are_hidden_and_do_not_follow(few):
    other = {"labels": [1 - few["labels"][0]]}
    table = cohort(
        [
            {"n": 4, "race": "asian", **few}, {"n": 40, "race": "asian", **other},
            {"n": 20, "race": "black", **few}, {"n": 30, "race": "black", **other},
            {"n": 60, "race": "white", **few}, {"n": 90, "race": "white", **other},
        ]
    )  # fmt: skip
    found = shares(prevalence(table, count_groups(table, ("race",), 10), 10))
    # With only the first one hidden, it would be what is left of all.
    assert [entry[0][1] is None for entry in found.values()] == [True, True, False, False]
    assert [entry[0][0] for entry in found.values()] == [44, 50, 150, 244]


def test_each_label_of_several_is_judged_by_those_of_whom_it_is_known():
    table = cohort(
        [
            {"n": 30, "split": "train", "labels": [1, None]},
            {"n": 20, "split": "train", "labels": [0, 1]},
            {"n": 15, "split": "test", "labels": [1, 0]},
            {"n": 15, "split": "test", "labels": [0, 1]},
        ],
        SEVERAL,
    )
    found = shares(prevalence(table, count_groups(table, (), 10), 10))
    # All 20 of the training split of whom it is known have the second one.
    assert found == {"train": [(50, 30), (20, 20)], "test": [(30, 15), (30, 15)], "all": [(80, 45), (50, 35)]}


def test_a_rare_diagnosis_does_not_follow_from_the_others():
    counts = {"female": (50, 40, 3), "male": (60, 70, 20)}
    table = cohort(
        [
            {"n": n, "sex": sex, "labels": [int(k == j) for k in range(3)]}
            for sex, numbers in counts.items()
            for j, n in enumerate(numbers)
        ],
        ONE_OF,
    )
    found = shares(prevalence(table, count_groups(table, ("sex",), 10), 10))
    assert [entry[1] for entry in found["all"]] == [110, 110, 23]
    hidden = np.array([[entry[1] is None for entry in found[sex]] for sex in counts])
    assert hidden[0, 2]
    assert (hidden.sum(axis=1) == 2).all()
    assert set(hidden.sum(axis=0)) == {0, 2}


def test_a_group_that_is_hidden_has_no_prevalence():
    table = cohort([{"n": 5, "race": "asian"}, {"n": 40, "race": "black"}, {"n": 50, "race": "white", "labels": [1]}])
    found = shares(prevalence(table, count_groups(table, ("race",), 10), 10))
    assert found == {"asian": [(None, None)], "black": [(None, None)], "white": [(50, 50)], "all": [(95, 50)]}


def test_missing_values_per_split():
    table = cohort(
        [
            {"n": 30, "split": "train", "sex": "female", "age": 50.0, "age_group": "40+", "note": "x"},
            {"n": 10, "split": "train", "age": 0.0, "age_group": "0-39", "note": ""},
            {"n": 20, "split": "test", "sex": "male", "labels": [None]},
        ]
    )
    assert dict(missing(table, 10)) == {
        "note": ["25.0 %", "100 %", "50.0 %"],
        "age": ["0 %", "100 %", "33.3 %"],
        "sex": ["25.0 %", "0 %", "16.7 %"],
        "label edema": ["0 %", "100 %", "33.3 %"],
    }
    assert unpublished(table) == ["modality", "race", "ethnicity", "language"]


def test_a_few_missing_values_are_told_as_few():
    table = cohort([{"n": 197, "sex": "female"}, {"n": 3}])
    assert dict(missing(table, 10))["sex"] == ["<5 %", "<5 %"]
    table = cohort([{"n": 3, "sex": "female"}, {"n": 197}])
    assert dict(missing(table, 10))["sex"] == [">95 %", ">95 %"]


def test_sizes_and_what_the_square_cuts():
    sizes = measure_sizes([(100, 100), (100, 100), (200, 100), (100, 400), (50, 50)], 64)
    assert sizes.width == (50, 100, 200)
    assert sizes.height == (50, 100, 400)
    assert sizes.common[:2] == [(100, 100, 0.4), (50, 50, 0.2)]
    assert sizes.different == 4
    assert sizes.lost_median == 0
    assert sizes.lost_most == 0.75
    assert sizes.large_loss == 0.4
    assert sizes.enlarged == 0.2
    assert size_of(np.zeros((30, 40, 3), np.uint8)) == size_of(Image.new("L", (40, 30))) == (40, 30)


def test_the_card_tells_what_should_be_looked_at():
    table = cohort([{"n": 40, "split": "train"}, {"n": 20, "split": "test"}])
    true, false = np.array([True]), np.array([False])
    pairs = {"a": np.array([0]), "b": np.array([45]), "distance": np.array([2]), "identical": false}
    leak = Duplicates(**pairs, same_patient=false, across=true, labels_differ=true, blank=3, complete=False)
    card = card_of(table, duplicates=leak)
    assert card.duplicates == DuplicateCounts(
        {
            "within a patient": {"pairs": 0, "identical": 0, "labels differ": 0},
            "between patients": {"pairs": 0, "identical": 0, "labels differ": 0},
            "across splits": {"pairs": 1, "identical": 0, "labels differ": 1},
        },
        blank=3,
        complete=False,
    )
    told = warnings(card)
    assert len(told) == 3
    assert "different splits" in told[0]
    assert "duplicates.csv" in told[0]
    assert told[1].startswith("3 pictures")
    for page in pages(card, Picture("cohort.png", "Counts", b"png")):
        assert "1 pair of pictures that look the same" in page
    assert warnings(card_of(table)) == []


def test_the_page_says_it_all():
    people = [
        {"n": 40, "sex": sex, "age_group": age, "labels": [label], "note": note, "modality": "X-ray"}
        for sex in ("female", "male")
        for age in ("0-39", "40+")
        for label, note in ((0, "A 50-year-old woman without edema."), (1, "Edema."))
    ]
    table = cohort(people)
    card = card_of(
        table, counted={"excluded_view": 7, "without_age": 3, "without_sex": 0}, options={"views": ["PA", "AP"]}
    )
    markdown, html = pages(card, Picture("cohort.png", "Counts", b"\x89PNG"))
    for line in (
        "# Data card: clinic",
        "320 images of 320 patients · binary task: edema · X-ray",
        "Read by the adapter clinic with views: \\['PA', 'AP'\\]",
        "| excluded view | 7 |",
        "| without age | &lt;10 |",
        "| edema | edema | no edema |",
        "![Counts](cohort.png)",
        "| female | 0-39 | 80 |",
        "| all | 320 |",
        "| all |  | 320 | 160 | 50.0 % | 44.6 to 55.4 % |",
        "| sex | female | 160 | 80 | 50.0 % | 42.3 to 57.7 % |",
        "| note | 0 % |",
        "Known of no image: age, race, ethnicity, language.",
        "All pictures have 64 x 64 pixels.",
        "| across splits | 0 | 0 | 0 |",
        "| edema | 100 % | 100 % | 0 % | 0 % |",
        "| all |  | 50.0 % | 50.0 % | 0 % | 0 % |",
    ):
        assert line in markdown, line
    assert "without sex" not in markdown
    assert html.count("<table>") == markdown.count("\n| ---")
    assert "data:image/png;base64,iVBORw==" in html
    assert html.count("<svg") == 5


def test_several_labels_are_a_table_per_attribute():
    table = cohort(
        [
            {"n": 20, "sex": sex, "labels": labels, "split": split}
            for sex in ("female", "male")
            for labels in ([0, 1], [1, 0])
            for split in ("train", "test")
        ],
        SEVERAL,
    )
    markdown, _ = pages(card_of(table), Picture("cohort.png", "Counts", b""))
    assert "| Label | all | train | test |" in markdown
    assert "| Label | female | male |" in markdown
    assert "| mass | 50.0 % (39.3 to 60.7) | 50.0 % (39.3 to 60.7) |" in markdown


def test_names_cannot_break_the_page():
    evil = "<script>alert(1)</script>|*x*"
    content = (evil, evil, [evil], [(evil, [evil, Table(evil, [evil], [[evil]])])])
    markdown, html = to_markdown(*content), to_html(*content)
    assert "<script" not in html.replace("<style>", "")
    assert "<script" not in markdown
    assert markdown.count("\\|\\*x\\*") == 8
    assert "default-src 'none'" in html
    assert "http:" not in html
    assert "https:" not in html
