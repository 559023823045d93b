"""`fairvlm monitor`: what it takes and refuses, what it writes, and how it exits."""

import html
import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import generated_predictions as generated
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from fairvlm_core.cli import main
from fairvlm_core.commands.monitor import monitor as command
from fairvlm_core.errors import PredictionsError
from fairvlm_core.evaluation.monitoring.evidence import Asked, Limits
from fairvlm_core.evaluation.monitoring.inputs import read_pair
from fairvlm_core.evaluation.predictions import read_predictions, write_predictions
from fairvlm_core.evaluation.thresholds import add_decisions
from fairvlm_core.steps import execute, step_module

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUICK = ("--resamples", "100")


def table(kind="binary", *, threshold=0.25, truth=True, women=0.0, **given):
    """The test split of generated predictions, decided; `women` raises their scores."""
    made = generated.table(kind, **given)
    made = made.filter(pc.equal(made.column("split"), "test"))
    frame = made.to_pandas()
    score = frame["y_score"].to_numpy(float) + women * (frame["sex"] == "female").to_numpy()
    place = made.column_names.index
    made = made.set_column(place("y_score"), "y_score", pa.array(np.clip(score, 0, 1), pa.float32()))
    if not truth:
        made = made.set_column(place("y_true"), "y_true", pa.nulls(len(made), pa.int8()))
    made = made.replace_schema_metadata({b"fairvlm.kind": kind.encode()})
    return add_decisions(made, dict.fromkeys(generated.LABELS[kind], threshold))


def put(folder, made, kind="binary"):
    write_predictions(made, folder / "predictions.parquet", kind=kind)
    return folder


@pytest.fixture
def reference(tmp_path):
    return put(tmp_path / "reference", table(n=1200))


@pytest.fixture
def fairvlm(monkeypatch, capsys):
    def run(*given):
        monkeypatch.setattr(sys, "argv", ["fairvlm", "monitor", *map(str, given)])
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capsys.readouterr()
        return exited.value.code or 0, captured.out, captured.err

    return run


def test_a_month_like_the_test_set_exits_with_0_and_three_files_tell_the_same(fairvlm, tmp_path, reference):
    status, shown, _ = fairvlm(
        reference, put(tmp_path / "month", table(n=1200, seed=1)), "--out", tmp_path / "out", *QUICK
    )
    assert status == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"monitor.json", "monitor.html", "monitor.md"}
    told = json.loads((tmp_path / "out" / "monitor.json").read_text())
    assert told["verdict"] in ("stable", "cannot tell")
    flat = " ".join(shown.split())
    for sentence in told["sentences"]:
        assert sentence in flat
    assert told["sentences"][0] in (tmp_path / "out" / "monitor.html").read_text()
    assert "| Scores | glaucoma, everybody |" in (tmp_path / "out" / "monitor.md").read_text()
    assert told["models"] == ["stage1", "stage1"]


def test_drift_of_one_group_exits_with_1_and_is_named(fairvlm, tmp_path, reference):
    month = put(tmp_path / "month", table(n=1200, seed=1, women=0.3, truth=False))
    status, shown, _ = fairvlm(reference, month, "--out", tmp_path / "out", *QUICK)
    assert status == 1
    assert "female" in shown
    page = (tmp_path / "out" / "monitor.html").read_text()
    assert "cannot be known from it" in page  # accuracy, without true labels
    assert "AUC of the worst group" not in page
    passed = ("--max-score-shift", 1, "--max-selection-shift", 1, "--max-dpd-rise", 1)
    assert fairvlm(reference, month, "--out", tmp_path / "out", *QUICK, *passed)[0] == 0


def test_a_csv_file_without_groups_and_models_is_taken(fairvlm, tmp_path, reference):
    frame = table(n=1200, seed=1).to_pandas()
    frame = frame[["sample_id", "label", "y_score", "y_pred", "sex"]].assign(y_true="")
    frame.to_csv(tmp_path / "month.csv", index=False)
    status, _, _ = fairvlm(reference, tmp_path / "month.csv", "--out", tmp_path / "out", *QUICK)
    assert status == 0
    told = json.loads((tmp_path / "out" / "monitor.json").read_text())
    assert told["absent"]["now"] == ["age_group", "race"]
    assert "Not recorded this month: age group and race" in (tmp_path / "out" / "monitor.html").read_text()


def evaluated(tmp_path):
    """What tune_thresholds and evaluate make of both splits, with calibration, and the raw month."""
    raw = generated.table("binary", n=1500)
    write_predictions(raw, tmp_path / "predicted" / "predictions.parquet", kind="binary")
    steps = {
        "tune_thresholds": ({"predictions": tmp_path / "predicted"}, tmp_path / "thresholds"),
        "evaluate": (
            {"predictions": tmp_path / "predicted", "thresholds": tmp_path / "thresholds"},
            tmp_path / "reference",
        ),
    }
    for step, (inputs, out) in steps.items():
        config = step_module(step).Config()
        execute(step, config, inputs, {"out": out})
    month = generated.table("binary", n=900, seed=3)
    write_predictions(month, tmp_path / "month" / "predictions.parquet", kind="binary")
    execute(
        "evaluate",
        step_module("evaluate").Config(),
        {"predictions": tmp_path / "month", "thresholds": tmp_path / "thresholds"},
        {"out": tmp_path / "judged"},
    )
    return tmp_path / "reference", tmp_path / "month", tmp_path / "judged"


