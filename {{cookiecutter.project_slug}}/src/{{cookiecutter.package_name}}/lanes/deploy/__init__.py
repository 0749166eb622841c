"""Text of the files in deploy/, from lanes and project names alone; standard library only."""

from dataclasses import dataclass
from pathlib import Path

from ..config import Lanes
from . import compose, grafana, prometheus, supervisor, systemd

#: In the first line of each rendered file. A file of another name without it is its owner's, and is
#: never written or removed.
MARK = "from lanes.toml; change that, then run it again"


@dataclass(frozen=True, slots=True)
class Project:
    """What the files are named after."""

    slug: str  # the command, and the stem of unit and program names
    package: str  # the import name
    process_managers: tuple[str, ...]  # of "systemd", "supervisor" and "compose"


def render(lanes: Lanes, project: Project) -> dict[str, str]:
    """Every file of deploy/ for `lanes`, as {path within deploy/: text}."""
    slug = project.slug
    written = f"Written by `{slug} units` {MARK}.\n\n"
    files = {
        f"prometheus/{slug}.rules.yml": f"# {written}{prometheus.rules(lanes, slug)}",
        # JSON has no comments: the mark is what the dashboard says of itself.
        f"grafana/{slug}.json": grafana.dashboard(slug, f"Written by `{slug} units` {MARK}."),
    }
    if "supervisor" in project.process_managers:
        files[f"supervisor/{slug}.conf"] = f"; {written}{supervisor.installed(lanes, slug)}"
    if "systemd" in project.process_managers:
        for lane in lanes:
            unit = f"systemd/{slug}-{lane.name}@.service"
            files[unit] = f"# {written}{systemd.service(lane, slug)}"
        files[f"systemd/{slug}-metrics.service"] = f"# {written}{systemd.exporter(slug)}"
        files[f"systemd/{slug}.target"] = f"# {written}{systemd.target(lanes, slug)}"
        files[f"systemd/{slug}.sysusers.conf"] = f"# {written}{systemd.sysusers(slug)}"
    if "compose" in project.process_managers:
        files["compose/compose.yaml"] = f"# {written}{compose.services(lanes, slug)}"
    return files


def write(files: dict[str, str], directory: Path) -> list[Path]:
    """Write what `render` returned into `directory`, remove what it no longer returns.

    Returns:
        The files written or removed; those that were right already are not touched.
    """
    changed = stale(files, directory)
    for path, _old, new in changed:
        if new is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(new, encoding="utf-8")
    return [path for path, _old, _new in changed]


def stale(files: dict[str, str], directory: Path) -> list[tuple[Path, str | None, str | None]]:
    """What differs between `files` and `directory`: (path, text there, text that should be).

    `None` stands for no file. Files without our mark are their owner's and never differ.
    """
    wanted = {directory / name: text for name, text in files.items()}
    there = {
        path: text
        for path in sorted(directory.rglob("*"))
        if path.is_file() and (text := path.read_text(encoding="utf-8", errors="replace"))
        if path in wanted or MARK in text.partition("\n")[0]
    }
    return [
        (path, there.get(path), wanted.get(path))
        for path in sorted(wanted.keys() | there.keys())
        if there.get(path) != wanted.get(path)
    ]
