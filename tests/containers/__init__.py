"""A generated project in containers of Podman's: `make test-containers`."""
