"""The Celery app; `celery -A {{ cookiecutter.package_name }} ...` finds it here."""

from celery import Celery

from .lanes.bind import bind

app = bind(
    Celery(
        "{{ cookiecutter.package_name }}",
        include=["{{ cookiecutter.package_name }}.tasks"],
    )
)
