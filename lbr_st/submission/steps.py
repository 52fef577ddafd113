"""What a person must still do to bring a model to MTEB's leaderboard, with every name filled in."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from lbr_st.data.origins import TASK_ORIGINS, known_overlaps
from lbr_st.submission.facts import Given
from lbr_st.submission.mock import MockRun
from lbr_st.submission.results import Filed

BENCHMARKS = {"chebi": "ChemTEB(v1.1)", "mondo": "MTEB(Medical, v1)", "pydoc": "MTEB(Code, v1)"}
"""Main source of the training data → MTEB's benchmark of that domain."""

COMMIT = "PASTE_THE_COMMIT"


def benchmark_of(sources: list[str]) -> str | None:
    """Return MTEB's benchmark of the training data's domain, or None if no source tells it."""
    return next((BENCHMARKS[source] for source in sources if source in BENCHMARKS), None)


def write_steps(
    meta: Any,
    *,
    model_folder: Path,
    output: Path,
    meta_file: Path,
    published: bool,
    given: Given,
    sources: list[str],
    filed: Filed,
    mock: MockRun,
) -> str:
    """Return the text of ``STEPS.md``.

    Args:
        meta: The ``ModelMeta`` of the written file.
        model_folder: The release.
        output: The submission's folder.
        meta_file: The file with the ``ModelMeta``.
        published: The revision is a commit on the hub, so the first two steps are done.
        given: What a person gave, to be given again.
        sources: Names of the training sources.
        filed: Where scores went.
        mock: The mock run.
    """
    org, _, name = meta.name.partition("/")
    options = ["--org", org, "--name", name, "--output", str(output), "--revision", COMMIT, *given.flags()]
    again = shlex.join(["lbr-st", "submission", str(model_folder), *options])
    benchmark = benchmark_of(sources)
    parts = [_state(meta, meta_file, filed, mock)]
    parts += [] if published else [_upload(meta.name, model_folder), _again(again)]
    parts += [_pull_request(meta.name, meta_file, mock), _run(meta.name, output, benchmark)]
    parts += [_submit(meta.name, output), _say(meta, sources, filed)]
    numbered = [re.sub(r"^## ", f"## {number}. ", part) for number, part in enumerate(parts[1:], 1)]
    return "\n\n".join([parts[0], *numbered]) + "\n"


def _state(meta: Any, meta_file: Path, filed: Filed, mock: MockRun) -> str:
    failed = "".join(f"\n  - {task}: {' '.join(reason.split())}" for task, reason in mock.failures.items())
    left = "".join(f"\n  - {line}" for line in filed.left_out)
    return f"""# {meta.name}: what is left for a person

Ready in this folder:

- `{meta_file.name}`: the `ModelMeta`, revision `{meta.revision}`.
- `mock_run.md`: MTEB's mock run of the model, loaded through that file by `mteb.get_model`: {mock.passed} of \
{mock.total} passed.{failed}
- `results/`, scores for the leaderboard: {len(filed.public)}{_listed(filed.public)}.
- `results_local/`, scores on data that MTEB does not have: {len(filed.local)}{_listed(filed.local)}.
- Scores that were left out: {len(filed.left_out)}.{left}"""


def _listed(names: list[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _upload(name: str, folder: Path) -> str:
    return f"""## Publish the model

MTEB lists models that others can download. `{name}` must be free, and public.

```
hf auth login
hf upload {name} {shlex.quote(str(folder))} . --commit-message "Add the model"
python -c "from huggingface_hub import HfApi; print(HfApi().model_info('{name}').sha)"
```

The last line prints the commit, 40 hexadecimal digits."""


def _again(command: str) -> str:
    return f"""## Name that commit

The revision in the file is lbr-st's digest of the weights, which the hub does not know. Write it all again with the
commit in the place of `{COMMIT}`; results move along:

```
{command}
```"""


def _pull_request(name: str, meta_file: Path, mock: MockRun) -> str:
    warning = "" if mock.ok else "\n\n**Not all mock tasks passed: find out why before you open it.**"
    source = shlex.quote(str(meta_file.resolve()))
    return f"""## Pull request with the file

Fork <https://github.com/embeddings-benchmark/mteb>, then in a clone of your fork:

```
pip install -e .
cp {source} mteb/models/model_implementations/
mteb mock-run -m {name}
git checkout -b add-{name.replace("/", "-")}
git add mteb/models/model_implementations/{meta_file.name} mteb_mock_run_results.md
git commit -m "Add {name}"
git push -u origin HEAD
```

`mteb mock-run` loads the model from the hub and writes `mteb_mock_run_results.md`, which must say what `mock_run.md`
here says. Say in the pull request, in your own words, what the model is and where it comes from, and that no score can
be compared with the paper's, which reports other weights.{warning}"""


def _run(name: str, output: Path, benchmark: str | None) -> str:
    folder = shlex.quote(str(output.resolve()))
    chosen = f'"{benchmark}"' if benchmark else "BENCHMARK"
    choice = f"mteb run -m {name} -b {chosen} --output-folder {folder}"
    if not benchmark:
        choice = f"mteb available-benchmarks\n{choice}"
    return f"""## Run the benchmark

With the MTEB of that clone, which knows the model; it downloads the tasks. Results that are here already are not made
again.

```
{choice}
```"""


def _submit(name: str, output: Path) -> str:
    folder = shlex.quote(str(output.resolve()))
    return f"""## Submit the results

```
pip install "mteb[github]"
gh auth login
mteb submit-results --output-folder {folder} -m {name} --create-pr
```

Without `--create-pr` it commits the results to a branch in `{output}/remote`, to be pushed by hand. They appear on the
leaderboard about a day after both pull requests are merged."""


def _say(meta: Any, sources: list[str], filed: Filed) -> str:
    trained = ", ".join(sorted(meta.training_datasets))
    zero_shot = (
        f"names {trained}: the model was trained on their data, and MTEB will not count them as zero-shot."
        if trained
        else "is empty: no training source is the data of an MTEB task. It says nothing of overlaps under other names."
    )
    unsaid = ("public_training_code", "public_training_data", "contacts")
    missing = [key for key in unsaid if not getattr(meta, key)]
    asked = "".join(f"\n- `{key}` is None. Give `--{key}=...` once there is one." for key in missing)
    overlaps = "".join(f"\n- {line}" for line in known_overlaps(sources, sorted({*TASK_ORIGINS, *filed.public})))
    return f"""## Check what the file says

- `training_datasets` {zero_shot}{asked}

Overlaps by origin, which belong on the model card if they are not there yet:
{overlaps}"""
