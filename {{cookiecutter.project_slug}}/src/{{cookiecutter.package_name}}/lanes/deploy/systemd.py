"""systemd units: a template service for each lane, and a target that groups them.

https://www.freedesktop.org/software/systemd/man/latest/systemd.exec.html
"""

from ..config import Lane, Lanes

#: Seconds of silence after which a worker is restarted; see notify.py for what keeps it alive.
_WATCHDOG = 30

# Takes the unit's exposure, as `systemd-analyze security` scores it, from 9.2 to 1.2 or less.
_SANDBOX = """\
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateUsers=yes
PrivateIPC=yes
ProtectSystem=strict
ProtectHome=yes
ProtectProc=invisible
ProcSubset=pid
ProtectClock=yes
ProtectHostname=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RemoveIPC=yes
DevicePolicy=closed
UMask=0077
"""


def service(lane: Lane, slug: str) -> str:
    """The template unit of one lane; its instances, from 1, are the lane's workers."""
    memory = f"MemoryMax={lane.memory_max}\n" if lane.memory_max else ""
    return f"""\
[Unit]
Description={slug}: worker %i of the lane {lane.name}
PartOf={slug}.target
Wants=network-online.target
After=network-online.target
# A broker outage of any length must not leave the lane dead.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart=/opt/{slug}/current/bin/{slug} worker {lane.name} --instance %i
User={slug}
SyslogIdentifier=%p-%i
StateDirectory={slug}
RuntimeDirectory=%p-%i
WorkingDirectory=%S/{slug}
EnvironmentFile=-/etc/{slug}/environment
# By its path: without the file, the unit does not start, and uses no other broker.
LoadCredential=BROKER_URL:/etc/credstore/{slug}.BROKER_URL
# By its name: left out where there is none.
LoadCredential=RESULT_URL:{slug}.RESULT_URL

# Ready when it consumes; while the broker is away it asks for more time by itself.
TimeoutStartSec=60
WatchdogSec={_WATCHDOG}
Restart=always
RestartSec=2
# SIGTERM to the main process alone: to the group, it would end running tasks (celery #6541).
KillMode=mixed
# {_stop_reason(lane)}
TimeoutStopSec={round(lane.stop_time)}

# One task's child that runs out of memory does not end the lane.
OOMPolicy=continue
OOMScoreAdjust={200 if lane.nice else 0}
Nice={lane.nice}
CPUWeight={max(1, round(100 * cpu_share(lane)))}
{memory}
{_SANDBOX}"""


def exporter(slug: str) -> str:
    """The unit of what Prometheus asks; no worker waits for it, or ends with it."""
    return f"""\
[Unit]
Description={slug}: metrics of its lanes
PartOf={slug}.target
Wants=network-online.target
After=network-online.target
# A port that is taken for an hour must not leave the lanes unwatched for ever.
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart=/opt/{slug}/current/bin/{slug} metrics
User={slug}
StateDirectory={slug}
WorkingDirectory=%S/{slug}
EnvironmentFile=-/etc/{slug}/environment
LoadCredential=BROKER_URL:/etc/credstore/{slug}.BROKER_URL
Restart=always
RestartSec=10
TimeoutStopSec=10
OOMScoreAdjust=200

{_SANDBOX}"""


def target(lanes: Lanes, slug: str) -> str:
    """The unit that starts and stops every worker of every lane, and what tells of them."""
    wants = "".join(
        f"Wants={slug}-{lane.name}@{number}.service\n"
        for lane in lanes
        for number in range(1, lane.workers + 1)
    )
    wants += f"Wants={slug}-metrics.service\n"
    return f"""\
[Unit]
Description={slug}: every lane
{wants}
[Install]
WantedBy=multi-user.target
"""


def sysusers(slug: str) -> str:
    """The system user that the workers run as."""
    return f"""\
u {slug} - "{slug}" /var/lib/{slug}
"""


def _stop_reason(lane: Lane) -> str:
    if lane.drain == "requeue":
        return "drain_timeout, then running tasks are handed back, and 30 s to do so."
    return "The longest that a running task may take, and 30 s to clean up."


def cpu_share(lane: Lane) -> float:
    """Of what a lane without niceness gets: a step of nice is a factor of 1.25 (sched(7))."""
    return 1 / 1.25**lane.nice
