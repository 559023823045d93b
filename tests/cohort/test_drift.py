"""A cohort beside its reference: measures against scipy and plain loops, leaks as errors, small groups suppressed."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fairvlm_core.cohort import expectation_drift as drift
from fairvlm_core.cohort.expectation_reference import Reference, read_reference
from fairvlm_core.cohort.expectation_shares import Part, distance, hidden, independent
from fairvlm_core.cohort.expectations import examine, refuse
from fairvlm_core.cohort.table import SCHEMA, SPLITS, Task, age_group, cohort_table, write_cohort
from fairvlm_core.errors import CohortError, ConfigError
from fairvlm_core.steps.validate import Config

TASK = Task("multilabel", ("edema", "fracture"), ("edema", "a fracture"), ("no edema", "no fracture"))
GROUPS = {"sex": ("female", "male"), "age_group": ("0-39", "40-59", "60+"), "language": ("english", "spanish", "other")}
SPLIT_OF = ("train", "train", "train", "validation", "test")


def people(
    count, *, seed=0, first=0, female=0.5, age=50.0, language=(0.7, 0.2, 0.1), edema=0.3, unknown=0.05, split=True
):
    """Rows of `count` patients, one to three images each; `edema` may be a function of (sex, age group)."""
    random, rows = np.random.default_rng(seed), []
    for patient in range(first, first + count):
        sex = "female" if random.random() < female else "male"
        years = float(np.clip(random.normal(age, 15), 0, 95).round())
        spoken = str(random.choice(GROUPS["language"], p=language))
        group = age_group(years, (40, 60))
        share = edema(sex, group) if callable(edema) else edema
        for picture in range(1 + patient % 3):
            name = f"{patient}-{picture}"
            rows.append(
                {
                    "sample_id": name,
                    "patient_id": f"p{patient}",
                    "image": f"{name}.png",
                    "labels": [int(random.random() < share), int(random.random() < 0.1) if picture else None],
                    "sex": sex if random.random() >= unknown else None,
                    "age": years,
                    "age_group": group,
                    "language": spoken,
                    "split": SPLIT_OF[patient % 5] if split else None,
                    "source": "made",
                }
            )
    return rows


def table_of(rows, groups=GROUPS, task=TASK):
    return cohort_table(rows, task=task, groups=groups)


def compared(now, before, *, balanced=False, groups=GROUPS, **config):
    """The examination of rows beside reference rows."""
    table = table_of(now)
    reference = Reference(table_of(before, groups), balanced)
    return examine(table, table.column("image").combine_chunks(), Config(min_group=1, **config), reference)


def broken(found):
    return {check.rule: check for check in found.checks if not check.success}


def check_of(found, start):
    (check,) = (check for check in found.checks if check.rule.startswith(start))
    return check


BEFORE = people(400, seed=1)
AFTER = people(400, seed=2, first=1000)


def test_as_many_of_the_same_people_are_no_drift():
    found = compared(AFTER, BEFORE)
    assert broken(found) == {}
    assert {check.severity for check in found.checks if check.column == "sex"} == {"error", "warning"}
    assert found.drift.rows == len(AFTER)
    assert found.drift.reference_rows == len(BEFORE)
    assert found.drift.figures["images_seen"] == 0


# Leaks


@pytest.mark.parametrize("was", [*SPLITS, None])
@pytest.mark.parametrize("now", [*SPLITS, None])
def test_a_patient_who_changes_split(was, now):
    before = [row | {"split": was} if row["patient_id"] == "p7" else row for row in BEFORE]
    after = AFTER + [row | {"split": now, "image": "x" + row["image"]} for row in before if row["patient_id"] == "p7"]
    found = broken(compared(after, before))
    order = {split: place for place, split in enumerate(SPLITS)}
    if was is None or was == now:
        assert found == {}
    elif now is None:
        (check,) = found.values()
        assert check.rule == "every patient who has a split in the reference has one here"
        assert check.severity == "warning"
    else:
        (check,) = found.values()
        assert check.severity == ("error" if order[now] > order[was] else "warning")
        assert (check.row, check.column) == (len(AFTER), "split")
        assert check.rule.startswith("no patient went from")


def test_a_leak_stops_and_tells_its_place_but_not_the_patient():
    after = [*AFTER, BEFORE[0] | {"split": "test", "image": "new.png"}]
    found = compared(after, BEFORE)
    with pytest.raises(CohortError) as caught:
        refuse(found.checks, where="data/cohort.parquet")
    assert caught.value.where == f"data/cohort.parquet, row {len(AFTER)}, column split"
    assert "1 of" in caught.value.what
    assert "in the reference" in caught.value.mend
    assert "p0" not in str(caught.value)
    assert found.drift is None


def test_a_patient_of_two_splits_was_trained_on():
    """A damaged reference: the split that was nearest to training counts."""
    before = [*BEFORE, *(row | {"split": "train", "sample_id": "more"} for row in BEFORE[:1])]
    before[0] = before[0] | {"split": "test"}
    assert check_of(compared([*AFTER, BEFORE[0] | {"split": "validation"}], before), "no patient went from train").row


def test_an_image_under_another_name_is_seen():
    leaked = BEFORE[0] | {"patient_id": "new name", "split": "test"}
    found = broken(compared([*AFTER, leaked], BEFORE))
    assert [check.severity for check in found.values()] == ["error", "warning"]
    first, second = found
    assert first.startswith("no image went from train to validation or test under another patient's name")
    assert second == "an image that the reference has belongs to the same patient there"
    harmless = leaked | {"split": "train"}
    assert list(broken(compared([*AFTER, harmless], BEFORE))) == [second]


def test_moves_against_a_loop():
    random = np.random.default_rng(3)

    def shuffled(rows, splits):
        return [
            row | {"split": splits[random.integers(len(splits))], "patient_id": f"p{random.integers(30)}"}
            for row in rows
        ]

    before, after = (shuffled(BEFORE[:80], (*SPLITS, None)) for _ in range(2))
    table, reference = table_of(after), Reference(table_of(before))
    found = examine(table, table.column("image").combine_chunks(), Config(min_group=1), reference)
    order = {split: place for place, split in enumerate(SPLITS)} | {None: 9}
    nearer = further = undecided = elsewhere = renamed = 0
    for row in after:
        was = min((order[old["split"]] for old in before if old["patient_id"] == row["patient_id"]), default=9)
        image_was = min((order[old["split"]] for old in before if old["image"] == row["image"]), default=9)
        now = order[row["split"]]
        nearer += was < now < 9
        further += now < was < 9
        undecided += was < 9 and now == 9
        renamed += was == 9 and image_was < now < 9
        elsewhere += any(o["image"] == row["image"] and o["patient_id"] != row["patient_id"] for o in before)
    assert min(nearer, further, undecided, elsewhere) > 3
    counts = [
        int(check.observed.split(" of ")[0])
        for check in found.checks
        if check.rule.startswith(("no patient went", "no image went", "every patient who", "an image that"))
    ]
    assert counts == [nearer, renamed, further, undecided, elsewhere]


def test_the_same_images_again():
    found = compared(BEFORE, BEFORE)
    assert list(broken(found)) == ["some images are new since the reference"]
    assert found.drift.figures["images_seen"] == 1
    found = compared([*BEFORE, *AFTER[:100]], BEFORE)
    assert broken(found) == {}
    assert found.drift.figures["images_seen"] == pytest.approx(len(BEFORE) / (len(BEFORE) + 100))


# Measures


def known(rows, name):
    return [row[name] for row in rows if row[name] is not None]


@pytest.mark.parametrize("attribute", GROUPS)
def test_divergence_agrees_with_scipy(attribute):
    after = people(300, seed=5, first=1000, female=0.8, age=62.0, language=(0.4, 0.6, 0.0))
    found = compared(after, BEFORE)
    now, before = (Counter(known(rows, attribute)) for rows in (after, BEFORE))
    smooth = np.array([before[group] + 0.5 for group in GROUPS[attribute]])
    expected = stats.entropy([now[group] for group in GROUPS[attribute]], smooth)
    check = check_of(found, f"the groups of {attribute} are")
    assert check.observed.startswith(f"divergence {expected:.3f}, at most 0.050")
    assert found.drift.figures[f"divergence_{attribute}"] == pytest.approx(expected, abs=5e-5)
    assert not check.success
    assert check.severity == "warning"
    assert check.expectation == "expect_column_kl_divergence_to_be_less_than"
    assert check_of(compared(after, BEFORE, max_divergence=expected + 1e-6), f"the groups of {attribute} are").success
    assert not check_of(
        compared(after, BEFORE, max_divergence=expected - 1e-6), f"the groups of {attribute} are"
    ).success


def test_chance_widens_the_limit_of_the_divergence():
    """Twice half the divergence times n m / (n + m) follows chi-square where nothing changed."""
    found = compared(people(30, seed=6, first=1000, unknown=0), people(40, seed=7, unknown=0), max_divergence=0.0)
    sizes = [independent(np.repeat(np.arange(count), 1 + np.arange(count) % 3)) for count in (30, 40)]
    for attribute, freedom in (("sex", 1), ("language", 2)):
        limit = stats.chi2.isf(0.001, freedom) / 2 * sum(1 / size for size in sizes)
        assert check_of(found, f"the groups of {attribute} are").observed.endswith(f"at most {limit:.3f} allowed")


def test_age_agrees_with_scipy():
    after = people(300, seed=5, first=1000, age=56.0)
    expected = stats.ks_2samp(known(after, "age"), known(BEFORE, "age")).statistic
    found = compared(after, BEFORE)
    assert found.drift.figures["age_shift"] == pytest.approx(expected, abs=5e-5)
    check = check_of(found, "the ages")
    assert check.observed == f"Kolmogorov-Smirnov distance {expected:.3f}, at most 0.161 allowed"
    assert not check.success
    sizes = [
        independent(np.repeat(np.arange(count), 1 + (np.arange(count) + first) % 3))
        for count, first in ((300, 1000), (400, 0))
    ]
    assert stats.kstwobign.isf(0.001) * np.sqrt(sum(1 / size for size in sizes)) == pytest.approx(0.161, abs=5e-4)
    assert check_of(compared(after, BEFORE, max_age_shift=expected + 1e-9), "the ages").success


@given(*(st.lists(st.integers(0, 9), min_size=1, max_size=30) for _ in range(2)))
def test_the_distance_of_two_samples(x, y):
    apart = [abs(np.mean([a <= at for a in x]) - np.mean([b <= at for b in y])) for at in range(10)]
    assert distance(np.array(x, float), np.array(y, float)) == pytest.approx(max(apart))


def effective(rows):
    """Kish's size, as a loop."""
    images = Counter(row["patient_id"] for row in rows)
    return sum(images.values()) ** 2 / sum(n**2 for n in images.values())


