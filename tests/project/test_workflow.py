"""The workflow's file: it cannot run here, so at least its shape is looked at."""

from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
WORKFLOWS = Path(__file__).parents[2] / ".github" / "workflows"


def read(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    found["on"] = found.pop(True, found.get("on"))  # YAML 1.1 takes `on` for a truth value
    return dict(found)


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.yml")), ids=lambda path: path.name)
def test_shape(path: Path) -> None:
    workflow = read(path)
    assert set(workflow) <= {"name", "on", "permissions", "jobs", "env", "concurrency", "defaults"}
    for job in workflow["jobs"].values():
        assert {"runs-on", "steps"} <= set(job)
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), step
            assert set(step) <= {"name", "if", "id", "uses", "run", "with", "env"}, step
            assert "uses" not in step or "@" in step["uses"]


def test_what_is_checked_where() -> None:
    job = read(WORKFLOWS / "check.yml")["jobs"]["check"]
    systems = {
        (each["os"].split("-")[0], each["python"]) for each in job["strategy"]["matrix"]["include"]
    }
    assert systems == {("ubuntu", "3.11"), ("ubuntu", "3.14"), ("macos", "3.12")}
    commands = " ".join(step.get("run", "") for step in job["steps"])
    for command in ("make check", "make test-gpu", "make demo", "moshi-local doctor --json"):
        assert command in commands
    assert any(step.get("uses", "").startswith("actions/upload-artifact") for step in job["steps"])
    here = (WORKFLOWS.parents[1] / ".ci" / "run").read_text(encoding="utf-8")
    for both in ("make test-gpu", "libportaudio2", "pulseaudio-utils", "festvox-us-slt-hts", "g++"):
        assert both in here
        assert both in commands
