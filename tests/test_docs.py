"""What the texts say exists, and what they show runs."""

import csv
import inspect
import json
import re
import runpy
import sys
import types
import xml.etree.ElementTree
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import yaml
from bases import write_bases
from PIL import Image

import fairvlm_core
from fairvlm_core import losses, models
from fairvlm_core.cli import app
from fairvlm_core.cohort.adapters import ADAPTERS
from fairvlm_core.cohort.table import Task, read_cohort
from fairvlm_core.errors import CheckpointError, CohortError
from fairvlm_core.steps import STEPS, execute, step_module

ROOT = Path(fairvlm_core.__file__).parent.parent
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(ROOT.glob("docs/*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "datasets" / "README.md",
    ROOT / "components" / "README.md",
    ROOT / "deploy" / "README.md",
]
COMMANDS = {command.name or command.callback.__name__: command.callback for command in app.registered_commands}
by_name = pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def anchors(path):
    """The anchors that a Markdown page's headings get."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@by_name
def test_links_lead_somewhere(text):
    for target in re.findall(r"\]\(([^)\s]+)\)", text.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = unquote(target).partition("#")
        linked = (text.parent / path).resolve() if path else text
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def commands(text):
    """What a text tells to type: lines of shell blocks, and inline code."""
    content = text.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", content, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    outside = re.sub(r"```.*?```", "", content, flags=re.DOTALL)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", outside)]
    return [re.sub(r"^(\w+=\S+ )+", "", line.split("#")[0].strip()) for line in (*lines, *inline)]


@by_name
def test_commands_of_the_cli_exist(text):
    for line in commands(text):
        if not line.startswith("fairvlm "):
            continue
        name, *rest = line.split()[1:]
        if name in ("--help", "STEP", "<step>"):  # the command itself, and placeholders
            continue
        assert name in COMMANDS, line
        flags = {word[2:].replace("-", "_") for word in rest if word.startswith("--")} - {"help"}
        assert flags <= set(inspect.signature(COMMANDS[name]).parameters), line


@by_name
def test_make_targets_exist(text):
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w+):", makefile, flags=re.MULTILINE))
    variables = set(re.findall(r"^(?:export )?(\w+) [:?]?=", makefile, flags=re.MULTILINE))
    for line in commands(text):
        if line.startswith("make "):
            words = line.split()[1:]
            assert {word for word in words if "=" not in word} <= targets, line
            assert {word.split("=")[0] for word in words if "=" in word} <= variables, line


def test_the_tables_of_the_readme_name_the_stages_and_their_folders():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| `([^`]+)`", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    expected = [(name, stage["outs"][0].replace("${item.model}", "*")) for name, stage in stages.items()]
    assert rows == expected


@pytest.fixture(scope="module")
def graph():
    return runpy.run_path(str(ROOT / "docs" / "draw_graph.py"), run_name="draw_graph")


def test_the_picture_is_that_of_the_stages(graph):
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    committed = (ROOT / "docs" / "images" / "graph.svg").read_text()
    assert committed == graph["picture"](content), "run python docs/draw_graph.py"
    tree = xml.etree.ElementTree.fromstring(committed)
    words = {element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")}
    assert set(content["stages"]) == set(STEPS) <= words


def test_a_stage_without_a_place_in_the_picture_is_named(graph):
    content = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    content["stages"]["promote"] = {"deps": ["results/registration"], "outs": ["results/promotion"]}
    with pytest.raises(SystemExit, match="promote"):
        graph["picture"](content)


def test_only_arrows_that_others_imply_are_left_out(graph):
    """Whatever could be reached before can be reached after, and no arrow could be spared."""
    edges = {("a", "b"), ("b", "c"), ("a", "c"), ("a", "d"), ("c", "d"), ("e", "d")}
    assert graph["reduced"](edges) == {("a", "b"), ("b", "c"), ("c", "d"), ("e", "d")}


def example(name):
    """The Python block that CONTRIBUTING gives for a file."""
    content = (ROOT / "CONTRIBUTING.md").read_text()
    return re.search(rf"`{re.escape(name)}`:\n\n```python\n(.*?)```", content, flags=re.DOTALL)[1]


def installed(name, monkeypatch):
    """The example as the module that it would be."""
    dotted = name.removesuffix(".py").replace("/", ".")
    module = types.ModuleType(dotted)
    monkeypatch.setitem(sys.modules, dotted, module)
    exec(compile(example(name), name, "exec"), module.__dict__)
    return module


def registration(name):
    """The registration line for `name`, as the mapping entry it is."""
    line = re.search(rf'^    ("{name}": "[\w.]+"),$', (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)[1]
    return json.loads(f"{{{line}}}")


@pytest.fixture
def release(tmp_path):
    root = tmp_path / "release"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (root / "table.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["file", "patient", "effusion", "sex", "age"])
        for i in range(8):
            Image.fromarray(rng.integers(255, size=(40, 30), dtype=np.uint8)).save(root / "images" / f"{i}.png")
            writer.writerow(
                [f"{i}.png", f"p{i // 2}", ("0", "1", "")[i % 3], ("female", "male", "")[i % 3], 30 + 5 * i]
            )
    return root


def test_the_adapter_of_contributing_reads_a_release(release, tmp_path, monkeypatch):
    installed("fairvlm_core/cohort/adapters/clinic.py", monkeypatch)
    for key, value in registration("clinic").items():
        monkeypatch.setitem(ADAPTERS, key, value)
    config = step_module("ingest").Config(dataset="clinic", image_size=16)
    execute("ingest", config, {"root": release}, {"out": tmp_path / "cohort"})
    execute(
        "validate", step_module("validate").Config(), {"cohort": tmp_path / "cohort"}, {"out": tmp_path / "checked"}
    )
    table = read_cohort(tmp_path / "cohort")
    assert table.column("labels").to_pylist() == [[0], [1], [None]] * 2 + [[0], [1]]
    assert table.column("age_group").to_pylist()[0] == "0-39"

    text = (release / "table.csv").read_text()
    (release / "table.csv").write_text(text.replace("1.png,p0,1,", "1.png,p0,maybe,"))
    with pytest.raises(CohortError) as caught:
        execute("ingest", config, {"root": release}, {"out": tmp_path / "cohort"})
    assert caught.value.where.endswith("table.csv, row 3, column effusion")
    assert "maybe" not in str(caught.value)


def test_the_loss_of_contributing_passes_its_test(monkeypatch):
    module = installed("fairvlm_core/losses/gap.py", monkeypatch)
    assert "from fairvlm_core.losses.gap import group_gap" in (ROOT / "CONTRIBUTING.md").read_text()
    monkeypatch.setattr(losses, "group_gap", module.group_gap, raising=False)
    monkeypatch.syspath_prepend(ROOT / "tests" / "losses")
    tests = installed("tests/losses/test_gap.py", monkeypatch)
    names = [name for name in vars(tests) if name.startswith("test_")]
    assert len(names) == 2
    for name in names:
        getattr(tests, name)()


def test_the_family_of_contributing_loads_what_it_saved(tmp_path, monkeypatch):
    module = installed("fairvlm_core/models/probe.py", monkeypatch)
    for key, value in registration("probe").items():
        monkeypatch.setitem(models.FAMILIES, key, value)
    task = Task("multilabel", ("edema", "fracture"), ("edema", "a fracture"), ("no edema", "no fracture"))
    base = write_bases(tmp_path / "base", task)
    (base / "bases.json").write_text('{"probe": "dual"}')
    probe = module.Probe(str(base / "dual"), task, 32)
    trained = tmp_path / "probe"
    trained.mkdir()
    models.write_description(trained, name="probe", family="probe", task=task, image_size=32, seed=0)
    with pytest.raises(CheckpointError, match="head"):
        models.load(trained, base)
    probe.save(trained)
    images = np.random.default_rng(0).integers(255, size=(3, 32, 32, 3), dtype=np.uint8)
    loaded = models.load(trained, base)
    np.testing.assert_array_equal(loaded.score(images), probe.score(images))
    assert loaded.score(images).shape == (3, 2)
    assert loaded.embed(images).shape[0] == 3


@pytest.fixture(scope="module")
def kubeflow():
    drawn = runpy.run_path(str(ROOT / "docs" / "draw_kubeflow.py"), run_name="draw_kubeflow")
    return drawn, drawn["read"]()


def test_the_pictures_for_kubeflow_name_every_field_list_and_task_of_the_compiled_file(kubeflow):
    drawn, spec = kubeflow
    pages = drawn["pages"](spec)
    fields = spec["root"]["inputDefinitions"]["parameters"]
    shown = re.findall(r'<label for="(\w+)">', pages["kubeflow-form"])
    assert shown == sorted(fields)
    offered = re.findall(r'<select id="(\w+)">(.*?)</select>', pages["kubeflow-form"])
    lists = {name: re.findall(r"<option[^>]*>([^<]+)", options) for name, options in offered}
    assert lists == {name: field["literals"] for name, field in fields.items() if "literals" in field}
    selected = dict(re.findall(r'<select id="(\w+)">.*?<option selected>([^<]+)', pages["kubeflow-form"]))
    assert selected == {name: fields[name]["defaultValue"] for name in lists}

    titles = re.findall(r'font-weight="600"[^>]*>([^<]+)', pages["kubeflow-run"])
    tasks = [task["taskInfo"]["name"] for name, task in drawn["tasks_of"](spec).items()]
    assert sorted(titles) == sorted(name for name in tasks if not name.startswith("pool-"))
    for step in ("stage1", "stage2", "fair_moe"):
        assert f"{step}_pool: {fields[f'{step}_pool']['defaultValue']}" in pages["kubeflow-run"]


def test_the_pictures_for_kubeflow_are_those_of_the_compiled_file_and_light(kubeflow):
    drawn, spec = kubeflow
    for name, page in drawn["pages"](spec).items():
        path = ROOT / "docs" / "images" / f"{name}.png"
        assert path.stat().st_size < 150_000
        with Image.open(path) as picture:
            assert picture.text[drawn["MADE_FROM"]] == drawn["mark"](page), "run python docs/draw_kubeflow.py"


def test_the_page_for_kubeflow_explains_every_field_of_the_form(kubeflow):
    rows = re.findall(r"^\| (`[^|]+) \|", (ROOT / "docs" / "kubeflow.md").read_text(), flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert set(kubeflow[1]["root"]["inputDefinitions"]["parameters"]) <= named
