"""Python functions by what their docstring says: a code retrieval task from pinned wheels that are never run."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from lbr_st.data.functions import Function, functions_in
from lbr_st.data.ontology import DomainTask, Entity, group_entities, make_task, normalise
from lbr_st.errors import LBRError
from lbr_st.registry import fetch_wheel


@dataclass(frozen=True)
class Package:
    """A pure-Python wheel of the registry, and the licence its metadata name."""

    name: str
    version: str
    sha256: str
    licence: str

    def fetch(self) -> Path:
        """Return the folder of the unpacked wheel; see :func:`lbr_st.registry.fetch_wheel`."""
        filename = f"{self.name}-{self.version}-py3-none-any.whl"
        return fetch_wheel(f"{self.name}=={self.version}", filename, self.sha256)


EVALUATION_PACKAGES = (
    Package("dask", "2026.8.0", "ccc0c83a189b0398602435189771d28dad7b5773b6089bb8dce14ae732dd782c", "BSD-3-Clause"),
    Package("django", "5.2.19", "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00", "BSD-3-Clause"),
    Package("networkx", "3.6.1", "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762", "BSD-3-Clause"),
    Package("textual", "8.2.8", "267375fd402dc8d981457212efa71f0e3365fd17bba144ba9bb3ed7563cb374a", "MIT"),
    Package("xarray", "2026.9.0", "fe349fa871628b1a0a5217af3fe1283a2862d5485156e6eda354fffb81c3bb7c", "Apache-2.0"),
)
TRAINING_PACKAGES = (
    Package("celery", "5.7.0", "18310a9c919f9029e4735367484d93e6a25cdfd30afdc474622cc263d9b35f6e", "BSD-3-Clause"),
    Package("nltk", "3.10.4", "769ba5413f265b7d3e87cd163cc28efa01e29eeef8bb6080bc907949d9fcfb51", "Apache-2.0"),
    Package("sphinx", "9.0.4", "5bebc595a5e943ea248b99c13814c1c5e10b3ece718976824ffa7959ff95fffb", "BSD-2-Clause"),
    Package("sympy", "1.14.0", "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5", "BSD-3-Clause"),
    Package("twisted", "26.10.0", "3732f42af218925a0fe78d6668db55853f7fb532245a89a2669babe7d3000fa8", "MIT"),
)
LICENCE = "Python functions of " + ", ".join(
    f"{package.name} {package.version} ({package.licence})" for package in (*EVALUATION_PACKAGES, *TRAINING_PACKAGES)
)

# Tests, and copies of other packages.
SKIPPED_PATH = re.compile(
    r"(?:^|/)(?:tests?|testing|conftest|_?vendor(?:ed)?|_?externals?|test_[^/]*|[^/]*_tests?)(?:/|\.py$)"
)


def load_functions(packages: tuple[Package, ...]) -> list[Entity]:
    """Return the usable functions of packages (see :func:`lbr_st.data.functions.functions_in`), in a fixed order.

    Returns:
        Entities: the docstring's first sentence is the name, the source without the docstring is the definition,
        and the body alone is a synonym, so that the same code under two names counts as one.

    Raises:
        LBRError: A wheel cannot be had, or this Python cannot parse a module of it.
    """
    return [as_entity(key, function) for key, function in read_functions(packages).items()]


def read_functions(packages: tuple[Package, ...]) -> dict[str, Function]:
    """Return the same functions as they stand in their modules, by the ids of their entities.

    Raises:
        LBRError: As for :func:`load_functions`.
    """
    return {
        key: function for package in packages for key, function in _functions_of(package.name, package.fetch()).items()
    }


def as_entity(key: str, function: Function) -> Entity:
    """Return what :func:`load_functions` makes of a function."""
    return Entity(key, function.sentence, function.source, (function.body,))


def pydoc_task(seed: int = 0, num_documents: int | None = None, num_dev: int = 500, num_test: int = 1000) -> DomainTask:
    """Return the code task: which function does what this sentence says?

    Dev, test and the corpus are functions of some packages, training pairs and texts those of others. A function is
    used only if no other, of any package, has its sentence or its body, up to case, space and punctuation, so each
    sentence has one right answer and nothing trained on is a copy of anything asked for.

    Args:
        seed: Another seed draws other queries.
        num_documents: Functions in the corpus; None for all that are usable in the packages of the evaluation.
        num_dev: Dev queries.
        num_test: Test queries.

    Raises:
        LBRError: A wheel cannot be had, or the numbers are more than the packages hold.
    """
    return make_pydoc_task(
        load_functions(EVALUATION_PACKAGES),
        load_functions(TRAINING_PACKAGES),
        seed=seed,
        num_documents=num_documents,
        num_dev=num_dev,
        num_test=num_test,
    )


def make_pydoc_task(
    evaluation: list[Entity],
    training: list[Entity],
    *,
    seed: int,
    num_documents: int | None,
    num_dev: int,
    num_test: int,
) -> DomainTask:
    """Return the task of :func:`pydoc_task` over given functions.

    Args:
        evaluation: What is asked for and searched.
        training: What is trained on.
        seed: Another seed draws other queries.
        num_documents: Functions in the corpus; None for all usable ones of ``evaluation``.
        num_dev: Dev queries.
        num_test: Test queries.

    Raises:
        LBRError: The numbers are more than the functions allow, or none is left to train on.
    """
    from datasets import Dataset

    single = {group[0].id for group in group_entities([*evaluation, *training]) if len(group) == 1}
    searched = [entity for entity in evaluation if entity.id in single]
    trained = [entity for entity in training if entity.id in single]
    if not trained:
        raise LBRError("there is no function to train on.", where="pydoc", fix="Give other packages.")
    task = make_task(
        searched,
        name="pydoc-functions",
        description="Given the first sentence of a docstring, find the Python function it describes.",
        licence=LICENCE,
        seed=seed,
        num_documents=len({normalise(e.definition) for e in searched}) if num_documents is None else num_documents,
        num_dev=num_dev,
        num_test=num_test,
    )
    pairs = {"query": [entity.name for entity in trained], "document": [entity.definition for entity in trained]}
    return replace(
        task, train_pairs=Dataset.from_dict(pairs), train_texts=Dataset.from_dict({"text": pairs["document"]})
    )


def _functions_of(package: str, folder: Path) -> dict[str, Function]:
    found: dict[str, Function] = {}
    root = folder / package
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        inside = path.relative_to(root).as_posix()
        if SKIPPED_PATH.search(inside):
            continue
        for function in functions_in(path.read_bytes(), f"{package}/{inside}"):
            key = base = f"{package}/{inside}:{function.name}"
            number = 1
            while key in found:  # a property's setter, or a definition for another platform
                number += 1
                key = f"{base}#{number}"
            found[key] = function
    return found
