"""What an export's card says: the release's card, with the export's own section in front."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from lbr_st.export.parity import LEAST, Parity

TITLES = {"openvino": "OpenVINO", "onnx": "ONNX"}


@dataclass(frozen=True)
class Export:
    """An export that passed.

    Args:
        backend: ``"openvino"`` or ``"onnx"``.
        precision: ``"float32"`` or ``"int8"``.
        computes_in: The arithmetic outside of quantised products, as the loaded model reports it.
        parity: Its cosines with the release, as the release's own environment encodes.
        torch_parity: The same of the release, run by torch in the exporting environment.
        versions: Package → version in the exporting environment.
        release_versions: The same in the release's.
        calibration: Where int8 scales come from; "" if none were needed.
    """

    backend: str
    precision: str
    computes_in: str
    parity: Parity
    torch_parity: Parity
    versions: dict[str, str] = field(default_factory=dict)
    release_versions: dict[str, str] = field(default_factory=dict)
    calibration: str = ""


def export_card(card: str, export: Export) -> str:
    """Return a release's card with a section on the export below its title, or that section alone.

    Args:
        card: The release's ``README.md``; "" if it has none.
        export: What to tell.
    """
    section = _section(export)
    title = re.search(r"^# .*$", card, flags=re.MULTILINE)
    if title is None:
        return f"{card.rstrip()}\n\n{section}\n".lstrip()
    return f"{card[: title.end()]}\n\n{section}\n\n{card[title.end() :].lstrip()}"


def _section(export: Export) -> str:
    least, found, torch = LEAST[export.precision], export.parity, export.torch_parity
    lines = [
        f"## This folder is an export for {TITLES[export.backend]}",
        "It has no weights for torch. Everything below this section is the card of the model it was made from. Load "
        "it so, in an environment with `requirements.txt`:",
        "```bash\npip install -r requirements.txt\n```",
        f'```python\nfrom sentence_transformers import SentenceTransformer\n\nmodel = SentenceTransformer("FOLDER", '
        f'backend="{export.backend}")\n```',
        "\n".join(
            [
                "| | |",
                "|---|---|",
                f"| backend | {export.backend} |",
                f"| precision | {_precision(export)} |",
                f"| cosine with the release, {_PROBES} | lowest {found.lowest:.6f}, mean {found.mean:.6f} |",
                f"| required | lowest {least.lowest}, mean {least.mean} |",
                f"| the same of torch where it was exported | lowest {torch.lowest:.6f}, mean {torch.mean:.6f} |",
                f"| exported and measured with | {_listed(export.versions)} |",
                f"| compared with the release in | {_listed(export.release_versions)} |",
            ]
        ),
    ]
    return "\n\n".join(lines)


_PROBES = "over its probe texts as queries and as documents"


def _precision(export: Export) -> str:
    if export.precision == "float32":
        return f"float32; it computes in {export.computes_in}"
    scales = f"; scales from {export.calibration}" if export.calibration else ""
    return f"int8 weights and activations{scales}; everything else in {export.computes_in}"


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items())
