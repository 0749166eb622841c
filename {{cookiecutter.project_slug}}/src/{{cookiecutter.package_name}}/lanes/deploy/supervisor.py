"""Supervisor programs: one per lane, all in one group.

Every key is supervisor's own; it ignores those it does not know, so a test looks each one up.
https://supervisord.org/configuration.html
"""

import shlex

from ..config import Lane, Lanes

#: The group of every lane's programs in the foreground.
FOREGROUND_GROUP = "lanes"
_STAYS = {
    "autostart": "true",
    "autorestart": "true",
    # Each failed start waits a second longer; none is ever given up.
    "startretries": "1000000",
    "startsecs": "5",
    "redirect_stderr": "true",
}


def installed(lanes: Lanes, slug: str) -> str:
    """The file for /etc/supervisor/conf.d/, for a project installed in /opt/<slug>."""
    command = f"/opt/{slug}/current/bin/{slug}"

    def more(log: str) -> dict[str, str]:
        return {
            "directory": f"/var/lib/{slug}",
            "user": slug,
            "stdout_logfile": f"/var/log/{slug}/{log}.log",
            "stdout_logfile_maxbytes": "20MB",
            "stdout_logfile_backups": "5",
        }

    programs = [
        _program(
            f"{slug}-{lane.name}", lane, command=command, more=more(f"{lane.name}-%(process_num)d")
        )
        for lane in lanes
    ]
    # Supervisor stops programs one after another, and a group's all at once.
    group = _section(
        f"group:{slug}", {"programs": ",".join(f"{slug}-{lane.name}" for lane in lanes)}
    )
    # Outside the group, so that an upgrade of the workers does not wait for it; a name that no
    # lane's program can have.
    name = "metrics-exporter"
    keys = {"command": f"{command} metrics", **_STAYS, "stopwaitsecs": "10"}
    exporter = _section(f"program:{slug}-{name}", keys | more(name))
    return "\n".join([*programs, group, exporter])


def foreground(  # noqa: PLR0913 - each of them stands in the file
    lanes: Lanes,
    *,
    command: list[str],
    broker: list[str] | None,
    pidfile: str,
    output: str,
    user: str | None,
) -> str:
    """The configuration of `workers`: the same programs, logging to one place.

    Args:
        command: how to call the project's command, each part one word.
        broker: the command of an embedded broker that starts first and stops last, if any.
        output: the file that all log to, a pipe.
        user: the user's name when that is root (supervisor insists on it), else None.
    """
    to_output = {
        # A pipe cannot be rotated.
        "stdout_logfile": output,
        "stdout_logfile_maxbytes": "0",
    }
    daemon = {
        "nodaemon": "true",
        # Its own log would repeat what the lanes say; problems still reach the terminal.
        "logfile": "/dev/null",
        "logfile_maxbytes": "0",
        "loglevel": "error",
        "pidfile": _escaped(pidfile),
    }
    if user is not None:
        daemon["user"] = user
    sections = [_section("supervisord", daemon)]
    if broker is not None:
        sections.append(
            _section(
                # A name that no lane can have.
                "program:embedded-valkey",
                {
                    "command": _escaped(shlex.join(broker)),
                    "priority": "1",
                    "stopwaitsecs": "30",
                    "killasgroup": "true",
                    "redirect_stderr": "true",
                }
                | to_output,
            )
        )
    sections += [
        _program(lane.name, lane, command=_escaped(shlex.join(command)), more=to_output)
        for lane in lanes
    ]
    sections.append(
        _section(f"group:{FOREGROUND_GROUP}", {"programs": ",".join(lane.name for lane in lanes)})
    )
    return "\n".join(sections)


def _program(name: str, lane: Lane, *, command: str, more: dict[str, str]) -> str:
    keys = {
        "command": f"{command} worker {lane.name} --instance %(process_num)d",
        "process_name": "%(program_name)s-%(process_num)d",
        "numprocs": str(lane.workers),
        "numprocs_start": "1",
        **_STAYS,
        # SIGTERM to the worker's main process only: to the group, it would end the children and
        # the tasks they run (celery #6541).
        "stopsignal": "TERM",
        "stopasgroup": "false",
        "stopwaitsecs": str(round(lane.stop_time)),
        "killasgroup": "true",
    }
    return _section(f"program:{name}", keys | more)


def _section(name: str, keys: dict[str, str]) -> str:
    return "".join(f"{line}\n" for line in [f"[{name}]", *(f"{k}={v}" for k, v in keys.items())])


def _escaped(text: str) -> str:
    """`text` with supervisor's %-expansions switched off."""
    return text.replace("%", "%%")