def test_prevalence_agrees_with_a_loop():
    after = people(500, seed=5, first=1000, edema=lambda sex, group: 0.8 if (sex, group) == ("female", "60+") else 0.3)
    found = compared(after, BEFORE)
    cells = [None, *((sex, group) for sex in GROUPS["sex"] for group in GROUPS["age_group"])]
    expected, lines = set(), {}
    for cell in cells:
        for j, label in enumerate(TASK.labels):
            shares, sizes, angles = [], [], []
            for rows in (BEFORE, after):
                inside = [r for r in rows if cell in (None, (r["sex"], r["age_group"])) and r["labels"][j] is not None]
                shares.append(sum(row["labels"][j] for row in inside) / len(inside))
                sizes.append(effective(inside))
                angles.append(2 * np.arcsin(((shares[-1] * sizes[-1] + 0.375) / (sizes[-1] + 0.75)) ** 0.5))
            shift = abs(angles[0] - angles[1])
            limit = max(0.1, stats.norm.isf(0.0005) * (1 / sizes[0] + 1 / sizes[1]) ** 0.5)
            name = label if cell is None else f"{label} in {' '.join(cell)}"
            lines[name] = shares
            if shift > limit:
                expected.add(name)
    assert "edema in female 60+" in expected
    check = check_of(found, "every label is as frequent")
    assert (
        check.observed == f"{len(expected)} of 14 comparisons break it: {', '.join(n for n in lines if n in expected)}"
    )
    panels = {panel.title: panel for panel in found.drift.panels}
    told = [*panels["labels"].lines, *panels["labels by sex and age group"].lines]
    assert [line.name for line in told] == list(lines)
    assert {line.name for line in told if line.changed} == expected
    for line in told:
        if line.before is not None:
            assert [line.before, line.now] == pytest.approx(lines[line.name])


