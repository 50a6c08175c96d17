"""The badges of README.md, from pyproject.toml: `python docs/_site/badges.py`."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "pictures"
WIDTH = 6.6  # of a letter, px

SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{label} {value}">
<rect width="{width}" height="20" rx="3" fill="#555"/>
<path d="M{left} 0h{right}a3 3 0 0 1 3 3v14a3 3 0 0 1 -3 3h-{right}z" fill="#0a6cbd"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">
<text x="{middle_left}" y="14">{label}</text><text x="{middle_right}" y="14">{value}</text>
</g>
</svg>
"""


def badges() -> dict[str, str]:
    """SVG by file name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    values = {"python": at_least(project["requires-python"]), "licence": project["license"]}
    values |= {name: at_least(requirement(project["dependencies"], name)) for name in ("torch", "lightning")}
    return {f"{label}.svg": badge(label, value) for label, value in values.items()}


def requirement(dependencies: list[str], name: str) -> str:
    """What is asked of a package."""
    return next(text.removeprefix(name) for text in dependencies if re.match(rf"{name}\W", text))


def at_least(specifier: str) -> str:
    """`>=2.10` as a reader says it."""
    return specifier.removeprefix(">=") + " or newer"


def badge(label: str, value: str) -> str:
    """Label on grey, value on blue."""
    left, right = (round(WIDTH * len(text)) + 12 for text in (label, value))
    middles = {"middle_left": left / 2, "middle_right": left + right / 2}
    return SVG.format(label=label, value=value, width=left + right, left=left, right=right - 3, **middles)


if __name__ == "__main__":
    for file, text in badges().items():
        (FOLDER / file).write_text(text, "utf-8")
