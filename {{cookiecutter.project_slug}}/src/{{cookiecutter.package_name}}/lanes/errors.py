"""Errors that a person can act on: what is wrong, the value, the rule, the way out."""


class LanesError(Exception):
    """Raised when ... see the subclasses; the command prints the message and exits `exit_code`."""

    exit_code = 2


class ConfigError(LanesError):
    """Raised when lanes.toml cannot be used; `problems` holds one line for each mistake in it."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class SettingsError(LanesError):
    """Raised when an environment variable cannot be used."""


class RoutingError(LanesError):
    """Raised when a task is defined for, or sent to, a place that no lane consumes."""


class UsageError(LanesError):
    """Raised when a command is asked for what it cannot do here."""


class NotFoundError(LanesError):
    """Raised when something that was asked for by name is not there."""

    exit_code = 1


class AlreadySent(LanesError):  # noqa: N818 - it is none to anybody but us
    """Raised out of a send that is to be done once, and was; `bind` makes a result of it."""

    def __init__(self, id_: str) -> None:
        """`id_` is that of the task that holds the lock."""
        super().__init__(f"the task {id_} was sent before, and holds the lock")
        self.id = id_


class SendError(LanesError):
    """Raised when the broker fails while many messages are sent; `sent` certainly were."""

    exit_code = 1

    def __init__(self, message: str, sent: int) -> None:
        super().__init__(message)
        self.sent = sent


class BrokerError(LanesError):
    """Raised when the broker does not answer, or refuses."""

    exit_code = 1


class ContractError(LanesError):
    """Raised when another package lacks what we borrow of it; `problems` has a line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
