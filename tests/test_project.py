"""What a public project has besides its code: parses, and says the same version everywhere."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import trl_irl
from tests.test_layers import MAY_IMPORT


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def load(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_one_version_everywhere():
    headings = re.findall(r"^## \[(.+?)\](?: - (\S+))?$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0] == ("Unreleased", "") and headings[1][0] == trl_irl.__version__
    citation = load("CITATION.cff")
    assert citation["version"] == trl_irl.__version__ and str(citation["date-released"]) == headings[1][1]
    assert citation["license"] == PROJECT["project"]["license"]


def test_the_papers_authors_are_those_that_the_trainer_cites():
    from trl_irl import IRLTrainer

    cited = re.search(r"author += \{\{(.*)\}\}", IRLTrainer._paper["citation"].replace("{", "{{").replace("}", "}}"))
    authors = load("CITATION.cff")["preferred-citation"]["authors"]
    assert [f"{one['given-names']} {one['family-names']}" for one in authors] == cited[1].strip("{}").split(" and ")


def test_hooks_run_the_ruff_that_the_suite_runs():
    (hooks,) = load(".pre-commit-config.yaml")["repos"]
    wanted = next(one for one in PROJECT["project"]["optional-dependencies"]["dev"] if one.startswith("ruff"))
    assert hooks["rev"].removeprefix("v") == wanted.partition("==")[2]


def test_workflows_run_targets_that_are_there():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    matrix = load(".github/workflows/ci.yml")["jobs"]["check"]["strategy"]["matrix"]["target"]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert set(matrix) <= set(targets) and set(matrix) == set(re.findall(r"^make ([\w-]+)$", ci, re.M))


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms(name):
    form = load(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= form.keys()
    ids = [part["id"] for part in form["body"]]
    assert len(ids) == len(set(ids))


def test_contributors_are_told_the_layers_that_are_tested():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `trl_irl/(\w+)/` \|[^|]*\|([^|]*)\|$", text, re.M)
    told = {name: {*re.findall(r"`(\w+)`", others), name} for name, others in rows}
    assert [name for name, others in rows if others == " all below "] == ["demos", "commands"]
    told |= {"demos": set(told), "commands": set(told) - {"demos"}}
    assert told == {name: allowed | {name} for name, allowed in MAY_IMPORT.items() if name != "cli"}


def test_what_a_gpu_machine_gets_is_what_the_suite_runs():
    """Its wheels have the versions of `make test-latest`, and its script runs files that are there."""

    def pins(name):
        return dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements" / name).read_text(encoding="utf-8"), re.M))

    tested, carried = pins("tested-latest.txt"), pins("gpu.txt")
    assert {"trl", "transformers"} <= set(carried) <= set(tested)
    assert carried == {name: tested[name] for name in carried}
    script = (ROOT / "benchmarks/gpu/run.sh").read_text(encoding="utf-8")
    files = re.findall(r"\b(?:tests|benchmarks)/[\w/]+\.py", script)
    assert len(files) > 5 and all((ROOT / file).is_file() for file in files)
