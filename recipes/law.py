"""From documents alone: the United States' law of copyright and patents becomes a search by what a section is about.

python recipes/law.py --output lbr-law

Fetches titles 17 and 35 of the United States Code, which is in the public domain, from a public archive, and writes a
Markdown file a section. No pair is given. To judge, the heading of every second section is left out and asked for.
Where GitHub cannot be reached, LBR_ST_ARCHIVES names a folder with a copy of the repository.
"""

import json
import re
import sys
from pathlib import Path

from lbr_st.commands import recipe_script
from lbr_st.domains.archives import Archive, archive_folder
from lbr_st.recipe import DataConfig, LearnConfig, ModelConfig, Recipe, RepresentConfig

FOLDER, QUERIES = Path("law-documents"), Path("law-queries.jsonl")
CODE = Archive(
    repository="publicdocs/uscode",
    commit="2622a7a31555848f5d4859b8dafabfdc98416816",
    licence="public domain, 17 U.S.C. 105",
    read="",  # as it is
    files={
        "assets/md/titles/usc17/us/*_s*.md": "7f8e4518ec22618998f6808ddc9e620bc4a1738a184e46ef04ab150cfcdcb61f",
        "assets/md/titles/usc35/us/*_s*.md": "7b9b1b1b8acf060cb9591fcdcebc13d73594c5f254e60b7ef29d8a92062fd4cc",
    },
)
RECIPE = Recipe(
    name="lbr-law",
    model=ModelConfig(max_seq_length=128, lora_rank=16, lora_alpha=32),
    data=DataConfig(source=str(FOLDER), queries=str(QUERIES)),
    learn=LearnConfig(max_steps=80, context_weight=0.0, bag_weight=1.0),
    represent=RepresentConfig(max_steps=80, learning_rate=1e-3, token_learning_rate=5e-3),
)
HEADING = re.compile(r"^## §\s*(\S+)\. +(.+)$", re.MULTILINE)  # with narrow spaces
# Sources and notes of the editors, or a rule, end the text of the law.
END = re.compile(r"^(\(\[?(Pub\. L\.|Added|June|July|Aug|Mar|Oct)|-{5,}| __)", re.MULTILINE)
GONE = re.compile(r"(?i)\W*(repealed|omitted|renumbered|reserved|transferred)")
LINK, NOTE = re.compile(r"\[([^]\[]+)\]\[[^]]*\]"), re.compile(r"\s*<sup>.*</sup>")
LABEL = re.compile(r"^(\(\w+\))\s+__(.+?)__\s*(?:__)?\.?—?(?:__)?$\s*", re.MULTILINE)  # of a paragraph, on its own line
FEWEST_WORDS = 20


def write_documents() -> None:
    """Write the documents and the queries into the current folder."""
    queries, count = [], 0
    for file in sorted(archive_folder("uscode", CODE).rglob("*_s*.md")):
        content = file.read_text(encoding="utf-8")
        if not (found := HEADING.search(content)) or GONE.match(found[2]):
            continue
        text = END.split(content[found.end() :], maxsplit=1)[0]
        text = "\n\n".join(line.strip() for line in NOTE.sub("", LINK.sub(r"\1", text)).splitlines() if line.strip())
        text = LABEL.sub(lambda label: f"{label[1]} {label[2].strip(' .—')}. ", text).replace("__", "")
        if len(text.split()) < FEWEST_WORDS:
            continue
        name, heading = file.stem.removeprefix("m__us_usc_"), f"# {found[2].strip()}\n\n"
        count += 1
        if count % 2 == 0:
            queries.append({"query": found[2].strip(), "file": f"{name}.md"})
            heading = ""
        (FOLDER / f"{name}.md").write_text(f"{heading}{text}\n", encoding="utf-8")
    QUERIES.write_text("".join(json.dumps(one) + "\n" for one in queries), encoding="utf-8")


if __name__ == "__main__":
    if not QUERIES.is_file():  # written last
        FOLDER.mkdir(exist_ok=True)
        write_documents()
    sys.exit(recipe_script(__doc__, RECIPE, RECIPE))
