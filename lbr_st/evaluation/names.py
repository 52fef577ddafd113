"""Names of what is scored: the last part of a model's folder, and as much before it as tells two folders apart."""

from __future__ import annotations

from pathlib import Path

from lbr_st.evaluation.scores import RECORDS, folder_of, read_record
from lbr_st.files import UNTRAINED
from lbr_st.model.load import safe_name


def name_apart(model: str, name: str, output: str | Path) -> str:
    """Return the name to file a model's scores under: ``name``, with the folders above it where another has that.

    A folder keeps the name that its records in ``output`` have, with other weights, too.
    """
    if not (own := folder_of(model)):
        return name
    place, (org, _, last) = Path(model.removeprefix(UNTRAINED)), name.partition("/")
    above = [safe_name(part) for part in (place.resolve() if place.is_dir() else Path("/") / place).parts[1:-1]]
    names = [name, *(f"{org}/{'-'.join([*above[-n:], last])}" for n in range(1, len(above) + 1)), f"{name}-{own}"]
    kept = {}
    for each in names:
        records = map(read_record, (Path(output) / RECORDS / each.replace("/", "__")).rglob("*.json"))
        kept[each] = {record.folder for record in records if record}
    free = [each for each in names if not kept[each] - {"", own}]
    return next((each for each in free if own in kept[each]), free[0])
