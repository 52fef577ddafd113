"""Nothing imports upwards: the floor plan of docs/ARCHITECTURE.md, checked on the source itself."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lbr_st

ROOT = Path(lbr_st.__file__).parent

# From the ground up. A part may import from itself and from any row above it in this list, and of its own row only so:
WITHIN_A_ROW = {("recipe", "recipe_sections"), ("recipe", "recipe_arguments"), ("recipe_sections", "recipe_arguments")}
WITHIN_A_ROW |= {("cli", "commands"), ("__main__", "cli")}
PLAN = [
    {"errors"},
    {"files", "compute"},
    {"recipe", "recipe_sections", "recipe_arguments", "wheels"},
    {"data"},
    {"model", "domains"},
    {"bottleneck"},
    {"training"},
    {"losses"},
    {"evaluation"},
    {"publish"},
    {"pipeline"},
    {"cli", "commands", "__main__"},
]
LEVEL = {part: level for level, parts in enumerate(PLAN) for part in parts}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def part_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    own = part_of(path)
    assert own in LEVEL, f"{own} has no place in the plan"
    for imported in {module.split(".")[0] for module in imported_by(path)} - {own}:
        assert LEVEL[imported] < LEVEL[own] or (own, imported) in WITHIN_A_ROW, f"{own} imports {imported}"


def imported_by(path):
    """Yield the modules below lbr_st that a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lbr_st."):
            yield node.module.removeprefix("lbr_st.")


def test_the_models_parts_and_stage_1_know_nothing_of_data_recipes_or_training():
    parts = [
        ROOT / "model" / f"{name}.py" for name in ("mask", "packed_attention", "nll", "lora", "backbone", "pooler")
    ]
    for path in [*parts, *(ROOT / "bottleneck" / f"{name}.py" for name in ("rows", "passes", "loss", "gain"))]:
        known = {module.split(".")[0] for module in imported_by(path)}
        assert known <= {"errors", "compute", "model", "bottleneck"}, path


def test_no_circle_of_imports():
    graph = {".".join(path.relative_to(ROOT).with_suffix("").parts): {*imported_by(path)} for path in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_importing_the_package_is_cheap_and_every_public_name_resolves():
    script = (
        "import sys, lbr_st; "
        "import lbr_st.data.contamination, lbr_st.data.hold_out, lbr_st.data.pairs, lbr_st.data.sources; "
        "import lbr_st.domains.tasks; "
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'datasets', 'mteb', 'numpy', 'zstandard'}; "
        "heavy &= set(sys.modules); "
        "assert not heavy, heavy; "
        "[getattr(lbr_st, name) for name in lbr_st.__all__]; "
        "import lbr_st.pipeline, lbr_st.training.learn; "
        "assert all(callable(getattr(lbr_st, name)) for name in ('learn', 'represent', 'release', 'reconstruct'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr


def test_every_test_of_the_contract_is_there_and_runs_by_default():
    named = set(re.findall(r"`(test_\w+)`", (ROOT.parent / "tests" / "CONTRACT.md").read_text(encoding="utf-8")))
    found = {}
    for path in (ROOT.parent / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        of_file = any(isinstance(node, ast.Assign) and "mark.slow" in ast.unparse(node) for node in tree.body)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                slow = of_file or any(ast.unparse(one) == "pytest.mark.slow" for one in node.decorator_list)
                found[node.name] = found.get(node.name, True) and not slow
    assert len(named) > 60
    assert {name for name in named if not found.get(name)} == set()
