"""From documents alone: what networkx says about graph algorithms becomes a search.

python recipes/documents.py --output lbr-graphs

Writes the docstrings of a pinned wheel as Markdown, a file a module, and trains on them as on any folder of documents:
no pair is given. To judge, the first sentence of every third docstring is left out of the text and asked for.
"""

import ast
import inspect
import json
import re
import sys
from pathlib import Path

from lbr_st.commands import recipe_script
from lbr_st.domains.python_docs import EVALUATION_PACKAGES
from lbr_st.recipe import DataConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig

FOLDER, QUERIES = Path("graph-documents"), Path("graph-queries.jsonl")
RECIPE = Recipe(
    name="lbr-graphs",
    model=ModelConfig(max_seq_length=128, lora_rank=16, lora_alpha=32),
    data=DataConfig(source=str(FOLDER), queries=str(QUERIES)),
    learn=LearnConfig(max_steps=80, context_weight=0.0, bag_weight=1.0),
    represent=RepresentConfig(max_steps=80, learning_rate=1e-3, token_learning_rate=5e-3),
)
FEWEST_WORDS = 30
NO_PROSE = re.compile(r"(Parameters|Returns|Yields|Examples?|See Also|References|Raises)\n")


def write_documents() -> None:
    """Write the documents and the queries into the current folder."""
    [package] = [one for one in EVALUATION_PACKAGES if one.name == "networkx"]
    root, queries, count = package.fetch() / "networkx", [], 0
    for module in sorted((root / "algorithms").rglob("*.py")):
        if "tests" in module.parts:
            continue
        name = ".".join(module.relative_to(root).with_suffix("").parts)
        sections = []
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            docstring = inspect.cleandoc(ast.get_docstring(node) or "")
            parts = re.split(r"\n(?=[A-Z][A-Za-z ]+\n-{3,}\n)", docstring)
            text = "\n".join(part for part in parts if not NO_PROSE.match(part))
            text = re.sub(r"(?m)^([A-Z][A-Za-z ]+)\n-{3,}$", r"### \1", text)  # as deep as it is in its function
            if len(text.split()) < FEWEST_WORDS:
                continue
            first, _, rest = text.partition("\n\n")
            count += 1
            quote = " ".join(rest.partition("\n\n")[0].split()[:12])
            is_prose = not rest.startswith("#")  # but the title of a section
            if is_prose and count % 3 == 0 and len(first.split()) > 3 and len(quote.split()) > 7:
                queries.append({"query": " ".join(first.split()), "quote": quote})
                text = rest
            sections.append(f"## {node.name.replace('_', ' ')}\n\n{text}\n")
        if sections:
            (FOLDER / f"{name}.md").write_text(f"# {name}\n\n" + "\n".join(sections), encoding="utf-8")
    QUERIES.write_text("".join(json.dumps(one) + "\n" for one in queries), encoding="utf-8")


if __name__ == "__main__":
    if not QUERIES.is_file():  # written last
        FOLDER.mkdir(exist_ok=True)
        write_documents()
    sys.exit(recipe_script(__doc__, RECIPE, RECIPE))
