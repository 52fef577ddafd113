"""Nothing imports upwards: the floor plan of docs/ARCHITECTURE.md, checked on the source itself."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lbr_st

ROOT = Path(lbr_st.__file__).parent

# From the ground up. A part may import from its own row (its own package) and from any row above it in this list.
PLAN = [
    {"errors", "versions"},
    {"files", "precision", "processes", "wrapped"},
    {"locks"},
    {"registry"},
    {"bases", "data", "model_files"},
    {"domains"},
    {"contamination"},
    {"adapters", "merged_lora", "quantization", "packed_attention", "token_nll"},
    {"attention"},
    {"modules"},
    {"load"},
    {"rows"},
    {"bottleneck"},
    {"losses"},
    {"tokens"},
    {"batches"},
    {"recipe_sections"},
    {"recipe_arguments"},
    {"recipe"},
    {"build", "card", "provenance"},
    {"stages", "learn_pairs"},
    {"run_data", "stage_folders"},
    {"scoring", "export", "submission", "checking"},
    {"run_scores"},
    {"pipeline"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(PLAN) for part in parts}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def part_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path):
    own = part_of(path)
    assert own in LEVEL, f"{own} has no place in the plan"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lbr_st."):
            imported = node.module.split(".")[1]
            together = {imported, own} <= {"cli", "commands"}
            assert imported == own or together or LEVEL[imported] < LEVEL[own], (
                f"line {node.lineno}: {own} imports {imported}"
            )


def test_modules_and_attention_know_nothing_of_data_recipes_or_training():
    lowest = ("attention", "packed_attention", "token_nll")
    for path in FILES:
        if part_of(path) in (*lowest, "modules", "adapters", "rows", "bottleneck", "losses"):
            names = {
                node.module.split(".")[1]
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lbr_st.")
            }
            assert not names & {"data", "recipe", "recipe_arguments", "stages", "pipeline", "evaluation", "files"}, path


def test_importing_the_package_is_cheap_and_every_public_name_resolves():
    script = (
        "import sys, lbr_st; "
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'datasets', 'mteb'} & set(sys.modules); "
        "assert not heavy, heavy; "
        "[getattr(lbr_st, name) for name in lbr_st.__all__]; "
        "import lbr_st.pipeline, lbr_st.stages.learn; "
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
