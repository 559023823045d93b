"""What `python -m pipelines.local` decides before a container runs; tests/end_to_end/test_containers.py runs them."""

import os
from types import SimpleNamespace

import pytest
from google.protobuf.json_format import MessageToDict

from pipelines import local


class Daemon:
    """Stands in for the client of a daemon with one image, whose containers end with a status."""

    def __init__(self, status=0, security=(), lines=()):
        self.status, self.security, self.lines, self.removed = status, list(security), lines, 0
        attrs = {"Config": {"User": "10001:0"}}
        self.images = SimpleNamespace(get=lambda name: SimpleNamespace(attrs=attrs))
        self.containers = SimpleNamespace(create=lambda *words, **more: self)

    def info(self):
        return {"SecurityOptions": self.security}

    def start(self):
        if self.status is None:
            raise RuntimeError("no such command")

    def logs(self, stream):
        return iter(self.lines)

    def wait(self):
        return {"StatusCode": self.status}

    def remove(self, force):
        self.removed += 1


def test_the_status_is_that_of_the_container_which_is_removed_in_any_case(capsys):
    daemon = Daemon(status=3, lines=[b"half a \xc3", b"line\n"])
    assert local.run_container(daemon, "image", ["false"], {}) == 3
    assert "line" in capsys.readouterr().out
    assert daemon.removed == 1
    daemon = Daemon(status=None)
    with pytest.raises(RuntimeError):
        local.run_container(daemon, "image", ["missing"], {})
    assert daemon.removed == 1


@pytest.mark.parametrize(
    ("here", "security", "expected"),
    [(1000, [], "1000:0"), (0, [], "10001:0"), (1000, ["name=seccomp", "name=rootless"], "0:0")],
)
def test_steps_run_as_who_can_write_for_this_user_and_never_as_the_machines_root(monkeypatch, here, security, expected):
    monkeypatch.setattr(os, "getuid", lambda: here)
    assert local.user_of(Daemon(security=security), "image") == expected


def test_a_mistake_in_the_form_is_told_before_anything_runs(tmp_path, capsys):
    (tmp_path / "params.yaml").write_text("ingest: {image_sise: 32}\n")
    with pytest.raises(SystemExit) as stopped:
        local.main(["--root", str(tmp_path / "root"), "--params", str(tmp_path / "params.yaml")])
    assert stopped.value.code == 2
    assert 'Did you mean "image_size"?' in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


def test_all_steps_are_in_the_image_that_was_asked_for():
    executors = MessageToDict(local.pipeline_of("localhost/other:1").pipeline_spec)["deploymentSpec"]["executors"]
    assert {executor["container"]["image"] for executor in executors.values()} == {"localhost/other:1"}


def test_without_a_daemon_one_message_says_what_to_start(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(SystemExit) as stopped:
        local.main(["--root", str(tmp_path / "root")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "No container daemon answers." in said
    assert "nothing.sock" in said
