"""From documents alone: what networkx's docstrings say about graph algorithms becomes a search.

python recipes/documents.py --output lbr-graphs

Writes the docstrings of a pinned wheel as Markdown, a file a module, and trains on them as on any folder of documents:
no pair is given. To judge, the first sentence of every fifth docstring is taken out of the text and asked for.
"""

import ast
import inspect
import json
import sys
from pathlib import Path

from lbr_st.commands import recipe_script
from lbr_st.domains.python_docs import EVALUATION_PACKAGES
from lbr_st.recipe import DataConfig, EvaluateConfig, ModelConfig, Recipe

FOLDER, QUERIES = Path("graph-documents"), Path("graph-queries.jsonl")
RECIPE = Recipe(
    name="lbr-graphs",
    model=ModelConfig(max_seq_length=128, lora_rank=16, lora_alpha=32),
    data=DataConfig(source=str(FOLDER), queries=str(QUERIES)),
    evaluate=EvaluateConfig(num_queries=200, num_documents=2000),
)
FEWEST_WORDS = 40


def write_documents() -> None:
    """Write the documents and the queries into the current folder."""
    [package] = [one for one in EVALUATION_PACKAGES if one.name == "networkx"]
    root, queries, count = package.fetch() / "networkx", [], 0
    for module in sorted(root.rglob("*.py")):
        if "tests" in module.parts:
            continue
        name = ".".join(module.relative_to(root.parent).with_suffix("").parts)
        sections = []
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            text = inspect.cleandoc(ast.get_docstring(node) or "")
            if len(text.split()) < FEWEST_WORDS:
                continue
            first, _, rest = text.partition("\n\n")
            count += 1
            if count % 5 == 0 and len(first.split()) > 3:
                quote = next((line for line in rest.split("\n") if len(line.split()) > 5), "")
                if quote:
                    queries.append({"query": " ".join(first.split()), "file": f"{name}.md", "quote": quote})
                    text = rest
            sections.append(f"## {node.name.replace('_', ' ')}\n\n{text}\n")
        if sections:
            (FOLDER / f"{name}.md").write_text(f"# {name}\n\n" + "\n".join(sections), encoding="utf-8")
    QUERIES.write_text("".join(json.dumps(one) + "\n" for one in queries), encoding="utf-8")


if __name__ == "__main__":
    if not FOLDER.is_dir():
        FOLDER.mkdir()
        write_documents()
    sys.exit(recipe_script(__doc__, RECIPE, RECIPE))
