"""Group commit into PostgreSQL, on a connection that is made anew when it is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from llm_gateway.errors import JobError, JobStoreBusyError, MissingDependencyError
from llm_gateway.jobs.address import JobAddress
from llm_gateway.jobs.commits import Commits

if TYPE_CHECKING:
    from psycopg import Connection

T = TypeVar("T")
# A server that vanished without a word is noticed within seconds; whoever sets one of these in the address is obeyed.
PATIENCE = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "client_encoding": "UTF8",
    "application_name": "llm-gateway",
}
# The server ends what a vanished client has begun sooner than another one loses its patience with the locks of it.
SESSION = (
    "SELECT set_config('idle_in_transaction_session_timeout', '10s', false), set_config('lock_timeout', '20s', false)",
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
)


def connect(address: JobAddress) -> Connection[Any]:
    """Connect. Raises psycopg's errors, JobError for an address that cannot be read, MissingDependencyError."""
    try:
        import psycopg
        from psycopg import conninfo
    except ImportError:
        raise MissingDependencyError("pip install 'llm-gateway[postgres]'") from None
    try:
        given = conninfo.make_conninfo("", **{**PATIENCE, **conninfo.conninfo_to_dict(address.dsn)})
    except psycopg.ProgrammingError as error:
        told = address.without_secrets(str(error)).strip()
        raise JobError(f"The address {address.shown} cannot be used: {told}.") from None
    connection = psycopg.connect(given, autocommit=True)
    for statement in SESSION:
        connection.execute(statement.encode())
    return connection


def told(address: JobAddress, action: Callable[[], T]) -> T:
    """Do it, and put what PostgreSQL complains of into a sentence without secrets.

    Raises JobStoreBusyError if the same could succeed later: the connection is lost, a lock was waited for in vain.
    """
    try:
        import psycopg
    except ImportError:
        raise MissingDependencyError("pip install 'llm-gateway[postgres]'") from None
    try:
        return action()
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction) as error:
        reason = _reason(address, error)
        raise JobStoreBusyError(
            f"The job's database {address.shown} cannot be used for the moment: {reason}."
        ) from None
    except psycopg.Error as error:
        raise JobError(f"The job's database {address.shown} cannot be used: {_reason(address, error)}.") from None


def _reason(address: JobAddress, error: Exception) -> str:
    """Return the first line of what went wrong, which is the sentence; others quote statements and hints."""
    lines = address.without_secrets(str(error)).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__


class PostgresCommits(Commits["Connection[Any]"]):
    """Group commit into a database.

    `begin` is the first step of every transaction. It gets the transaction's number, from 1, and the numbers of those
    whose connection was lost while they were committed: nobody knows how they ended, nobody was told that they did.
    """

    def __init__(self, address: JobAddress, begin: Callable[[Connection[Any], int, Sequence[int]], None]) -> None:
        """Connect. Raises JobError, also where the database cannot be reached: it may well be the address."""
        self._address = address
        self._begins = begin
        self._number = 0
        self._in_doubt: list[int] = []
        self.on_connect: Callable[[Connection[Any]], None] = lambda _connection: None
        try:
            super().__init__(lambda: connect(address), address.shown)
        except JobStoreBusyError as error:
            raise JobError(str(error)) from None

    def run_now(self, step: Callable[[Connection[Any]], T]) -> T:
        """Do it at once; the event loop does not wait for a database that is known to be away."""
        if self._connection is None and not self._is_closed:
            raise JobStoreBusyError(f"The job's database {self._name} cannot be used for the moment.")
        return super().run_now(step)

    def _transaction(self, steps: Sequence[Callable[[Connection[Any]], Any]]) -> list[Any]:
        connection = self._begun()
        self._number += 1
        committing = False
        try:
            self._begins(connection, self._number, self._in_doubt)
            outcomes = [step(connection) for step in steps]
            committing = True
            connection.execute("COMMIT")
        except BaseException:
            if committing:
                self._in_doubt.append(self._number)
            self._give_up(connection)
            raise
        self._in_doubt.clear()
        return outcomes

    def _begun(self) -> Connection[Any]:
        """Begin a transaction; a connection that was lost while it was idle is made anew at once."""
        import psycopg

        connection = self._connected()
        try:
            connection.execute("BEGIN")
        except psycopg.OperationalError:
            self._give_up(connection)
            connection = self._connected()
            connection.execute("BEGIN")
        return connection

    def _connected(self) -> Connection[Any]:
        if self._connection is None:
            connection = self._connect()
            try:
                self.on_connect(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _give_up(self, connection: Connection[Any]) -> None:
        """Roll back, or forget a connection that cannot even do that."""
        import psycopg

        try:
            connection.execute("ROLLBACK")
        except psycopg.Error:
            connection.close()
            self._connection = None

    def _told(self, action: Callable[[], T]) -> T:
        return told(self._address, action)