def test_raw_scores_are_calibrated_and_decided_as_evaluate_does_it(tmp_path, fairvlm):
    reference, month, judged = evaluated(tmp_path)
    _, raw = read_pair(reference, month, raw=True, split="test")
    _, own = read_pair(reference, judged, split="test")
    assert np.array_equal(raw.y_score, own.y_score)
    assert np.array_equal(raw.y_pred, own.y_pred)
    _, whole = read_pair(reference, month, raw=True)
    assert len(whole.sample_ids) == 900  # both splits
    with pytest.raises(PredictionsError, match="no telling whether"):
        read_pair(reference, month)
    with pytest.raises(PredictionsError, match="not raw"):
        read_pair(reference, judged, raw=True)
    # The scores before calibration, decided as if they were those after it: refused, for no threshold says so.
    other = add_decisions(read_predictions(month), {"glaucoma": 0.9})
    put(tmp_path / "other", other)
    with pytest.raises(PredictionsError, match="not those of the reference's thresholds"):
        read_pair(reference, tmp_path / "other")
    assert fairvlm(reference, month, "--raw", "--out", tmp_path / "out", *QUICK)[0] == 0


def renamed(made, column, names):
    values = [names.get(value, value) for value in made.column(column).to_pylist()]
    place = made.column_names.index(column)
    return made.set_column(place, made.schema.field(column), pa.array(values, pa.string()))


