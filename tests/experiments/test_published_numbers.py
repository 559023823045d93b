"""The published numbers: internally sound, on the right rows, and only beside the same data set."""

from __future__ import annotations

import dataclasses

import pytest

from fairvlm_core.cohort.adapters import ADAPTERS
from fairvlm_core.experiments import EXPERIMENTS, load_experiment
from fairvlm_core.experiments.grid import ACROSS
from fairvlm_core.experiments.published import SHOWN, SOURCES, published
from fairvlm_core.experiments.summary import summarise
from fairvlm_core.experiments.tables import caption, heads, markdown, rows, terminal

HARVARD = ("race", "sex", "ethnicity", "language")
FAIR_MOE = [f"fairmoe_table{number}" for number in range(1, 7)]


def of(name):
    """The published numbers of an experiment on the data set of its paper."""
    grid = load_experiment(name)
    return published(name, "ol3i" if name.startswith("fairmed") else "harvard_fairvlmed", apart=grid.apart)


def evaluation(attributes):
    """Any judgement."""
    each = {name: {"es_auc": 0.6, "dpd": 0.1, "eod": 0.1} for name in attributes}
    across = {name: {"mean": 0.5, "worst": 0.5} for name in ("es_auc", "dpd", "eod")}
    test = {"n": 2000, "overall": {"accuracy": 0.7, "auc": 0.7}, "attributes": each, "across": across}
    return {"kind": "binary", "labels": ["glaucoma"], "test": test}


def summary_of(name, dataset, attributes=HARVARD, **changes):
    grid = dataclasses.replace(load_experiment(name), **changes)
    models = tuple(attributes) if grid.apart else (None,)
    found = {recipe.name: {model: [evaluation(attributes)] * 2 for model in models} for recipe in grid.recipes}
    return summarise(grid, found, min_cell=10, dataset=dataset)


@pytest.mark.parametrize("name", SHOWN)
def test_every_number_has_a_source_a_row_and_a_column(name):
    grid, found = load_experiment(name), of(name)
    assert found
    assert {one.recipe for one in found} <= {recipe.name for recipe in grid.recipes}
    assert {one.source for one in found} == {key for key, _ in SHOWN[name]}
    assert {one.metric for one in found} <= set(grid.layout.metrics) | {"accuracy"}
    assert all(0 < one.mean < 1 and (one.sd is None or 0 < one.sd < one.mean * 1.1) for one in found)
    keys = [(one.source, one.model, one.recipe, one.metric, one.attribute) for one in found]
    assert len(set(keys)) == len(keys)
    assert all(SOURCES[one.source].dataset in ADAPTERS for one in found)


@pytest.mark.parametrize("name", FAIR_MOE)
def test_every_row_of_fair_moe_is_there_for_both_models_and_all_attributes(name):
    ours = [one for one in of(name) if one.source.startswith("fair_moe")]
    metrics = {one.metric for one in ours}
    assert metrics == ({"es_auc", "auc", "dpd", "eod"} if name[-1] in "123" else {"es_auc"})
    recipes = {recipe.name for recipe in load_experiment(name).recipes} - {"no_distance"}  # that one is ours
    assert {(one.recipe, one.model, one.attribute, one.metric) for one in ours} == {
        (recipe, model, attribute, metric)
        for recipe in recipes
        for model in ("ViT-B/16", "ViT-L/14")
        for attribute in HARVARD
        for metric in metrics
    }


def value(name, recipe, model, attribute, metric, source=None):
    (found,) = [
        one
        for one in of(name)
        if (one.recipe, one.model, one.attribute, one.metric) == (recipe, model, attribute, metric)
        and source in (None, one.source)
    ]
    return found.mean, found.sd


