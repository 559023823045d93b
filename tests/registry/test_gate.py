"""The gate: every rule at its edges, what does not exist, whole verdicts, and what the hash of the test rows says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import generated_predictions as generated
import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fairvlm_core.cohort.table import cohort_table, groups_of, task_of, write_cohort
from fairvlm_core.config import build
from fairvlm_core.errors import ConfigError
from fairvlm_core.evaluation.certainty import certainty
from fairvlm_core.evaluation.contrasts import against_champion
from fairvlm_core.evaluation.judgement import judge
from fairvlm_core.evaluation.predictions import scores
from fairvlm_core.evaluation.thresholds import decided
from fairvlm_core.kubeflow.plan import sections
from fairvlm_core.registry import lineage
from fairvlm_core.registry.gate import NO_CHAMPION, Rules, judge_gate
from fairvlm_core.steps import compare

OFF = {field.name: None for field in dataclasses.fields(Rules)}
ROOT = Path(compare.__file__).parents[2]
KEYS = {"rule", "measure", "attribute", "verdict", "value", "low", "high", "bound", "reason"}


def judgement(groups=None, *, kind="binary", total=None, **found):
    """A judgement by sex: `measure=(value, low, high)`."""
    groups = groups or {"female": {"n": 50, "auc": 0.8}, "male": {"n": 60, "auc": 0.9}}
    values = {name: value for name, (value, _, _) in found.items()}
    ends = {name: None if low is None else [low, high] for name, (_, low, high) in found.items()}
    of_sex = {"n": total, "groups": groups, **dict.fromkeys(("dpd", "eod", "es_auc")), **values}
    return {"kind": kind, "attributes": {"sex": of_sex}, "intervals": {"attributes": {"sex": ends}}}


def row(measure, value, low, high, attribute=None):
    return {"measure": measure, "attribute": attribute, "difference": value, "low": low, "high": high}


def only(found):
    """The one finding of a verdict."""
    (finding,) = found["findings"]
    assert set(finding) == KEYS
    assert finding["reason"].endswith(".")
    assert found["verdict"] == finding["verdict"]
    return finding


MARGINS = {"auc_margin": "auc", "accuracy_margin": "accuracy", "worst_group_margin": "worst_group_auc"}


@pytest.mark.parametrize("rule", MARGINS)
@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.05, 0.01, "pass"),  # just so much may be lost
        (0.01, 0.02, "pass"),
        (-0.0501, 0.3, "insufficient evidence"),
        (-0.3, -0.05, "insufficient evidence"),
        (-0.3, -0.0501, "fail"),
        (None, None, "insufficient evidence"),
    ],
)
def test_a_margin_is_judged_by_the_whole_interval(rule, low, high, verdict):
    attribute = "sex" if rule == "worst_group_margin" else None
    against = [row(MARGINS[rule], 0.0 if low is None else (low + high) / 2, low, high, attribute)]
    found = only(judge_gate(judgement(), against, Rules(**OFF | {rule: 0.05})))
    assert (found["verdict"], found["bound"]) == (verdict, -0.05)
    assert (found["rule"], found["measure"], found["attribute"]) == (rule, MARGINS[rule], attribute)
    assert (found["low"], found["high"]) == (low, high)


@pytest.mark.parametrize(
    ("measure", "low", "high", "verdict"),
    [
        ("es_auc", 0.001, 0.2, "pass"),
        ("es_auc", 0.0, 0.2, "insufficient evidence"),  # equal is not fairer
        ("es_auc", -0.2, 0.0, "insufficient evidence"),
        ("es_auc", -0.2, -0.001, "fail"),
        ("dpd", -0.2, -0.001, "pass"),
        ("eod", -0.2, 0.0, "insufficient evidence"),
        ("eod", 0.001, 0.2, "fail"),
        ("eod", None, None, "insufficient evidence"),
    ],
)
def test_fairer_is_beyond_noise_in_the_direction_of_the_measure(measure, low, high, verdict):
    value = None if low is None else (low + high) / 2
    found = only(judge_gate(judgement(), [row(measure, value, low, high)], Rules(**OFF | {"fairer": measure})))
    assert (found["verdict"], found["bound"], found["measure"]) == (verdict, 0.0, measure)


@pytest.mark.parametrize(
    ("rule", "low", "high", "verdict"),
    [
        ("max_dpd", 0.1, 0.3, "pass"),
        ("max_dpd", 0.1, 0.301, "insufficient evidence"),
        ("max_dpd", 0.3, 0.5, "insufficient evidence"),
        ("max_dpd", 0.301, 0.5, "fail"),
        ("max_eod", 0.0, 0.29, "pass"),
        ("max_eod", 0.4, 0.5, "fail"),
        ("min_es_auc", 0.3, 0.9, "pass"),
        ("min_es_auc", 0.299, 0.9, "insufficient evidence"),
        ("min_es_auc", 0.1, 0.299, "fail"),
        ("min_es_auc", None, None, "insufficient evidence"),
    ],
)
def test_an_absolute_rule_is_judged_by_the_whole_interval(rule, low, high, verdict):
    measure = rule.partition("_")[2]
    given = judgement(**{measure: (0.5 if low is None else (low + high) / 2, low, high)})
    found = only(judge_gate(given, None, Rules(**OFF | {rule: 0.3})))
    assert (found["verdict"], found["measure"], found["attribute"]) == (verdict, measure, "sex")


def test_the_gap_in_selection_rates_is_called_after_the_task():
    for kind, name in (("binary", "DPD"), ("multiclass", "DPG"), ("multilabel", "DPG")):
        found = only(judge_gate(judgement(kind=kind, dpd=(0.1, 0.0, 0.2)), None, Rules(**OFF | {"max_dpd": 0.3})))
        assert found["reason"] == f"{name} by sex is 0.100 (0.000 to 0.200): at most 0.3 beyond noise."


def test_what_does_not_exist_never_passes():
    missing = judge_gate(judgement(), [row("auc", None, None, None)], Rules())
    assert missing["verdict"] == "insufficient evidence"
    told = {(f["rule"], f["verdict"]) for f in missing["findings"]}
    assert told == {(f, "insufficient evidence") for f in OFF if f != "min_group"} | {("min_group", "pass")}
    nobody = {"kind": "binary", "attributes": {}, "intervals": {}}
    found = judge_gate(nobody, [], Rules(**OFF | {"max_eod": 0.3, "worst_group_margin": 0.1, "min_group": 5}))
    assert [f["verdict"] for f in found["findings"]] == ["insufficient evidence"] * 3
    assert "no demographic attribute" in found["reasons"][0]


def test_the_worst_finding_decides_and_reasons_name_what_did_not_pass():
    rules = Rules(**OFF | {"auc_margin": 0.05, "max_dpd": 0.3, "max_eod": 0.3})
    against, good = [row("auc", 0.0, -0.01, 0.01)], {"dpd": (0.1, 0.0, 0.2)}
    passed = judge_gate(judgement(**good, eod=(0.1, 0.0, 0.2)), against, rules)
    assert (passed["verdict"], passed["reasons"]) == ("pass", ["Every rule that was judged holds."])
    unsure = judge_gate(judgement(**good, eod=(0.1, 0.0, 0.4)), against, rules)
    assert unsure["verdict"] == "insufficient evidence"
    (reason,) = unsure["reasons"]
    assert reason.startswith("EOD by sex is 0.100 (0.000 to 0.400): ")
    failed = judge_gate(judgement(dpd=(0.5, 0.4, 0.6), eod=(0.1, 0.0, 0.4)), against, rules)
    assert (failed["verdict"], len(failed["reasons"])) == ("fail", 2)
    alone = judge_gate(judgement(**good, eod=(0.1, 0.0, 0.2)), None, rules)
    assert {f["rule"] for f in alone["findings"]} == {"max_dpd", "max_eod"}
    assert (alone["verdict"], alone["reasons"][-1]) == ("pass", NO_CHAMPION)
    nothing = judge_gate(judgement(), None, Rules(**OFF | {"auc_margin": 0.1, "fairer": "none"}))
    assert (nothing["verdict"], nothing["findings"]) == ("insufficient evidence", [])


def test_the_intersection_is_never_judged():
    given = judgement(eod=(0.1, 0.0, 0.2))
    given["attributes"]["sex x age_group"] = {**given["attributes"]["sex"], "groups": {"f, 80+": {"n": "<10"}}}
    found = judge_gate(given, [], Rules(**OFF | {"max_eod": 0.3, "min_group": 30}))
    assert [f["attribute"] for f in found["findings"]] == ["sex", "sex"]
    assert found["verdict"] == "pass"


@pytest.mark.parametrize(
    ("groups", "total", "value", "told"),
    [
        ({"a": (30, 0.8), "b": (90, 0.7)}, 120, 30, None),
        ({"a": (29, 0.8), "b": (90, 0.7)}, 119, 29, "without 30 images for certain: a (29)"),
        ({"a": ("<10", None), "b": (90, 0.7)}, None, None, "without 30 images for certain: a (<10)"),
        ({"a": (30, None), "b": (90, 0.7)}, 120, 30, "without an AUC, for lack of positives or negatives: a"),
        # Of 600, b has at least 600 - 480 - 9: that is public, though its count is not.
        ({"a": (480, 0.8), "b": ("10 or more", 0.7), "c": ("<10", None)}, 600, None, "certain: c (<10)"),
        ({"a": (480, 0.8), "b": ("10 or more", 0.7)}, 600, None, None),
        ({"a": (480, 0.8), "b": ("10 or more", 0.7)}, 505, None, "without 30 images for certain: b (10 or more)"),
        ({"a": (480, 0.8), "b": ("10 or more", 0.7)}, None, None, "without 30 images for certain: b (10 or more)"),
    ],
)
def test_the_size_of_groups_is_judged_by_what_is_published(groups, total, value, told):
    named = {name: {"n": n, "auc": auc} for name, (n, auc) in groups.items()}
    found = only(judge_gate(judgement(named, total=total), [], Rules(**OFF | {"min_group": 30})))
    assert found["verdict"] == ("insufficient evidence" if told else "pass")
    assert (found["value"], found["bound"]) == (value, 30)
    assert (told or "every group has 30 images or more") in found["reason"]


ORDER = ["fail", "insufficient evidence", "pass"]
NUMBERS = st.floats(-1, 1)


@settings(max_examples=200, deadline=None)
@given(ends=st.tuples(NUMBERS, NUMBERS), bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_laxer_bound_never_gives_a_worse_verdict(ends, bounds):
    low, high = sorted(ends)
    strict, lax = sorted(bounds)
    against = [row("auc", (low + high) / 2, low, high)]
    given = judgement(**dict.fromkeys(("eod", "es_auc"), ((low + high) / 2, low, high)))
    for rule, first, second in (("auc_margin", strict, lax), ("max_eod", strict, lax), ("min_es_auc", lax, strict)):
        verdicts = [judge_gate(given, against, Rules(**OFF | {rule: bound}))["verdict"] for bound in (first, second)]
        assert ORDER.index(verdicts[0]) <= ORDER.index(verdicts[1])
        # What is known exactly is on one side or on the other.
        point = judge_gate(
            judgement(eod=(low, low, low), es_auc=(low, low, low)),
            [row("auc", low, low, low)],
            Rules(**OFF | {rule: first}),
        )
        assert point["verdict"] in ("pass", "fail")


def given_scores(**options):
    """Predictions of 1,500 images, decided at 0.5."""
    told = scores(generated.table("binary", n=2250, **options), "test")
    return decided(told, dict.fromkeys(told.labels, 0.5))


def judged(model, champion, rules):
    sure, _ = certainty(model, resamples=200)
    against = against_champion(model, champion, resamples=200)
    return judge_gate({**judge(model), "intervals": sure}, against, rules)


RELATIVE = Rules(**OFF | {"auc_margin": 0.02, "accuracy_margin": 0.02, "worst_group_margin": 0.05, "fairer": "es_auc"})


def test_a_model_against_itself_loses_nothing_and_gains_nothing():
    model = given_scores(skill=2.0)
    found = judged(model, model, RELATIVE)
    assert {(f["rule"], f["verdict"]) for f in found["findings"]} == {
        ("auc_margin", "pass"), ("accuracy_margin", "pass"), ("worst_group_margin", "pass"),
        ("fairer", "insufficient evidence"),
    }  # fmt: skip
    assert all(f["value"] == f["low"] == f["high"] == 0 for f in found["findings"])
    assert found["verdict"] == "insufficient evidence"


def test_a_much_better_and_a_much_worse_champion():
    weak = given_scores(model="weak", skill=2.0, bias=1.2)
    strong = given_scores(model="strong", skill=4.0, bias=0.0)
    better = judged(strong, weak, RELATIVE)
    assert (better["verdict"], better["reasons"]) == ("pass", ["Every rule that was judged holds."])
    worse = judged(weak, strong, RELATIVE)
    assert worse["verdict"] == "fail"
    assert {f["rule"]: f["verdict"] for f in worse["findings"]}.items() >= {
        "auc_margin": "fail", "accuracy_margin": "fail", "fairer": "fail"
    }.items()  # fmt: skip
    for one, other in zip(better["findings"], worse["findings"], strict=True):
        assert (one["low"], one["high"]) == pytest.approx((-other["high"], -other["low"]))


def test_an_unknown_rule_or_value_is_refused_before_anything_runs():
    with pytest.raises(ConfigError, match='Did you mean "max_dpd"') as caught:
        compare.Config(gate={"max_dpg": 0.1})
    assert caught.value.where == "compare.gate, key max_dpg"
    with pytest.raises(ConfigError, match=r"compare\.gate\.auc_margin cannot be 2"):
        compare.Config(gate={"auc_margin": 2})
    with pytest.raises(ConfigError, match=r"compare\.gate\.fairer"):
        compare.Config(gate={"fairer": "accuracy"})
    form = {"compare.criterion": "auc"}
    with pytest.raises(ConfigError, match="max_dpg"):  # what the first task of a run on Kubeflow asks
        sections({}, {"compare": {"gate": {"max_dpg": 0.1}}}, form)
    doubles = {"compare": {"gate": {"min_group": 30.0, "auc_margin": None}}}
    planned = sections({}, doubles, form)["compare"]
    assert build(compare.Config, planned, where="").rules() == Rules(min_group=30, auc_margin=None)


def test_the_rules_in_the_params_file_are_the_defaults():
    """So that a file that names a few rules, or none, has the others as they are written there."""
    written = yaml.safe_load((ROOT / "params.yaml").read_text())["compare"]["gate"]
    assert written == dataclasses.asdict(Rules())


def changed(table, name, row, value):
    values = table.column(name).to_pylist()
    values[row] = value
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def test_the_hash_of_the_test_rows(tmp_path):
    table = generated.cohort("multilabel", n=60)
    test = [i for i, split in enumerate(table.column("split").to_pylist()) if split == "test"]
    kept = test[3]

    def hashed(given, name="cohort"):
        write_cohort(given, tmp_path / name)
        return lineage.hash_test_rows(tmp_path / name)

    first = hashed(table)
    assert len(first) == 64
    order = np.random.default_rng(0).permutation(len(table))
    assert hashed(table.take(order), "moved") == first
    assert hashed(changed(table, "note", kept, "nobody reads it here")) == first
    other = next(i for i in range(60) if i not in test)
    assert hashed(changed(table, "sex", other, "female" if table["sex"][other].as_py() == "male" else "male")) == first
    labels = table["labels"][kept].as_py()
    flipped = [1 - labels[0] if labels[0] is not None else 1, *labels[1:]]
    renamed = {"sample_id": "another", "patient_id": "another", "image": "other.png", "race": "Martian", "age": 33.0}
    changes = [
        table.filter(pa.array([i != kept for i in range(60)])),
        pa.concat_tables([table, table.slice(kept, 1)]),
        changed(table, "labels", kept, flipped),
        changed(table, "labels", kept, labels[::-1] if labels[::-1] != labels else flipped[::-1]),
        *(changed(table, name, kept, value) for name, value in renamed.items()),
        cohort_table(
            table, task=dataclasses.replace(task_of(table), labels=("other", "b", "c", "d")), groups=groups_of(table)
        ),
    ]
    hashes = [hashed(given) for given in changes]
    assert len({first, *hashes}) == len(changes) + 1
    assert hashed(changed(table, "split", kept, "train")) == hashes[0]  # as if it were not there
