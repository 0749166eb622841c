"""Celery's and kombu's own integration tests, run on a generated project; `make test-celery`."""