def test_some_numbers_as_printed():
    """Read off the papers by themselves, so that a shifted column is found."""
    assert value("fairmoe_table1", "fair_moe", "ViT-L/14", "race", "eod") == (0.0425, 0.0075)
    assert value("fairmoe_table1", "clip", "ViT-B/16", "race", "dpd", "fair_moe_1") == (0.1457, 0.0377)
    assert value("fairmoe_table1", "clip", "ViT-B/16", "race", "dpd", "fairclip_3") == (0.1535, 0.0650)
    assert value("fairmoe_table1", "fairclip", "ViT-B/16", "sex", "es_auc", "fairclip_3") == (0.6539, 0.0239)
    assert value("fairmoe_table2", "fairclip_experts", "ViT-L/14", "language", "eod") == (0.0965, 0.0305)
    assert value("fairmoe_table3", "no_dispersion", "ViT-B/16", "ethnicity", "es_auc") == (0.667, 0.033)
    assert value("fairmoe_table4", "no_f_fi", "ViT-B/16", "sex", "es_auc") == (0.565, None)
    assert value("fairmoe_table5", "no_embedding", "ViT-B/16", "ethnicity", "es_auc") == (0.535, None)
    assert value("fairmoe_table6", "no_image", "ViT-B/16", "language", "es_auc") == (0.548, None)
    # The gain that Fair-MoE's text names: 5 points in the ES-AUC of race over the best baseline.
    race = [
        value("fairmoe_table1", name, "ViT-L/14", "race", "es_auc", "fair_moe_1")[0]
        for name in ("fair_moe", "fairclip")
    ]
    assert race[0] - race[1] == pytest.approx(0.05)


def test_es_auc_is_never_above_auc():
    for name in ("fairmoe_table1", "fairmoe_table2", "fairmoe_table3"):
        for one in of(name):
            if one.metric == "es_auc":
                assert one.mean <= value(name, one.recipe, one.model, one.attribute, "auc", one.source)[0]


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "controlled"])
@pytest.mark.parametrize("dataset", [None, "generated", "table", "ham10000", "chexpert"])
def test_another_data_set_has_no_published_numbers(name, dataset):
    assert published(name, dataset, apart=load_experiment(name).apart) == []
    made = summary_of(name, dataset)
    assert (made["published"], made["sources"]) == ([], [])
    assert "published" not in markdown(made)


def test_neither_paper_stands_beside_the_other_papers_data():
    assert published("fairmoe_table1", "ol3i", apart=True) == []
    assert published("fairmed_table2", "harvard_fairvlmed", apart=False) == []


def test_one_model_for_all_attributes_is_not_what_fair_moe_published():
    assert summary_of("fairmoe_table1", "harvard_fairvlmed", apart=False)["published"] == []


def test_the_published_rows_stand_under_ours():
    made = summary_of("fairmoe_table1", "harvard_fairvlmed")
    shown = rows(made)
    assert {len(row) for row in shown} == {len(heads(made))}
    place = next(i for i, row in enumerate(shown) if row[:2] == ["race", "CLIP, fine-tuned"])
    assert shown[place + 1] == [
        "",
        "published, ViT-B/16 [1]",
        "0.627 ± 0.032",
        "0.677 ± 0.031",
        "0.146 ± 0.038",
        "0.185 ± 0.051",
        "–",
        "–",
    ]
    assert [row[1] for row in shown[place + 2 : place + 5]] == [
        "published, ViT-L/14 [1]",
        "published, ViT-B/16 [3]",
        "published, ViT-L/14 [3]",
    ]
    page = markdown(made)
    assert "[1] Wang, Tong, Liu, Liu: Fair-MoE. arXiv:2502.06094, Table 1." in page
    assert "[2] Wang, Tong, Liu, Liu: Fair-MoE. arXiv:2502.06094, Table 2." in page
    assert "[3] Luo et al.: FairCLIP." in page
    assert "not tested against ours" in caption(made)
    # They are in no mean, front or test of ours, and not in the narrow table.
    assert shown[-4][0] == ACROSS
    assert [row[1] for row in shown[-4:]] == ["CLIP, fine-tuned", "FairCLIP", "FairCLIP + FO-MoE", "Fair-MoE"]
    assert {one["recipe"] for one in made["tests"]} == {"clip", "fairclip", "fairclip_experts"}
    from rich.console import Console

    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal(made))
    assert "0.627" not in console.export_text()


def test_the_published_rows_of_the_other_layouts():
    made = summary_of("fairmoe_table5", "harvard_fairvlmed")
    shown = rows(made)
    assert shown[1] == ["published, ViT-B/16 [1]", "ES-AUC", "0.709", "0.704", "0.707", "0.661", "–"]
    made = summary_of("fairmed_table2", "ol3i", ("sex", "age_group"))
    assert rows(made)[-1] == ["published, LLaVA-Med [1]", "0.785", "–", ACROSS, "–", "0.050", "–", "–"]
    assert "does not name" in markdown(made)
    made = summary_of("fairmed_table3", "ol3i", ("sex", "age_group"))
    assert rows(made)[-1] == ["published, LLaVA-Med [1]", "DPD", "–", "–", "0.050", "–"]