def test_cohens_h_is_what_the_help_text_says():
    def h(p, q):
        return 2 * np.arcsin(np.sqrt(p)) - 2 * np.arcsin(np.sqrt(q))

    assert h(0.55, 0.50) == pytest.approx(0.1, abs=0.001)
    assert h(0.05, 0.03) == pytest.approx(0.1, abs=0.005)


def test_a_rare_label_of_few_patients_does_not_seem_to_change():
    """Without Anscombe's correction, chance exceeds its own limit seven times too often here."""
    random, limit = np.random.default_rng(0), stats.norm.isf(0.0005) * (1 / 20 + 1 / 40) ** 0.5
    counts = random.binomial(20, 0.15, 4000), random.binomial(40, 0.15, 4000)
    angles = [
        np.array([Part(k / n, n, n, k, n - k).angle for k in count]) for count, n in zip(counts, (20, 40), strict=True)
    ]
    plain = [2 * np.arcsin(np.sqrt(count / n)) for count, n in zip(counts, (20, 40), strict=True)]
    assert np.mean(np.abs(angles[0] - angles[1]) > limit) < 0.002
    assert np.mean(np.abs(plain[0] - plain[1]) > limit) > 0.005


def test_unknown_agrees_with_a_loop():
    after = people(500, seed=5, first=1000, unknown=0.25)
    found = compared(after, BEFORE)
    check = check_of(found, "attributes, ages and labels are as often unknown")
    assert check.observed == "1 of 6 comparisons break it: sex"
    (panel,) = (panel for panel in found.drift.panels if panel.title == "unknown")
    line = next(line for line in panel.lines if line.name == "sex")
    assert line.changed
    for value, rows in ((line.before, BEFORE), (line.now, after)):
        assert value == pytest.approx(sum(row["sex"] is None for row in rows) / len(rows))
    assert not check_of(compared(after, BEFORE, max_unknown_shift=0.1), "attributes").success
    assert check_of(compared(after, BEFORE, max_unknown_shift=0.25), "attributes").success


