from .lanes.cli import command
from .lanes.deploy import Project

command(Project(slug="tests-own", package=__package__, process_managers=("systemd",)))()
