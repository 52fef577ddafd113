"""lbr-st submission: all that MTEB's leaderboard wants of a released model."""

from __future__ import annotations

from jsonargparse import ArgumentParser, Namespace

from lbr_st.commands.command import Command, add_results
from lbr_st.errors import LBRError
from lbr_st.recipe import Recipe

_TEXTS = {
    "revision": "Commit of the model on the hub, 40 hexadecimal digits, once it is there.",
    "name": "Name of the model on the hub; the folder's by default.",
    "release_date": "Day of the release, YYYY-MM-DD; today by default.",
    "license": "Licence of the weights in MTEB's spelling, or its URL; by default the card's, then the base's.",
    "adapted_from": "Hub id of the base; the recipe's by default.",
    "public_training_code": "URL of the training code, where it is public.",
    "public_training_data": "URL of the training data, where it is public.",
    "reference": "URL of the model's page; its page on the hub by default.",
}
_LISTS = {
    "languages": "Languages with their scripts, [eng-Latn]; the card's by default.",
    "training_datasets": "MTEB tasks whose data was trained on; by default those that the recipe's sources name.",
    "contacts": "GitHub handles of people to ask.",
}


def _submission(arguments: Namespace, recipe: Recipe) -> None:
    from pathlib import Path

    from lbr_st.submission import submission

    results = arguments.results
    if results == "results" and not Path(results).is_dir():
        results = None  # the default; one that was named must be there
    made = submission(
        arguments.model_folder,
        org=arguments.org,
        output=arguments.output,
        results=results,
        **{key: arguments[key] for key in (*_TEXTS, *_LISTS)},
    )
    filed, mock = made.filed, made.mock
    print(f"{made.name} at revision {made.revision}{'' if made.published else ' (a digest: it is not on the hub yet)'}")
    print(f"  {made.meta_file}: ModelMeta; mteb.get_model loads the model through it")
    print(f"  {made.folder / 'results'}: scores for the leaderboard: {_counted(filed.public)}")
    print(f"  {made.folder / 'results_local'}: scores on data that MTEB does not have: {_counted(filed.local)}")
    print(f"  left out: {len(filed.left_out)}")
    for line in filed.left_out:
        print(f"    {line}")
    print(f"  {made.folder / 'mock_run.md'}: {mock.passed} of {mock.total} mock tasks passed in {made.seconds:.0f} s")
    for task, reason in mock.failures.items():
        print(f"    {task} failed: {' '.join(reason.split())}")
    print(f"  {made.folder / 'STEPS.md'}: what is left for a person")
    if not mock.ok:
        fix = "Find out why before you open a pull request; the report beside it has each in full."
        what = f"only {mock.passed} of {mock.total} mock tasks passed."
        raise LBRError(what, where=str(made.folder / "mock_run.md"), fix=fix)


def _counted(tasks: list[str]) -> str:
    return f"{len(tasks)} ({', '.join(tasks)})" if tasks else "0"


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model_folder", type=str, metavar="MODEL", help="Folder of a released model.")
    parser.add_argument("--org", type=str, required=True, help="Organisation or user on the hub to publish under.")
    parser.add_argument("--output", type=str, default="submission", metavar="FOLDER", help="Folder to write.")
    add_results(parser)
    for name, text in _TEXTS.items():
        parser.add_argument(f"--{name}", type=str | None, default=None, help=text)
    for name, text in _LISTS.items():
        parser.add_argument(f"--{name}", type=list[str] | None, default=None, help=text)


SUBMISSION = Command(
    _submission,
    "Write what MTEB's leaderboard wants of a released model, and the steps that are left.",
    "MODEL --org ORG",
    "lbr-st submission lbr-chem --org my-org --results results",
    _arguments,
)