@pytest.mark.parametrize("seed", range(3))
def test_a_change_that_chance_makes_is_not_told(seed):
    """Drawn from the same people again and again, small cohorts exceed the fixed limits and are not warned about."""
    config, found = Config(), []
    for draw in range(30):
        sides = [
            drift.Side(
                np.repeat(np.arange(60), 3),
                {"sex": np.repeat(random.integers(0, 2, 60), 3), "age_group": np.repeat(random.integers(0, 3, 60), 3)},
                np.repeat(random.normal(50, 15, 60).clip(0, 99), 3),
                np.repeat((random.random((60, 2)) < (0.3, 0.05)).astype(np.int8), 3, axis=0),
            )
            for random in (np.random.default_rng((seed, draw, side)) for side in range(2))
        ]
        groups = {"sex": GROUPS["sex"], "age_group": GROUPS["age_group"]}
        found += drift._age(*sides, config)[0]
        found += drift._prevalence(*sides, TASK.labels, groups, config)[0]
        found += drift._unknown(*sides, TASK.labels, config)[0]
        for name, names in groups.items():
            found += drift._groups(name, names, *sides, 10)[0]
    fixed = {"age": config.max_age_shift, "prevalence": config.max_prevalence_shift}
    assert sum(change.shift > fixed[change.measure] for change in found if change.measure in fixed) > 100
    assert sum(change.changed for change in found) <= 3


