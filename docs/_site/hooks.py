"""What `make docs` adds to mkdocs: pages from all over the repository, links as the repository has them, pictures."""

import logging
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pictures
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.pages")

ROOT = Path(__file__).resolve().parents[2]
RESULTS = "benchmarks/results"
FILES = "files"  # where what a page links to and is no page goes
SUFFIXES = {".md", ".png", ".svg"}

# [text](target) and ![text](target), and the attributes of HTML that lead somewhere
LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s]+)(?P<after>[^)]*\))")
ATTRIBUTE = re.compile(r"(?P<before>\b(?:src|srcset|href)=\")(?P<target>[^\"]+)(?P<after>\")")
ELSEWHERE = re.compile(r"[a-z][a-z+.-]*:|#|//")
CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"<!-- pictures: (\w+) -->")


def outside_docs() -> dict[str, str]:
    """Pages and pictures outside of docs/: by path in the repository, the path in the site."""
    pages = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
    pages["SECURITY.md"] = "reporting.md"
    for readme in recipes():
        pages[relative(readme)] = f"recipes/{readme.parent.name}.md"
    for path in sorted((ROOT / RESULTS).rglob("*")):
        if path.suffix in SUFFIXES:
            pages[relative(path)] = f"results/{path.relative_to(ROOT / RESULTS).as_posix()}"
    pages[RESULTS] = "results/index.md"
    return pages


def recipes() -> list[Path]:
    """The recipes' pages, speech first."""
    return sorted((ROOT / "recipes").glob("*/README.md"), key=lambda path: (path.parent.name != "asr", path))


def relative(path: Path) -> str:
    """By its path in the repository."""
    return path.relative_to(ROOT).as_posix()


def title(path: Path) -> str:
    """The first heading of a page."""
    found = re.search(r"^# (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return found[1] if found else path.stem


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the recipes of the navigation, and the pages that mkdocs.yml does not name."""
    places = outside_docs()
    config.nav = config.nav or []
    for entry in config.nav:
        if "Recipes" in entry:
            entry["Recipes"] = [{title(path): places[relative(path)]} for path in recipes()]
    named = str(config.nav)
    others = [path for path in sorted((ROOT / "docs").glob("*.md")) if f"'{path.name}'" not in named]
    config.nav += [{title(path): path.name} for path in others]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside of docs/."""
    for source, place in outside_docs().items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "results/index.md", content=results_page()))
    files.append(File.generated(config, "assets/site.css", abs_src_path=str(Path(__file__).with_name("site.css"))))
    return files


def results_page() -> str:
    """A list of the measurements, by their titles."""
    pages = sorted((ROOT / RESULTS).glob("*.md"))
    rows = "\n".join(f"- [{title(path)}]({relative(path)}), `{path.name}`" for path in pages)
    return f"# Measurements\n\nEach with its command, its machine and its date.\n\n{rows}\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to where the repository's files are in the site, and put pictures where a page asks for them."""
    source = sources(files).get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder = "" if page.file.src_uri == "results/index.md" else posixpath.dirname(source)
    warn_of_lists(markdown, source)

    def led(match: re.Match[str]) -> str:
        target = here(match["target"], folder, page, config, files)
        return f"{match['before']}{target}{match['after']}"

    parts = CODE.split(markdown)
    for index in range(0, len(parts), 2):
        parts[index] = ATTRIBUTE.sub(led, LINK.sub(led, parts[index]))
    return MARKER.sub(lambda match: gallery(match[1], page, config, files), "".join(parts))


def sources(files: Files) -> dict[str, str]:
    """By path in the site, the path in the repository."""
    return {place: source for source, place in outside_docs().items()}


def here(target: str, folder: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A link's target as seen from the page in the site."""
    if ELSEWHERE.match(target):
        return target
    path, hash_, anchor = target.partition("#")
    wanted = posixpath.normpath(posixpath.join(folder, path))
    place = outside_docs().get(wanted) or (wanted.removeprefix("docs/") if wanted.startswith("docs/") else None)
    if place is None or files.get_file_from_path(place) is None:
        place = f"{FILES}/{wanted}"
        if not (ROOT / wanted).is_file():
            log.warning("%s: %s leads to nothing that is in the site", page.file.src_uri, target)
            return target
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / wanted)))
    return os.path.relpath(place, posixpath.dirname(page.file.src_uri) or ".") + hash_ + anchor


def gallery(family: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """A picture of each schedule of a family, with the block that makes it."""
    figures = []
    for name, block, svg in pictures.draw(family):
        place = f"schedules/{name}.svg"
        files.append(File.generated(config, place, content=svg))
        figures.append(f"<figure markdown>\n![{name} over {pictures.STEPS} steps]({place})\n\n`{block}`\n</figure>\n")
    log.info("%s: %d pictures of schedules", page.file.src_uri, len(figures))
    return '<div class="gallery" markdown>\n' + "\n".join(figures) + "</div>"


def list_starts(markdown: str) -> Iterator[int]:
    """Lines on which a list begins right below a paragraph: GitHub sees the list, mkdocs does not."""
    before, in_code = "", False
    for number, line in enumerate(markdown.splitlines(), start=1):
        in_code ^= line.lstrip().startswith("```")
        item = re.match(r"([-*]|1\.) ", line)
        if item and not in_code and re.match(r"[^\s#<]", before) and not re.match(r"([-*]|\d+\.) ", before):
            yield number
        if line.startswith("  ") and re.match(r"([-*]|\d+\.) ", before):
            continue  # still the item
        before = line


def warn_of_lists(markdown: str, source: str) -> None:
    """An error under ``--strict``."""
    for number in list_starts(markdown):
        log.warning("%s:%d: a list needs an empty line before it", source, number)


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """See that every schedule has its picture."""
    drawn = {path.stem for path in Path(config.site_dir, "schedules").glob("*.svg")}
    if missing := sorted(pictures.all_names() - drawn):
        log.warning("docs/schedules.md has no picture of %s", ", ".join(missing))
