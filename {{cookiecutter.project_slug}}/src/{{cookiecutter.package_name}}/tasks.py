{% from 'lanes.jinja' import lanes with context -%}
"""Your tasks. `lane=` says how each one is run; lanes.toml says what that means.

Delivery is at least once: a task may run again after a crash, so let a second run do no harm.
"""
{% if lanes | selectattr(1, 'equalto', 'slow') | list %}
import time
{% endif %}
from {{ cookiecutter.package_name }}.celery import app
{% for name, profile in lanes %}

@app.task(lane="{{ name }}")
{%- if profile == 'slow' %}
def {{ name }}_task(seconds: float) -> float:
    """Sleep, as a report or an export would work."""
    time.sleep(seconds)
    return seconds
{%- else %}
def {{ name }}_task(x: int) -> int:
    """Answer at once, as a look-up would."""
    return x
{%- endif %}
{% endfor -%}