# Groups that come and go


def speaking(rows, language, count):
    """The rows, with the first `count` patients speaking the language and nobody else."""
    patients = list(dict.fromkeys(row["patient_id"] for row in rows))[:count]
    return [row | {"language": language if row["patient_id"] in patients else "english"} for row in rows]


@pytest.mark.parametrize(("count", "told"), [(10, True), (9, False), (0, False)])
def test_a_group_of_enough_patients_that_comes_or_goes_is_told(count, told):
    with_group, without = speaking(BEFORE, "spanish", count), speaking(AFTER, "spanish", 0)
    gone = compared(without, with_group, max_divergence=9)
    new = compared(with_group, without, max_divergence=9)
    assert check_of(gone, "no group is new").success
    assert check_of(new, "no group has vanished").success
    for check in (check_of(gone, "no group has vanished"), check_of(new, "no group is new")):
        assert check.success != told
        assert check.observed == (
            "1 of 8 comparisons break it: language spanish" if told else "0 of 8 comparisons break it"
        )


def test_that_nobody_of_a_group_is_among_a_few_is_no_news():
    before, after = speaking(BEFORE, "spanish", 12), speaking(AFTER[:40], "spanish", 0)
    assert (1 - sum(row["language"] == "spanish" for row in before) / len(before)) ** effective(after) > 0.001
    assert "no group has vanished since the reference" not in broken(compared(after, before, max_divergence=9))


def test_other_groups_are_told_and_not_compared():
    younger = [row | {"age_group": age_group(row["age"], (30, 60))} for row in BEFORE]
    groups = GROUPS | {"age_group": ("0-29", "30-59", "60+"), "race": ("asian", "black")}
    del groups["language"]
    found = compared(AFTER, [row | {"language": None} for row in younger], groups=groups)
    assert [check.observed for check in broken(found).values()] == [
        "3 of 4 comparisons break it: age_group, race, language"
    ]
    assert [panel.title for panel in found.drift.panels] == ["sex", "age", "unknown", "labels"]


# A reference that was balanced


def balanced(rows):
    """Training rows of women twice, those of men left out."""
    kept = [row for row in rows if row["split"] != "train" or row["sex"] == "female"]
    return kept + [row | {"copy": 1} for row in kept if row["split"] == "train"]


@pytest.mark.parametrize("split", [True, False])
def test_training_rows_that_were_balanced_are_not_compared(split):
    after = people(400, seed=2, first=1000, split=split)
    assert "the groups of sex are distributed as in the reference" in broken(compared(after, balanced(BEFORE)))
    found = compared(after, balanced(BEFORE), balanced=True)
    assert broken(found) == {}
    assert found.drift.balanced
    assert found.drift.reference_rows == sum(row["split"] != "train" for row in BEFORE)
    assert found.drift.rows == sum(row["split"] != "train" or not split for row in after)


@pytest.mark.parametrize("official", ["validation", "test"])
def test_an_official_split_is_compared_with_itself(official):
    """The official split is of men alone; what stratify drew from the others is compared with the others."""

    def release(first, seed):
        men = [row | {"sex": "male"} for row in people(80, seed=seed, first=first + 5000) if row["sex"]]
        others = people(320, seed=seed + 1, first=first, female=0.8)
        return [row | {"split": official} for row in men], others

    men, others = release(1000, seed=11)
    after = men + [row | {"split": None} for row in others]
    men, others = release(0, seed=21)
    drawn = ({"validation", "test"} - {official}).pop()
    before = men + [row | {"split": drawn if int(row["patient_id"][1:]) % 4 == 0 else "train"} for row in others]
    found = compared(after, before, balanced=True)
    assert broken(found) == {}
    assert found.drift.rows == sum(row["split"] is None for row in after)
    assert found.drift.reference_rows == sum(row["split"] == drawn for row in before)
    assert "the groups of sex are distributed as in the reference" in broken(
        compared(after, [row for row in before if row["split"] != "train"])
    )


