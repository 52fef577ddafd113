"""A first recipe for a person's data: the settings that matter with what they mean, and what the run will cost."""

from __future__ import annotations

import math
import os
import tempfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import docstring_parser
import yaml

from lbr_st.errors import Interrupted
from lbr_st.files import notice, refuse_existing, write_whole
from lbr_st.model.bases import refuse_unaccepted
from lbr_st.recipe import SECTIONS, Recipe, RunConfig, with_steps
from lbr_st.recipe_sections import MATTER_MOST
from lbr_st.training.data import prepare
from lbr_st.training.learn import learn
from lbr_st.training.model import model_from_recipe
from lbr_st.training.progress import TIMED, quiet_libraries
from lbr_st.training.represent import represent

HEAD = """# A recipe for lbr-st: lbr-st train --config {} --output my-model
# What is not named here keeps its default. `lbr-st train --help-all` lists every setting.
"""
SAMPLE = 64  # documents that are encoded to see how long scoring takes


def init(recipe: Recipe, source: str, output: Path, *, overwrite: bool = False) -> str:
    """Write a recipe for a source of data, and return what its run will cost on this machine.

    The data are read and three steps of each stage are taken, as training does it, in a folder that is removed.

    Args:
        recipe: The settings, apart from the source.
        source: Domain data, as ``data.source`` takes them.
        output: The YAML file to write: the settings that matter most, and others that are not at their defaults.
        overwrite: Replace ``output``.

    Raises:
        LBRError: ``output`` exists, or the data or the base cannot be read.
    """
    recipe.data.source = source
    recipe.validate()
    refuse_unaccepted(recipe.model.base, accepted=recipe.model.accept_licence)
    refuse_existing(output, overwrite=overwrite)
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    aside = tempfile.TemporaryDirectory(prefix=".lbr-st-init-", dir=output.absolute().parent)
    with quiet_libraries(), aside as place:
        try:
            cost = _cost(recipe, Path(place))
        except Interrupted:
            raise Interrupted("nothing was written.") from None
    write_whole(output, commented(recipe, output))
    start = f"lbr-st train --config {output} --output my-model"
    return "\n".join([*cost, f"Written: {output}. Edit it if you like, then start the run:\n\n{start}"])


def commented(recipe: Recipe, output: Path) -> str:
    """Return a recipe in YAML, with a comment on each setting."""
    values, usual, text = recipe.flat(), Recipe().flat(), HEAD.format(output)
    for section, kind in {"": RunConfig, **SECTIONS}.items():
        lines = []
        for field in docstring_parser.parse(kind.__doc__ or "").params:
            key = f"{section}.{field.arg_name}" if section else field.arg_name
            if key in MATTER_MOST or values[key] != usual[key]:
                lines += textwrap.wrap(field.description or "", initial_indent="# ", subsequent_indent="# ", width=110)
                value = {field.arg_name: values[key]}
                lines.append(yaml.safe_dump(value, allow_unicode=True).rstrip())
        if lines:
            block = "\n".join(lines)
            text += f"\n{section}:\n{textwrap.indent(block, '  ')}\n" if section else f"\n{block}\n"
    return text


def _cost(recipe: Recipe, place: Path) -> list[str]:
    """Return a line for each part of a run, and last how long all will take, going by three steps of each stage."""
    start, lines, minutes = time.monotonic(), [], {}
    data = prepare(recipe, place / "data")
    minutes["reading"] = (time.monotonic() - start) / 60
    notice(f"Taking {TIMED} steps of each stage to see how long one lasts here …")
    model = model_from_recipe(recipe)
    hours = recipe.max_hours / 2 if data.made and recipe.max_hours else math.inf
    for name, pairs in (("learn", data.learn_pairs), ("represent", data.pairs)):
        config, train = getattr(recipe, name), cast(Any, learn if name == "learn" else represent)
        if pairs is None or not config.enabled or config.max_steps == 0:
            continue
        config = with_steps(config, len(pairs) if data.made else None)
        # Neither a teacher's answers nor hard negatives are part of a step; both are made once, before the first.
        once = {"teacher": None, "num_hard_negatives": 0} if name == "represent" else {}
        options: Any = {"precision": recipe.precision, "save_strategy": "no", "logging_strategy": "no"}
        few = replace(config, max_steps=TIMED, **once)
        log = train(model, pairs, few, output_dir=place / name, disable_tqdm=True, **options)
        seconds = log[-1]["train_runtime"] / TIMED
        steps = int(min(config.max_steps, max(TIMED + 1, hours * 3600 / seconds)))
        minutes[name] = steps * seconds / 60
        lines.append(f"{name}: {steps:,} steps of {config.batch_size} of {len(pairs):,} pairs, {seconds:.1f} s each")
    if data.test is not None:
        texts, models = [*data.test.corpus.values(), *data.test.queries.values()], len(lines)
        lines.append(f"scoring: {len(data.test.queries):,} queries in {len(data.test.corpus):,} documents")
        start = time.monotonic()
        model.encode_document(texts[:SAMPLE], batch_size=recipe.evaluate.batch_size, show_progress_bar=False)
        minutes["scoring"] = models * (time.monotonic() - start) / 60 * len(texts) / len(texts[:SAMPLE])
    each = ", ".join(f"{name} {number:.1f}" for name, number in minutes.items())
    return [*lines, f"About {sum(minutes.values()):.0f} minutes on this machine ({os.cpu_count()} cores): {each}."]
