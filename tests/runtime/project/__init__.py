"""A project for the runtime's own tests; harness.Project lays `lanes` beside these files."""