def test_a_reference_without_validation_and_test_is_not_compared():
    found = compared(AFTER, [row for row in balanced(BEFORE) if row["split"] == "train"], balanced=True)
    assert broken(found) == {}
    assert found.drift.panels == []
    assert "distributions" not in found.suites


def test_a_repeated_row_counts_once():
    once = compared(AFTER, BEFORE)
    again = compared([*AFTER, *(row | {"copy": 1} for row in AFTER[:200])], BEFORE)
    assert again.drift.panels == once.drift.panels
    assert again.drift.rows == once.drift.rows


# What may be shown


def test_small_groups_are_neither_shown_nor_found_by_subtraction():
    after = speaking(AFTER, "spanish", 4)
    after = [row | {"language": "other"} if row["patient_id"] in ("p1100", "p1101") else row for row in after]
    found = compared(after, BEFORE)
    (panel,) = (panel for panel in found.drift.panels if panel.title == "language")
    assert [line.now is None for line in panel.lines] == [True, True, True]  # the two are fewer than ten together
    after = speaking(AFTER, "spanish", 4)
    after = [row | {"language": "other"} if int(row["patient_id"][1:]) > 1340 else row for row in after]
    (panel,) = (panel for panel in compared(after, BEFORE).drift.panels if panel.title == "language")
    assert [line.now is None for line in panel.lines] == [False, True, True]
    assert [line.before is None for line in panel.lines] == [False, True, True]


def test_no_share_of_a_group_is_among_great_expectations_results():
    found = compared(AFTER, BEFORE)
    for result in found.suites["distributions"]["results"]:
        assert result["expectation_config"]["kwargs"]["partition_object"]["weights"] is None
        assert set(result["result"]) == {"observed_value"}
    told = json.dumps(found.suites)
    for key in ("index_list", "partial_unexpected", "fingerprint", 'weights": [', "details"):
        assert key not in told


def test_a_label_of_few_patients_is_judged_but_not_shown():
    rare = [row | {"labels": [int(row["patient_id"] in ("p1001", "p1004")), row["labels"][1]]} for row in AFTER]
    found = compared(rare, BEFORE)
    (panel,) = (panel for panel in found.drift.panels if panel.title == "labels")
    assert (panel.lines[0].name, panel.lines[0].before, panel.lines[0].now) == ("edema", None, None)
    assert panel.lines[0].changed


@pytest.mark.parametrize("side", ["now", "before"])
def test_a_handful_of_patients_is_not_compared(side):
    few, many = people(9, seed=3, first=1000, female=1.0, edema=1.0), BEFORE
    found = compared(few, many) if side == "now" else compared(many, few)
    assert {panel.title for panel in found.drift.panels} == {"unknown", *GROUPS}
    for line in (line for panel in found.drift.panels if panel.title != "unknown" for line in panel.lines):
        assert (line.now if side == "now" else line.before) in (None, 0.0)
    assert not [check for check in found.checks if check.expectation == "expect_column_kl_divergence_to_be_less_than"]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 20))
def test_hidden_cells(patients, least):
    patients = np.array(patients)
    cells = hidden(patients, least)
    assert not (patients[~cells] > 0)[patients[~cells] < least].any()
    assert (patients[cells] > 0).all()
    if cells.any():
        rest = patients[~cells]
        assert patients[cells].sum() >= least or not rest.any()


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_a_part_against_a_loop(rows):
    patient, inside = (np.array(column) for column in zip(*rows, strict=True))
    part = Part.of(patient, inside)
    images = Counter(patient.tolist())
    assert part.share == pytest.approx(sum(inside) / len(rows))
    assert part.size == pytest.approx(len(rows) ** 2 / sum(n**2 for n in images.values()))
    assert part.patients == len(images)
    assert part.inside == len({who for who, yes in rows if yes})
    assert part.outside == len({who for who, yes in rows if not yes})


