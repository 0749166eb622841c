"""Before the first question: is this Python one that the project can run on?"""

import sys

# Cookiecutter runs hooks in its own Python, which is the one the project will be tried with.
if sys.version_info < (3, 11):  # noqa: UP036 - an older one is what this file is for
    sys.exit(
        "celery-lanes-template needs Python 3.11 or later, and Cookiecutter runs on {}.{}.{}. "
        "Install it with a newer one, for example: "
        "pipx install --python python3.13 cookiecutter".format(*sys.version_info)
    )
