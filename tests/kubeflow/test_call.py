"""What stands between a component and a step: parameters that went through a Struct, metrics, pages to show."""

import json
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
from google.protobuf import json_format, struct_pb2

from fairvlm_core import steps
from fairvlm_core.config import Port, check, option
from fairvlm_core.errors import ConfigError, FairVLMError
from fairvlm_core.kubeflow.call import run_step, whole


@pytest.fixture
def toy(monkeypatch):
    """A step `toy` that writes its config and a page."""

    @dataclass(frozen=True)
    class Config:
        epochs: int = option(1, "Epochs.")
        rate: float = option(0.5, "Rate.")
        sizes: tuple[int, ...] = option((1,), "Sizes.")

        def __post_init__(self):
            check(self)

    def run(config, inputs, outputs):
        read = (inputs["source"] / "word.txt").read_text()
        (outputs["out"] / "page.html").write_text(f"<p>{read} {config.epochs} {config.sizes}</p>")
        return {"epochs": config.epochs, "rate": config.rate, "best": "stage1"}

    module = ModuleType("fairvlm_core.steps.toy")
    module.Config, module.run = Config, run
    module.INPUTS, module.OUTPUTS = {"source": Port("A folder with a word.")}, {"out": Port("Folder to write.")}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(steps, "STEPS", (*steps.STEPS, "toy"))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "word.txt").write_text("hello")
    return folder


class Sink(dict):
    def log_metric(self, metric, value):
        assert isinstance(value, float)
        self[metric] = value


def test_parameters_survive_a_protobuf_struct(toy, source, tmp_path):
    struct = struct_pb2.Struct()
    struct.update({"epochs": 3, "rate": 2, "sizes": [4, 5]})
    received = json.loads(json_format.MessageToJson(struct))
    run_step("toy", received, {"source": str(source)}, tmp_path / "out")
    assert (tmp_path / "out" / "page.html").read_text() == "<p>hello 3 (4, 5)</p>"
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["rate"] == 2.0


def test_whole_leaves_fractions_text_and_truth_alone():
    value = {"a": 2.0, "b": 0.5, "c": [1.0, "x", True], "d": {"e": 1e-5}}
    out = whole(value)
    assert out == value
    assert [type(v) for v in (out["a"], out["b"], *out["c"])] == [int, float, int, str, bool]


def test_numbers_are_logged_and_pages_shown(toy, source, tmp_path):
    sink, page = Sink(), tmp_path / "page"
    (tmp_path / "out").mkdir()  # some launchers make the folder beforehand
    run_step("toy", {}, {"source": source}, tmp_path / "out", metrics=sink, shown={"page.html": page})
    assert sink == {"epochs": 1.0, "rate": 0.5}
    assert page.read_text() == "<p>hello 1 (1,)</p>"


def test_a_misspelt_parameter_names_the_step_and_leaves_nothing(toy, source, tmp_path):
    with pytest.raises(ConfigError) as caught:
        run_step("toy", {"epoch": 3.0}, {"source": source}, tmp_path / "out")
    assert "toy" in str(caught.value)
    assert "epochs" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_fraction_for_an_integer_is_refused(toy, source, tmp_path):
    with pytest.raises(ConfigError, match="epochs"):
        run_step("toy", {"epochs": 2.5}, {"source": source}, tmp_path / "out")


def test_a_page_that_was_not_written_is_an_error(toy, source, tmp_path):
    with pytest.raises(FairVLMError, match=r"report\.html"):
        run_step("toy", {}, {"source": source}, tmp_path / "out", shown={"report.html": tmp_path / "page"})