# The reference


@pytest.fixture
def folder(tmp_path):
    write_cohort(table_of(BEFORE), tmp_path)
    return tmp_path


def test_a_reference_is_read_from_a_folder_or_its_file(folder):
    for path in (folder, folder / "cohort.parquet"):
        reference = read_reference(path)
        assert reference.table.num_rows == len(BEFORE)
        assert reference.where == str(folder / "cohort.parquet")
        assert not reference.balanced


def test_what_stratify_wrote_is_balanced(folder):
    (folder / "strata.json").write_text("{}")
    assert read_reference(folder).balanced


def test_repeated_rows_are_balanced(tmp_path):
    write_cohort(table_of(balanced(BEFORE)), tmp_path)
    assert read_reference(tmp_path).balanced


def test_a_reference_that_does_not_exist(tmp_path):
    with pytest.raises(ConfigError) as caught:
        read_reference(tmp_path / "may")
    assert caught.value.where == f"validate.reference, {tmp_path / 'may'}"


def test_a_reference_without_a_cohort(tmp_path):
    with pytest.raises(CohortError, match="cohort is missing"):
        read_reference(tmp_path)


@pytest.mark.parametrize("column", ["age", "labels"])
def test_a_reference_that_is_no_cohort(tmp_path, column):
    table = table_of(BEFORE)
    place = table.schema.get_field_index(column)
    wrong = {
        "age": pa.array(["30"] * len(BEFORE)),
        "labels": pa.array([[1]] * len(BEFORE), SCHEMA.field("labels").type),
    }[column]
    write_cohort(table.set_column(place, column, wrong), tmp_path)
    with pytest.raises(CohortError) as caught:
        read_reference(tmp_path)
    assert caught.value.where == f"{tmp_path / 'cohort.parquet'}, column {column}"
    assert "validate.reference" in caught.value.mend


def test_another_task_is_no_reference():
    other = Task("multilabel", ("edema", "mass"), ("edema", "a mass"), ("no edema", "no mass"))
    table = table_of(AFTER)
    with pytest.raises(CohortError) as caught:
        examine(
            table, table.column("image"), Config(), Reference(table_of(BEFORE, task=other), where="may/cohort.parquet")
        )
    assert caught.value.where == "may/cohort.parquet"
    assert "another task" in caught.value.what


def test_strange_values_of_the_reference_are_unknown():
    before = [
        row | {"sex": "x", "age": float("nan"), "split": "secret"} if i % 2 else row for i, row in enumerate(BEFORE)
    ]
    found = compared(AFTER, before)
    (check,) = broken(found).values()
    assert check.observed == "2 of 6 comparisons break it: sex, age"
    assert "secret" not in json.dumps(found.suites)


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_other_kinds_of_task(kind):
    task = {
        "binary": Task("binary", ("edema",), ("edema",), ("no edema",)),
        "multiclass": Task("multiclass", ("edema", "fracture"), ("edema", "a fracture")),
    }[kind]

    def table(rows):
        width = len(task.labels)
        return table_of([row | {"labels": [row["labels"][0], 1 - row["labels"][0]][:width]} for row in rows], task=task)

    now = table(people(400, seed=2, first=1000, edema=0.6))
    found = examine(now, now.column("image").combine_chunks(), Config(min_group=1), Reference(table(BEFORE)))
    (check,) = broken(found).values()
    assert check.rule.startswith("every label is as frequent")
    assert check.observed.startswith("3 of 7 " if kind == "binary" else "6 of 14 ")


def test_the_config_is_any_object_with_these_fields():
    """As for stratify: the cohort's modules know no step."""
    limits = {"max_divergence": 0.05, "max_age_shift": 0.1, "max_unknown_shift": 0.05, "max_prevalence_shift": 0.1}
    config = SimpleNamespace(min_group=1, max_unknown=0.2, min_cell=10, **limits)
    table = table_of(AFTER)
    assert examine(table, table.column("image").combine_chunks(), config, Reference(table_of(BEFORE))).drift
