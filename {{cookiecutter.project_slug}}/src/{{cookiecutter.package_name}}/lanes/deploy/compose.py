"""The Compose file: the broker, a service for each lane, one worker a container, and metrics.

https://docs.docker.com/reference/compose-file/services/
"""

from ..config import Lane, Lanes
from .systemd import cpu_share

_BROKER = "message-broker"  # a name that no lane can have
_IMAGE = "docker.io/valkey/valkey:8.1-alpine"
_RELEASE = "${RELEASE:-latest}"  # Compose puts the variable's value in

# Prometheus asks it from within the network of this file: whoever can reach it, can read it.
# /favicon.ico is empty, and nothing is asked of the broker for it.
_EXPORTER = """\
  metrics-exporter:
    <<: *worker
    command: [metrics, --host, 0.0.0.0, --port, "9464"]
    expose: ["9464"]
    healthcheck:
      test:
        - CMD
        - python3
        - -c
        - import urllib.request; urllib.request.urlopen("http://127.0.0.1:9464/favicon.ico")
      interval: 30s
      timeout: 10s
      start_period: 60s
    stop_grace_period: 10s
"""

_SECRETS = """\
secrets:
  BROKER_URL:
    file: secrets/BROKER_URL

volumes:
  broker:
"""


def services(lanes: Lanes, slug: str) -> str:
    """The file for `docker compose`, of an image that the project's Dockerfile builds."""
    workers = [_service(lane) for lane in lanes]
    return "\n".join([_worker(slug), "services:", _broker(), *workers, _EXPORTER, _SECRETS])


def _worker(slug: str) -> str:
    return f"""\
# What you change goes into compose.override.yaml, beside this file: docs/containers.md says how.
name: "{slug}"

x-worker: &worker
  image: {slug}:{_RELEASE}
  build: ../..
  depends_on:
    {_BROKER}:
      condition: service_healthy
  # Without its file nothing starts, and no other broker is used.
  secrets: [BROKER_URL]
  environment:
    CREDENTIALS_DIRECTORY: /run/secrets
    LANES_HEARTBEAT_FILE: /tmp/heartbeat
  env_file:
    - path: environment
      required: false
  # Touched each second while the worker's loop turns, with the broker away too.
  healthcheck:
    test: [CMD-SHELL, find /tmp/heartbeat -mmin -1 | grep -q .]
    interval: 10s
    timeout: 10s
    start_period: 60s
  # A process 1 that hands SIGTERM on to the worker's main process alone: to all, it would end
  # running tasks (celery #6541). A worker that is process 1 does not hear it while it starts.
  init: true
  restart: unless-stopped
  read_only: true
  tmpfs: [/tmp, /var/lib/{slug}]
  cap_drop: [ALL]
  security_opt: ["no-new-privileges:true"]
  logging: &logging
    driver: json-file
    options:
      max-size: 20m
      max-file: "5"
"""


def _broker() -> str:
    return f"""\
  {_BROKER}:
    image: {_IMAGE}
    # Without a password: nobody but the containers of this file is in its network.
    command: >-
      valkey-server --appendonly yes --maxmemory-policy noeviction --protected-mode no
    volumes: ["broker:/data"]
    healthcheck:
      test: [CMD, valkey-cli, -e, ping]
      interval: 5s
      timeout: 5s
      start_period: 30s
    restart: unless-stopped
    stop_grace_period: 30s
    security_opt: ["no-new-privileges:true"]
    logging: *logging
"""


def _service(lane: Lane) -> str:
    memory = f"    mem_limit: {lane.memory_max}\n" if lane.memory_max else ""
    # In quotes, since YAML takes names such as `on` and `no` for something else. By shares, since
    # niceness counts within a container alone.
    return f"""\
  "{lane.name}":
    <<: *worker
    command: [worker, "{lane.name}"]
    scale: {lane.workers}
    stop_grace_period: {round(lane.stop_time)}s
    cpu_shares: {round(1024 * cpu_share(lane))}
{memory}"""
