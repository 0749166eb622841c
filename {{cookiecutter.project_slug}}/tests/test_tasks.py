{% from 'lanes.jinja' import lanes with context -%}
"""Your tests of your tasks. A task called directly is a function: no broker, no worker."""

from {{ cookiecutter.package_name }} import tasks
{% for name, profile in lanes %}
{% if profile == 'slow' %}
def test_{{ name }}_task_returns_how_long_it_slept() -> None:
    assert tasks.{{ name }}_task(0.01) == 0.01
{% else %}
def test_{{ name }}_task_answers_what_it_was_asked() -> None:
    assert tasks.{{ name }}_task(100) == 100
{% endif %}
{%- endfor -%}
