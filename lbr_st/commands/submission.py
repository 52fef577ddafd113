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
    print(f"{made.state}\n- `STEPS.md`: what is left for a person.\nAll of it is in {made.folder}.")
    if made.failures or not made.total:
        raise LBRError(
            f"only {made.total - len(made.failures)} of {made.total} mock tasks passed.",
            where=str(made.folder / "mock_run.md"),
            fix="Find out why before you open a pull request; the report has each failure in full.",
        )


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
