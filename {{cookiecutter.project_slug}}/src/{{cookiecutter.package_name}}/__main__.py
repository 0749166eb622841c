{% from 'managers.jinja' import managers with context -%}
"""The project's command: `{{ cookiecutter.project_slug }}`.

Also `python -m {{ cookiecutter.package_name }}`.
"""

from .lanes.cli import command
from .lanes.deploy import Project

PROJECT = Project(
    slug="{{ cookiecutter.project_slug }}",
    package="{{ cookiecutter.package_name }}",
    process_managers=("{{ managers | join('", "') }}"{{ ',' if managers | length == 1 }}),
)
main = command(PROJECT)

if __name__ == "__main__":
    main()
