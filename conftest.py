"""Makes the suites and their options known to pytest."""

pytest_plugins = ["harness.pytest_plugin"]