MISTAKES = {
    "other labels": (lambda t: renamed(t, "label", {"glaucoma": "cataract"}), "1 are missing, and 1 are others"),
    "no decisions": (lambda t: t.drop_columns(["y_pred"]), "does not say how to make them"),
    "some decisions": (
        lambda t: t.set_column(
            t.column_names.index("y_pred"), "y_pred", pa.array([None, *t.column("y_pred").to_pylist()[1:]], pa.int8())
        ),
        "1 of 800 rows have no decision",
    ),
    "other words": (lambda t: renamed(t, "sex", {"female": "F", "male": "M"}), "No group of sex"),
    "twice": (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "repeat an image"),
    "empty": (lambda t: t.slice(0, 0), "There are no predictions"),
    "two models": (
        lambda t: pa.concat_tables([t, renamed(t, "model", {"stage1": "stage2"})]),
        "There are predictions of 2 models",
    ),
    "another kind": (lambda t: t.replace_schema_metadata({b"fairvlm.kind": b"multilabel"}), "a multilabel one"),
    "other thresholds": (lambda t: add_decisions(t, {"glaucoma": 0.6}), "not those of the reference's thresholds"),
    "a score of 2": (
        lambda t: t.set_column(t.column_names.index("y_score"), "y_score", pa.array([2.0] * len(t), pa.float32())),
        "not probabilities",
    ),
    "no truths column": (lambda t: t.drop_columns(["y_true"]), "lack a column"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_compared_exits_with_2_and_says_why(fairvlm, tmp_path, reference, name):
    break_, message = MISTAKES[name]
    made = break_(table(n=1200, seed=1))
    (tmp_path / "month").mkdir()
    pq.write_table(made, tmp_path / "month" / "predictions.parquet")
    status, shown, told = fairvlm(reference, tmp_path / "month", "--out", tmp_path / "out", *QUICK)
    assert status == 2
    assert message in told
    assert "Where:" in told
    assert "image-" not in told + shown
    assert "patient-" not in told + shown
    assert not (tmp_path / "out").exists()


def test_mistakes_in_the_reference_and_the_flags_exit_with_2(fairvlm, tmp_path, reference):
    month, out = put(tmp_path / "month", table(n=1200, seed=1)), ("--out", tmp_path / "out")
    plain = put(tmp_path / "plain", table(n=1200).drop_columns(["y_pred"]))
    for given, message in (
        ((plain, month, *out), "The reference has no decisions"),
        ((tmp_path / "nowhere", month, *out), "The predictions are missing"),
        ((reference, month, *out, "--split", "tset"), 'Did you mean "test"?'),
        ((reference, month, *out, "--reference-split", "validation"), "validation"),
        ((reference, month, *out, "--max-auc-drop", 0), "--max-auc-drop"),
        ((reference, month, *out, "--min-cell", 0), "--min-cell"),
    ):
        status, _, told = fairvlm(*given)
        assert status == 2
        assert message in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_several_labels(fairvlm, tmp_path, kind):
    reference = put(tmp_path / "reference", table(kind, n=600), kind)
    status, _, _ = fairvlm(
        reference, put(tmp_path / "month", table(kind, n=450, seed=1), kind), "--out", tmp_path / "out", *QUICK
    )
    assert status == 0
    page = (tmp_path / "out" / "monitor.html").read_text()
    assert all(label in page for label in generated.LABELS[kind])
    assert "mean over the labels" in page


def test_decisions_that_are_not_the_class_with_the_largest_score_are_refused(tmp_path):
    reference = put(tmp_path / "reference", table("multiclass", n=600), "multiclass")
    made = table("multiclass", n=450, seed=1)
    turned = pa.array(np.roll(made.column("y_pred").to_numpy(), 1), pa.int8())
    made = made.set_column(made.column_names.index("y_pred"), "y_pred", turned)
    with pytest.raises(PredictionsError, match="thresholds"):
        read_pair(reference, put(tmp_path / "month", made, "multiclass"))


def test_the_flags_have_the_defaults_of_the_limits():
    flags = inspect.signature(command).parameters
    for field in fields(Limits):
        assert flags[f"max_{field.name}"].default == field.default
    for name in ("min_cell", "resamples", "level", "seed"):
        assert flags[name].default == getattr(Asked(), name)


def test_names_in_the_data_are_text_on_the_page_and_in_markdown(fairvlm, tmp_path):
    names = {"female": "<b>|women</b>", "male": "m*n"}
    reference = put(tmp_path / "reference", renamed(table(n=900), "sex", names))
    month = put(tmp_path / "month", renamed(table(n=900, seed=1, women=0.3), "sex", {"female": "<b>|women</b>"}))
    fairvlm(reference, month, "--out", tmp_path / "out", *QUICK)
    page = (tmp_path / "out" / "monitor.html").read_text()
    assert "<b>|women" not in page
    assert "&lt;b&gt;|women" in page
    assert not re.search(r"<script|https?://|<link|<img", page)
    assert "\\|women" in (tmp_path / "out" / "monitor.md").read_text()


def test_small_groups_are_named_as_suppressed_and_have_no_number(fairvlm, tmp_path, reference):
    fairvlm(reference, put(tmp_path / "month", table(n=1200, seed=1)), "--out", tmp_path / "out", *QUICK)
    told = json.loads((tmp_path / "out" / "monitor.json").read_text())
    assert told["suppressed"]["race"] == ["Pacific Islander"]
    assert not [f for f in told["findings"] if f["group"] == "Pacific Islander"]
    page = (tmp_path / "out" / "monitor.html").read_text()
    assert "suppressed, with fewer than 10 images on a side: Pacific Islander" in page


MEASURE = """<!doctype html><body><script>
addEventListener("load", () => {
  const told = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument.documentElement;
    return [frame.width, page.scrollWidth > page.clientWidth + 1, page.querySelectorAll("section").length].join("|");
  });
  document.body.innerHTML = "<pre>" + told.join("\\n") + "</pre>";
});
</script>FRAMES</body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_is_no_wider_than_a_telephone(fairvlm, tmp_path, reference):
    month = put(tmp_path / "month", table(n=1200, seed=1, women=0.3))
    fairvlm(reference, month, "--out", tmp_path / "out", *QUICK)
    page = (tmp_path / "out" / "monitor.html").read_text()
    faulty = page.replace("<h2>", '<h2 style="width:1300px">', 1)
    shown = [(400, page), (1200, page), (1201, faulty)]
    frames = "".join(
        f'<iframe width="{width}" height="900" srcdoc="{html.escape(text)}"></iframe>' for width, text in shown
    )
    (tmp_path / "shown.html").write_text(MEASURE.replace("FRAMES", frames))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", "--virtual-time-budget=20000"]
    done = subprocess.run(
        [CHROMIUM, *flags, (tmp_path / "shown.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    lines = re.search(r"<pre>(.*?)</pre>", done.stdout, re.S).group(1).splitlines()
    assert [line.split("|")[:2] for line in lines] == [["400", "false"], ["1200", "false"], ["1201", "true"]]
    assert int(lines[0].split("|")[2]) == 7


def test_the_example_of_the_documentation_makes_a_month_of_what_the_server_answers(tmp_path, reference):
    """Answers have the columns that a registered version gives, as MLflow's server writes them: a record per image."""
    from fairvlm_core.registry.model import output_columns

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "monitoring.md").read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(code, names)
    given = table(n=1200, seed=1).to_pandas()
    answers = [
        dict(zip(output_columns(("glaucoma",), "binary"), (row.y_score, row.y_pred, "3"), strict=True))
        for row in given.itertuples()
    ]
    names["month"](given[["sample_id", "patient_id", "sex"]], answers).to_csv(tmp_path / "month.csv", index=False)
    then, now = read_pair(reference, tmp_path / "month.csv")
    assert np.allclose(now.y_score[:, 0], given["y_score"], atol=1e-6)
    assert now.y_pred[:, 0].tolist() == given["y_pred"].tolist()
    assert np.isnan(now.y_true).all()
    assert (then.labels, now.model) == (now.labels, "fairvlm, version 3")
    assert (now.groups["sex"] == "female").tolist() == (given["sex"] == "female").tolist()
